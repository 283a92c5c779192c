"""A large campaign says how much work it is before it is served."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from ranking_site import ask

from pipeline.errors import StageError
from ranking import workload
from ranking.assignment import next_task
from ranking.campaign import Campaign
from ranking.store import Assessment, Store


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def opened(folder: Path, items: int, now: Any = None, **values: Any) -> tuple[Store, Campaign]:
    campaign = Campaign("rank", [ask(number) for number in range(items)], ["ana", "ben"], **values)
    store = Store(folder / "rankings.sqlite", **({"now": now} if now else {}))
    store.open(campaign)
    return store, campaign


def test_hours_follow_from_items_overlap_and_annotators(tmp_path: Path) -> None:
    store, campaign = opened(tmp_path, 300, overlap=2)
    line = workload.estimate(store, campaign)
    assert line == (
        "300 items, 2 rankings per item, 2 annotators: about 5 hours for each annotator "
        "(if a ranking takes 60 s, which nobody has measured yet)"
    )
    store.close()


def test_the_pace_so_far_replaces_the_assumption(tmp_path: Path) -> None:
    clock = [0.0]
    store, campaign = opened(tmp_path, 300, now=lambda: clock[0], overlap=1)
    for number in range(20):
        task = next_task(store, campaign, "ana")
        assert task is not None
        clock[0] += 18.0
        store.submit(task.id, f"{number:016}", Assessment(ranks=[1, 2, 3, 4]))
    # 280 rankings at 18 s by two people are 42 minutes each.
    assert "about 42 minutes each (at 18 s per ranking, the median so far)" in workload.estimate(store, campaign)
    store.close()


def test_only_a_terminal_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, campaign = opened(tmp_path, 201)
    lines: list[str] = []
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    workload.announce(store, campaign, lines.append)
    assert len(lines) == 1
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    workload.announce(store, campaign, lines.append)
    assert lines[-1] == "Serve them? [y/N]"
    for answer in ("\n", "n\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        with pytest.raises(StageError, match="nothing was served") as error:
            workload.announce(store, campaign, lines.append)
        assert "collect.num_prompts" in error.value.hint
    store.close()


def test_a_small_campaign_starts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    store, campaign = opened(tmp_path, 200)
    workload.announce(store, campaign, pytest.fail)
    store.close()
