from __future__ import annotations

import sqlite3
import stat
import unicodedata
from pathlib import Path

import pytest
from ranking_site import ask

from pipeline.errors import StageError
from ranking.assignment import next_task
from ranking.campaign import Campaign, Item
from ranking.export import rankings
from ranking.store import Assessment, Conflict, Store, Task


@pytest.fixture
def campaign() -> Campaign:
    return Campaign("rank", [ask(0), ask(1)], ["ana", "ben"], overlap=1)


@pytest.fixture
def store(tmp_path: Path, campaign: Campaign) -> Store:
    opened = Store(tmp_path / "r.sqlite")
    opened.open(campaign)
    return opened


def assigned(store: Store, campaign: Campaign, name: str = "ana") -> Task:
    task = next_task(store, campaign, name)
    assert task is not None
    return task


def test_a_repeated_submission_counts_once(store: Store, campaign: Campaign) -> None:
    task = assigned(store, campaign)
    answer = Assessment(ranks=[1, 2, 2, 3], note="clear", seconds=3.0)
    assert store.submit(task.id, "a" * 16, answer) is True
    assert store.submit(task.id, "a" * 16, answer) is False
    [stored] = store.submitted("rank")
    assert (stored.assessment, stored.revisions) == (answer, 1)
    with pytest.raises(Conflict):
        store.submit(task.id, "a" * 16, Assessment(ranks=[2, 1, 1, 1]))
    other = assigned(store, campaign, "ben")
    with pytest.raises(Conflict):
        store.submit(other.id, "a" * 16, answer)
    assert store.submitted("rank") == [stored]


def test_a_revision_is_a_new_row_and_the_newest_counts(store: Store, campaign: Campaign) -> None:
    task = assigned(store, campaign)
    store.submit(task.id, "a" * 16, Assessment(ranks=[1, 2, 3, 4], seconds=2.0))
    store.submit(task.id, "b" * 16, Assessment(ranks=[1, 1, 1, 1], all_bad=True, seconds=3.0))
    [stored] = store.submitted("rank")
    assert (stored.assessment.ranks, stored.assessment.all_bad, stored.revisions, stored.seconds) == (
        [1] * 4,
        True,
        2,
        5.0,
    )
    assert store.read("SELECT COUNT(*) FROM submissions") == [(2,)]


@pytest.mark.parametrize("statement", ["UPDATE submissions SET content = '{}'", "DELETE FROM submissions"])
def test_submissions_cannot_be_updated_or_deleted(store: Store, campaign: Campaign, statement: str) -> None:
    store.submit(assigned(store, campaign).id, "a" * 16, Assessment(ranks=[1, 2, 3, 4]))
    with pytest.raises(sqlite3.DatabaseError, match="append-only"), store.transaction() as db:
        db.execute(statement)
    assert len(store.submitted("rank")) == 1


def test_implausible_durations_are_capped(tmp_path: Path, campaign: Campaign) -> None:
    clock = [1000.0]
    store = Store(tmp_path / "r.sqlite", now=lambda: clock[0])
    store.open(campaign)
    task = assigned(store, campaign)
    clock[0] += 20
    store.submit(task.id, "a" * 16, Assessment(ranks=[1, 2, 3, 4], seconds=9e5))
    other = assigned(store, campaign)
    clock[0] += 40
    store.submit(other.id, "b" * 16, Assessment(ranks=[1, 2, 3, 4]))
    assert [s.seconds for s in store.submitted("rank")] == [25.0, 40.0]


def test_commits_are_durable_and_the_file_is_private(store: Store) -> None:
    assert store.read("PRAGMA synchronous") == [(2,)]
    assert store.read("PRAGMA journal_mode") == [("wal",)]
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_unreadable_databases_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sqlite"
    broken.write_text("no database at all, and long enough to look like a header")
    with pytest.raises(StageError, match="cannot be read"):
        Store(broken)
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StageError, match="newer version"):
        Store(newer)


def test_an_item_is_identified_by_its_content() -> None:
    first, same = ask(0), ask(0)
    reordered = type(first)(first.prompt, [*first.completions[::-1], first.completions[0]], ["m"] * 5)
    assert first.item == same.item == reordered.item
    assert first.item is not None
    assert reordered.item is not None
    assert first.item.key == reordered.item.key != ask(1).item.key  # type: ignore[union-attr]
    for other in ("same", " same\n", "sa\u0301me"):
        assert type(first)(first.prompt, [unicodedata.normalize("NFC", other), other]).item is None
    assert Item([{"role": "user", "content": "\ud800"}], ["\udfff", "a"]).key


def test_equal_answers_are_shown_once_and_share_a_rank(tmp_path: Path) -> None:
    source = ask(0)
    source = type(source)(source.prompt, ["x", "y", " x"])
    campaign = Campaign("rank", [source], ["ana"], overlap=1)
    store = Store(tmp_path / "r.sqlite")
    store.open(campaign)
    task = assigned(store, campaign)
    assert [text.strip() for text in task.item.completions] == ["x", "y"]
    store.submit(task.id, "a" * 16, Assessment(ranks=[2, 1], seconds=3.0))
    [ranking] = rankings(store, campaign)
    assert (ranking.completions, ranking.ranks) == (["x", "y", " x"], [2, 1, 2])
