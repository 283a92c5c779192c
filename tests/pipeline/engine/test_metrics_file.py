from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import metrics
from pipeline.engine.metrics import MetricsFile, read_metrics


class Recorder:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, values: dict[str, float]) -> None:
        self.logged.append((step, values))

    def close(self) -> None:
        self.closed = True


class Tensor:
    """What numpy's and torch's scalars have in common."""

    def tolist(self) -> float:
        return 0.25


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_valid_json_with_step_and_time(tmp_path: Path, clock: list[float]) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    clock[0] += 2.5
    file.log(3, loss=Tensor(), kl=float("nan"), ratio=[1.0, float("-inf")], stage="sft")
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert json.loads(text) == {
        "step": 3,
        "time": 2.5,
        "loss": 0.25,
        "kl": None,
        "ratio": [1.0, None],
        "stage": "sft",
    }


def test_truncate_removes_later_steps_and_keeps_the_time(tmp_path: Path, clock: list[float]) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in range(4):
        clock[0] += 1
        first.log(step, value=step)
    clock[0] += 1000  # the night between the two runs
    second = MetricsFile(path)
    second.truncate(1)
    clock[0] += 1
    second.log(2, value="again")
    lines = list(read_metrics(path))
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["time"] for line in lines] == [1.0, 2.0, 3.0]
    assert lines[-1]["value"] == "again"


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "time": 1.0}\n{"step": 1, "ti')
    assert [line["step"] for line in read_metrics(path)] == [0]
    MetricsFile(path).log(1)
    assert [line["step"] for line in read_metrics(path)] == [0, 1]


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path / "gone.jsonl")) == []


def test_trackers_get_the_numbers(tmp_path: Path) -> None:
    tracker = Recorder()
    file = MetricsFile(tmp_path / "metrics.jsonl", [tracker])
    file.log(1, loss=2, kl=float("nan"), name="x", rate=Tensor())
    file.close()
    assert tracker.logged == [(1, {"loss": 2.0, "rate": 0.25})]
    assert tracker.closed


def test_trackio_gets_project_run_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    calls: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish")
    )
    module = types.ModuleType("trackio")
    module.init = lambda **given: calls.append(given) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    [tracker] = metrics.open_trackers(["trackio"], tmp_path, "quickstart", "ppo-abc")
    tracker.log(1, {"kl": 2.0})
    tracker.close()
    assert calls == [
        {"project": "quickstart", "name": "ppo-abc", "resume": "allow"},
        (1, {"kl": 2.0}),
        "finish",
    ]


@pytest.mark.slow
def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    [tracker] = metrics.open_trackers(["tensorboard"], tmp_path, "quickstart", "ppo-abc")
    tracker.log(1, {"kl": 2.0})
    tracker.close()
    assert any(file.name.startswith("events.") for file in (tmp_path / "tensorboard").iterdir())
