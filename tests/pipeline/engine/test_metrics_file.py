from __future__ import annotations

import json
import sys
import types
import typing
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.recipe import Tracker
from pipeline.engine import metrics
from pipeline.engine.metrics import MetricsFile, read_metrics
from pipeline.errors import StageError


class Recorder:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
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


def test_seconds_are_those_of_this_process_and_of_the_lines_that_were_kept(
    tmp_path: Path, clock: list[float]
) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    clock[0] += 60  # loading
    first.truncate(0)
    for step in (1, 2, 3):
        clock[0] += 10
        first.log(step)
    assert first.seconds == 90
    clock[0] += 1000
    second = MetricsFile(path)
    clock[0] += 60
    second.truncate(2)
    clock[0] += 10
    assert second.seconds == 80 + 60 + 10


def test_the_time_of_an_earlier_phase_counts_once(tmp_path: Path, clock: list[float]) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.truncate(-1)
    clock[0] += 10
    file.log(1)
    file.truncate(1)  # the second phase starts after the step of the first
    clock[0] += 5
    file.log(2)
    assert file.seconds == 15
    assert [line["time"] for line in read_metrics(path)] == [10.0, 15.0]

    clock[0] += 1000
    resumed = MetricsFile(path)
    resumed.truncate(1)
    clock[0] += 5
    resumed.log(2)
    resumed.truncate(2)
    clock[0] += 1
    assert resumed.seconds == 10 + 5 + 1


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


def fake(monkeypatch: pytest.MonkeyPatch, package: str, **functions: Any) -> None:
    """A module in the place of a tracker's package."""
    module = types.ModuleType(package)
    module.__spec__ = ModuleSpec(package, None)
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, package, module)


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("trackio", {"project": "quickstart", "name": "ppo-abc", "resume": "allow"}),
        (
            "wandb",
            {"project": "quickstart", "name": "ppo-abc", "id": "ppo-abc", "resume": "allow", "dir": "FOLDER"},
        ),
    ],
)
def test_a_tracker_gets_project_run_and_values(
    package: str, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish")
    )
    fake(monkeypatch, package, init=lambda **arguments: calls.append(arguments) or run)
    [tracker] = metrics.open_trackers([package], tmp_path, "quickstart", "ppo-abc")
    tracker.log({"kl": 2.0}, step=1)
    tracker.finish()
    expected = {name: str(tmp_path) if value == "FOLDER" else value for name, value in expected.items()}
    assert calls == [expected, (1, {"kl": 2.0}), "finish"]


def test_mlflow_gets_an_experiment_per_recipe_and_a_run_per_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    fake(
        monkeypatch,
        "mlflow",
        search_experiments=lambda filter_string: calls.append(filter_string) or [],
        create_experiment=lambda name, **_: calls.append(name) or "7",
        start_run=lambda experiment_id, run_name, **_: calls.append((experiment_id, run_name)),
        log_metrics=lambda values, step: calls.append((step, values)),
        end_run=lambda: calls.append("end"),
    )
    [tracker] = metrics.open_trackers(["mlflow"], tmp_path, "quickstart", "ppo-abc")
    tracker.log({"kl": 2.0}, step=1)
    tracker.finish()
    assert calls == ["name = 'quickstart'", "quickstart", ("7", "ppo-abc"), (1, {"kl": 2.0}), "end"]


def test_trackers_leave_the_process_state_to_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the process state set up before a stage, its Trainer would not see the other processes."""
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, on_main_process

    calls: list[Any] = []

    class Mine(GeneralTracker):
        name = "mine"
        requires_logging_directory = False
        tracker = None

        def __init__(self, run_name: str) -> None:
            super().__init__()

        @on_main_process
        def start(self) -> None:
            calls.append("start")

        @on_main_process
        def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
            calls.append((step, values))

    monkeypatch.setattr(PartialState, "_shared_state", {})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mine", Mine)
    [tracker] = metrics.open_trackers(["mine"], tmp_path, "quickstart", "ppo-abc")
    tracker.log({"kl": 2.0}, step=1)
    assert calls == ["start", (1, {"kl": 2.0})]
    assert PartialState._shared_state == {}


def test_a_tracker_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("no API key configured")

    fake(monkeypatch, "wandb", init=init)
    with pytest.raises(StageError, match="wandb, which cannot start: no API key configured"):
        metrics.open_trackers(["wandb"], tmp_path, "quickstart", "ppo-abc")


def test_a_recipe_may_name_the_trackers_that_accelerate_has() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(typing.get_args(Tracker)) == set(LOGGER_TYPE_TO_CLASS)


@pytest.mark.slow
def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    [tracker] = metrics.open_trackers(["tensorboard"], tmp_path, "quickstart", "ppo-abc")
    tracker.log({"kl": 2.0}, step=1)
    tracker.finish()
    assert any(file.name.startswith("events.") for file in (tmp_path / "tensorboard").iterdir())
