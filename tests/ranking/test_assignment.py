from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ranking_site import ask

from ranking.assignment import GAP, next_task, progress, share
from ranking.campaign import Campaign
from ranking.store import Assessment, Store


class Desk:
    """A campaign with a clock that the test controls."""

    def __init__(self, folder: Path, items: int, names: str, **values: Any) -> None:
        self.clock = 0.0
        self.campaign = Campaign("rank", [ask(i) for i in range(items)], names.split(), **values)
        self.store = Store(folder / "r.sqlite", now=lambda: self.clock)
        self.store.open(self.campaign)
        self.sent = 0

    def next(self, name: str) -> Any:
        return next_task(self.store, self.campaign, name)

    def send(self, task: Any, ranks: list[int] | None = None, skip: bool = False) -> None:
        self.sent += 1
        self.store.submit(task.id, f"{self.sent:016}", Assessment(ranks=None if skip else ranks or [1, 2, 3, 4]))

    @property
    def progress(self) -> tuple[int, int]:
        state = progress(self.store, self.campaign)
        return state.done, state.wanted


def test_each_item_gets_its_overlap_of_different_annotators(tmp_path: Path) -> None:
    desk = Desk(tmp_path, 7, "ana ben cem", overlap=2)
    seen: list[tuple[str, str]] = []
    names = ["ana", "ben", "cem"]
    while any(tasks := {name: desk.next(name) for name in names}.values()):
        for task in filter(None, tasks):
            seen.append((task.item.key, task.annotator))
            desk.send(task)
    assert len(seen) == len(set(seen)) == 14
    assert set(Counter(key for key, _ in seen).values()) == {2}
    assert desk.progress == (14, 14)


def test_an_annotator_is_told_of_their_share(tmp_path: Path) -> None:
    """Seven items for two of three annotators each are 14 rankings, of which each does five at most."""
    desk = Desk(tmp_path, 7, "ana ben cem", overlap=2)

    def shares() -> list[tuple[int, int]]:
        states = [share(desk.store, desk.campaign, name) for name in ("ana", "ben", "cem")]
        return [(state.done, state.wanted) for state in states]

    assert shares() == [(0, 5)] * 3
    desk.send(desk.next("ana"), skip=True)  # a skip is not a ranking
    assert shares()[0] == (0, 5)
    for _ in range(5):
        desk.send(desk.next("ana"))
    assert shares() == [(5, 6), (0, 5), (0, 5)]  # one more that nobody has ranked twice
    while task := desk.next("ben"):
        desk.send(task)
    assert shares()[1] == (7, 7)
    while task := desk.next("cem"):
        desk.send(task)
    done = [state for state, _ in shares()]
    assert sum(done) == 14
    assert [wanted for _, wanted in shares()] == done


def test_an_assigned_item_is_reserved_until_its_lease_ends(tmp_path: Path) -> None:
    desk = Desk(tmp_path, 1, "ana ben", overlap=1, lease=60.0)
    mine = desk.next("ana")
    assert desk.next("ana") == mine
    assert desk.next("ben") is None
    desk.clock = 61.0
    taken = desk.next("ben")
    assert taken.item == mine.item
    assert desk.next("ana") is None  # assigned to ben
    desk.send(taken)
    assert desk.progress == (1, 1)
    desk.send(mine)  # came late, and is kept
    assert len(desk.store.submitted("rank")) == 2
    assert desk.progress == (1, 1)


def test_an_expired_item_is_assigned_again_if_nobody_else_takes_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path, 1, "ana ben", overlap=1, lease=60.0)
    mine = desk.next("ana")
    desk.clock = 61.0
    taken = desk.next("ben")
    assert desk.next("ana") is None
    desk.send(taken, skip=True)
    assert desk.progress == (0, 1)
    assert desk.next("ana") == mine


def test_a_skipped_item_is_reassigned_until_no_annotator_is_left(tmp_path: Path) -> None:
    desk = Desk(tmp_path, 1, "ana ben cem", overlap=2)
    desk.send(desk.next("ana"), skip=True)
    assert desk.next("ana") is None
    assert desk.progress == (0, 2)
    desk.send(desk.next("ben"))
    assert desk.progress == (1, 2)
    desk.send(desk.next("cem"), skip=True)
    assert desk.progress == (1, 1)


def test_items_with_a_ranking_come_first(tmp_path: Path) -> None:
    desk = Desk(tmp_path, 5, "ana ben", overlap=2)
    first = [desk.next("ana") for _ in range(1)]
    desk.send(first[0])
    second = desk.next("ana")
    desk.send(second)
    assert desk.next("ben").item == first[0].item


def test_repeats_come_later_and_in_another_order(tmp_path: Path) -> None:
    desk = Desk(tmp_path, 40, "ana", overlap=1, repeats=0.25)
    assigned = []
    while task := desk.next("ana"):
        assigned.append(task)
        desk.send(task)
    repeats = [task for task in assigned if task.repeat]
    assert len(repeats) in (9, 10)
    for task in repeats:
        at = assigned.index(task)
        [(before, earlier)] = [(i, t) for i, t in enumerate(assigned[:at]) if t.item == task.item]
        assert at - before >= GAP
        assert earlier.shown != task.shown
    assert desk.progress == (40, 40)


def test_the_display_order_is_random_and_stable(tmp_path: Path) -> None:
    desk = Desk(tmp_path, 60, "ana ben", overlap=2)
    orders = Counter()
    for _ in range(60):
        task = desk.next("ana")
        assert sorted(task.shown) == [0, 1, 2, 3]
        assert desk.next("ana").shown == task.shown
        orders[task.shown[0]] += 1
        desk.send(task)
    assert min(orders.values()) >= 5  # the expected count is 15; below 5 has a chance of one in a thousand


def test_earlier_rankings_count_when_an_item_returns(tmp_path: Path) -> None:
    desk = Desk(tmp_path, 3, "ana ben", overlap=1)
    for _ in range(3):
        desk.send(desk.next("ana"))
    desk.campaign = Campaign("rank", [ask(i) for i in (2, 7, 1)], ["ana", "ben"], overlap=1)
    desk.store.open(desk.campaign)
    assert desk.progress == (2, 3)
    assert desk.next("ben").item == ask(7).item
    desk.campaign = Campaign("rank", [ask(i) for i in (2, 7, 1)], ["ben"], overlap=1)
    desk.store.open(desk.campaign)
    assert desk.progress == (0, 3)  # ana is no longer an annotator


@pytest.mark.parametrize("name", ["judge", "other"])
def test_rankings_do_not_count_for_another_campaign(tmp_path: Path, name: str) -> None:
    desk = Desk(tmp_path, 1, "ana", overlap=1)
    desk.send(desk.next("ana"))
    desk.campaign = Campaign(name, [ask(0)], ["ana"], overlap=1)
    desk.store.open(desk.campaign)
    assert desk.progress == (0, 1)
