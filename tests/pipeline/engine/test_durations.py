from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pipeline_fakes import FakeStages, Lines

from pipeline.engine import manifest, recording
from pipeline.engine.durations import Durations
from pipeline.engine.runner import Runner, _countdown

Make = Callable[..., Runner]


@pytest.fixture
def run_took(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the manifests of the next runs say."""
    values: dict[str, Any] = {"seconds": 60.0, "predicted": {"flops": 1e9}}
    real = recording.Manifest
    monkeypatch.setattr(recording, "Manifest", lambda **fields: real(**fields | values))
    return values


def test_an_earlier_run_is_scaled_by_the_operations(
    runner: Make, stages: FakeStages, run_took: dict[str, Any]
) -> None:
    runner().run("sft")
    durations = Durations(runner().planner, {"sft": 3e9}, "cpu")
    assert durations.seconds("sft") == 180
    assert durations.seconds("data") == 60, "operations that cannot be counted do not matter"
    assert durations.seconds("ppo") is None
    assert durations.total(["data", "sft"]) == 240
    assert durations.total(["data", "ppo"]) is None
    assert durations.total([]) == 0


def test_runs_that_say_nothing_about_this_one_are_ignored(
    runner: Make, stages: FakeStages, run_took: dict[str, Any]
) -> None:
    runner().run("base")
    assert Durations(runner().planner, {}, "cuda").seconds("base") is None, "another device"
    run_took |= {"seconds": 1.0, "resumed": True}
    runner("seed=1").run("base")
    assert Durations(runner().planner, {}, "cpu").seconds("base") == 60, "only the end of an interrupted run"


def test_a_later_round_takes_as_long_as_the_first(
    runner: Make, stages: FakeStages, run_took: dict[str, Any]
) -> None:
    runner().run()
    assert Durations(runner("rounds=2").planner, {}, "cpu").seconds("ppo-2") == 60


def test_the_countdown_ends_when_a_stage_takes_longer_than_expected(
    runner: Make, stages: FakeStages, run_took: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner().run()
    planner = runner("seed=1").planner
    step = planner.plan()[0]
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    left = _countdown(Durations(planner, {}, "cpu"), step, ["data", "sft"])
    assert left() == 180
    now[0] = 50
    assert left() == 130
    now[0] = 61
    assert left() is None
    assert _countdown(Durations(planner, {}, "cpu"), replace(step, action="resume"), [])() is None
    assert _countdown(Durations(planner, {}, "cpu"), step, ["dpo"])() is None


def test_run_says_which_stage_it_is_and_the_time_left(
    runner: Make, stages: FakeStages, run_took: dict[str, Any]
) -> None:
    del run_took["predicted"]  # the real operations, the same in both runs
    first = Lines()
    runner(display=first).run()
    assert "stage 1 of 9: base, running (no earlier result)\n" in first.text
    assert "stage 9 of 9: export, running (no earlier result)\n" in first.text
    assert "left in total" not in first.text, "nothing is known yet"
    again = Lines()
    runner("ppo.kl.target=5", display=again).run()
    announced = [line for line in again.text.splitlines() if line.startswith("stage")]
    assert announced == [
        "stage 7 of 9: ppo, running (changed: ppo.kl.target 6.0 -> 5.0); about 3 min left in total",
        "stage 8 of 9: eval, running (input ppo changed); about 2 min left in total",
        "stage 9 of 9: export, running (input ppo changed; input eval changed); about 1 min left in total",
    ]


def test_a_manifest_without_a_prediction_counts(runner: Make, stages: FakeStages, run_took: dict[str, Any]) -> None:
    run_took["predicted"] = {}
    [step] = runner().run("base")
    assert step.folder is not None
    assert manifest.read(step.folder)
    assert Durations(runner().planner, {"base": 5e9}, "cpu").seconds("base") == 60
