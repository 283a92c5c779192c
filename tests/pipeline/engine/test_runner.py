from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from pipeline_fakes import FakeStages, Lines, write_all

from pipeline.engine import manifest, plan
from pipeline.engine.runner import Runner
from pipeline.errors import DataError, Interrupted, RecipeError, StageError

MakeRunner = Callable[..., Runner]
ORDER = ["base", "data", "sft", "collect", "rank", "reward", "ppo", "eval", "export"]


def actions(runner: Runner, until: str | None = None) -> dict[str, str]:
    return {step.spec.name: step.action for step in runner.planner.plan(until)}


def reason(runner: Runner, stage: str) -> str:
    return next(step.reason for step in runner.planner.plan() if step.spec.name == stage)


def folder_of(runner: Runner, stage: str) -> Path:
    [folder] = (runner.planner.folder / stage).iterdir()
    return folder


def interrupt_after(steps: int) -> Callable[..., dict[str, Any]]:
    """A stage that checkpoints each step and is stopped once."""

    def run(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        file = ctx.state_dir / "step"
        first = int(file.read_text()) + 1 if file.exists() else 0
        ctx.metrics.truncate(first - 1)
        for step in range(first, 4):
            ctx.metrics.log(step, value=step)
            if step == steps and first == 0:
                raise KeyboardInterrupt
            file.write_text(str(step))
        return write_all(config, inputs, out_dir, ctx) | {"first": first}

    return run


def test_a_run_makes_every_stage_once_and_a_second_does_nothing(runner: MakeRunner, stages: FakeStages) -> None:
    assert set(actions(runner()).values()) == {"run", "wait"}
    assert reason(runner(), "base") == "no earlier result"
    runner().run()
    assert stages.calls == ORDER
    again = runner()
    assert [step.action for step in again.run()] == ["skip"] * len(ORDER)
    assert stages.calls == ORDER
    assert not again.moved
    assert reason(again, "ppo").startswith("up to date (key ")


def test_stages_get_exactly_the_inputs_they_need(runner: MakeRunner) -> None:
    steps = {step.spec.name: step for step in runner().run()}
    given = json.loads((steps["reward"].folder / "out/given.json").read_text())  # type: ignore[operator]
    assert sorted(given["inputs"]) == ["base", "data", "rank", "sft"]


def test_until_stops_there(runner: MakeRunner, stages: FakeStages) -> None:
    runner().run("sft")
    assert stages.calls == ["base", "data", "sft"]
    assert actions(runner(), "collect") == {"base": "skip", "data": "skip", "sft": "skip", "collect": "run"}


def test_a_changed_value_reruns_its_stage_and_what_follows(runner: MakeRunner, stages: FakeStages) -> None:
    runner().run()
    changed = runner("ppo.kl.target=8")
    expected = dict.fromkeys(ORDER[:6], "skip") | {"ppo": "run", "eval": "wait", "export": "wait"}
    assert actions(changed) == expected
    assert reason(changed, "ppo") == "changed: ppo.kl.target 6.0 -> 8.0"
    assert reason(changed, "eval") == "after ppo, if its result changes"
    stages.calls.clear()
    changed.run()
    assert stages.calls == ["ppo", "eval", "export"]
    assert set(actions(runner()).values()) == {"skip"}  # the first values' runs are still there


def test_runtime_values_rerun_nothing(runner: MakeRunner) -> None:
    runner().run()
    assert set(actions(runner("ppo.micro_batch_size=8 collect.batch_size=2")).values()) == {"skip"}


def test_the_seed_is_part_of_every_key(runner: MakeRunner) -> None:
    runner().run()
    assert reason(runner("seed=1"), "data") == "changed: seed 0 -> 1"


def test_a_seed_of_ppo_reruns_ppo_only(runner: MakeRunner, stages: FakeStages) -> None:
    runner("seed=5").run()
    stages.calls.clear()
    again = runner("seed=5 ppo.seed=0")
    assert reason(again, "ppo") == "changed: ppo.seed (absent) -> 0"
    again.run()
    assert stages.calls == ["ppo", "eval", "export"]
    summary = again.planner.summary()
    seeds = {stage: summary.need(stage).artifact.json("given.json")["seed"] for stage in stages.calls}
    assert seeds == {"ppo": 0, "eval": 5, "export": 5}


def test_a_rerun_with_the_same_content_stops_there(runner: MakeRunner, stages: FakeStages) -> None:
    def constant(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        (out_dir / "file").write_text("always the same")
        return {}

    stages.does["sft"] = constant
    runner().run()
    stages.calls.clear()
    steps = runner("sft.max_length=99").run()
    assert stages.calls == ["sft"]
    assert {step.spec.name for step in steps if step.action == "skip"} == set(ORDER) - {"sft"}


def test_changed_inputs_are_named(runner: MakeRunner, stages: FakeStages) -> None:
    runner().run()
    runner("sft.max_length=99").run("sft")
    assert reason(runner("sft.max_length=99"), "collect") == "input sft changed"


def test_a_raised_stage_version_reruns(
    runner: MakeRunner, stages: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from pipeline.engine import registry

    runner().run()
    version = registry.STAGES["eval"].version
    newer = dataclasses.replace(registry.STAGES["eval"], version=version + 1)
    monkeypatch.setitem(registry.STAGES, "eval", newer)
    assert reason(runner(), "eval") == f"stage version {version} -> {version + 1}"


def test_other_package_versions_are_noted_and_rerun_nothing(
    runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner().run()
    versions = plan.package_versions() | {"trl": "99.0"}
    monkeypatch.setattr(plan, "package_versions", lambda: versions)
    step = runner().planner.plan()[0]
    assert step.action == "skip"
    assert "have changed: trl " in step.note
    assert "-> 99.0" in step.note


def test_an_interrupted_stage_resumes_from_its_state(runner: MakeRunner, stages: FakeStages) -> None:
    stages.does["ppo"] = interrupt_after(2)
    with pytest.raises(Interrupted, match="interrupted during ppo") as error:
        runner().run()
    assert error.value.exit_code == 130
    second = runner()
    assert actions(second)["ppo"] == "resume"
    assert reason(second, "ppo").startswith("resumes: interrupted at 20")
    steps = {step.spec.name: step for step in second.run()}
    folder = steps["ppo"].folder
    assert folder is not None
    made = manifest.read(folder)
    assert made is not None
    assert made.resumed
    assert made.metrics["first"] == 2
    assert not (folder / "state").exists()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert stages.calls.count("sft") == 1


def test_a_kill_between_output_and_manifest_leaves_it_unfinished(
    runner: MakeRunner, stages: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.does["sft"] = lambda *given: (given[3].state_dir / "step").write_text("1") and write_all(*given)

    def killed(*_: Any) -> None:
        raise SystemExit(137)

    runner().run("base")
    runner().run("data")
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", killed)
        with pytest.raises(SystemExit):
            runner().run("sft")
    after = runner()
    assert (folder_of(after, "sft") / "out/given.json").exists()
    (folder_of(after, "sft") / "out/half-written").write_text("")
    assert actions(after, "sft") == {"base": "skip", "data": "skip", "sft": "resume"}
    after.run("sft")
    assert [path.name for path in (folder_of(after, "sft") / "out").iterdir()] == ["given.json"]


def test_a_failing_stage_leaves_the_earlier_ones_finished(runner: MakeRunner, stages: FakeStages) -> None:
    def bad(*_: Any) -> dict[str, Any]:
        raise DataError("row 3 has no rating")

    stages.does["reward"] = bad
    with pytest.raises(DataError, match="row 3"):
        runner().run()
    assert list(actions(runner()).values())[:5] == ["skip"] * 5
    del stages.does["reward"]
    stages.calls.clear()
    runner().run()
    assert stages.calls == ["reward", "ppo", "eval", "export"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left on device")],
)
def test_a_full_disk_is_one_clear_error(runner: MakeRunner, stages: FakeStages, error: Exception) -> None:
    def full(*_: Any) -> dict[str, Any]:
        raise error

    stages.does["sft"] = full
    with pytest.raises(StageError, match="the disk is full: sft could not write"):
        runner().run()
    assert list(actions(runner()).values())[:2] == ["skip", "skip"]


def test_other_system_errors_are_bugs_and_pass(runner: MakeRunner, stages: FakeStages) -> None:
    def bug(*_: Any) -> dict[str, Any]:
        raise FileNotFoundError(errno.ENOENT, "gone")

    stages.does["sft"] = bug
    with pytest.raises(FileNotFoundError):
        runner().run()


def test_a_damaged_artifact_is_named_and_fresh_mends_it(runner: MakeRunner, stages: FakeStages) -> None:
    runner().run()
    file = folder_of(runner(), "sft") / "out/given.json"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(StageError, match=f"given.json has 10 bytes, not {size}") as error:
        runner().run()
    assert "tutelage run sft --fresh" in error.value.hint
    stages.calls.clear()
    runner(fresh=["sft"]).run("sft")
    assert stages.calls == ["sft"]
    assert set(actions(runner()).values()) == {"skip"}


def test_a_damaged_manifest_is_mended_by_fresh(runner: MakeRunner, stages: FakeStages) -> None:
    runner().run("data")
    (folder_of(runner(), "data") / manifest.FILE).write_text("{")
    with pytest.raises(StageError, match="cannot be parsed"):
        runner().planner.plan()
    runner(fresh=["data"]).run("data")
    assert actions(runner(), "data") == {"data": "skip"}


def test_fresh_remakes_only_what_it_names(runner: MakeRunner, stages: FakeStages) -> None:
    runner().run()
    stages.calls.clear()
    again = runner(fresh=["sft"])
    assert reason(again, "sft") == "--fresh"
    again.run("sft")
    assert stages.calls == ["sft"]


def test_force_reaches_the_stage_and_the_manifest(runner: MakeRunner, stages: FakeStages) -> None:
    stages.does["base"] = lambda *given: write_all(*given) | {"forced": given[3].force}
    [step] = runner(force=True).run("base")
    made = manifest.read(step.folder)  # type: ignore[arg-type]
    assert made is not None
    assert made.forced
    assert made.metrics["forced"] is True


def test_what_simulated_annotators_touched_is_marked(runner: MakeRunner, stages: FakeStages) -> None:
    stages.does["rank"] = lambda *given: write_all(*given) | {"human": False}
    runs = (runner().run(), runner().planner.summary().stages)[1]
    simulated = {name for name, run in runs.items() if run.manifest.simulated}
    assert simulated == {"rank", "reward", "ppo", "eval", "export"}


def test_human_rankings_are_not_marked(runner: MakeRunner, stages: FakeStages) -> None:
    stages.does["rank"] = lambda *given: write_all(*given) | {"human": True}
    runner().run()
    assert not any(run.manifest.simulated for run in runner().planner.summary().stages.values())


def test_the_manifest_records_code_packages_and_hardware(runner: MakeRunner) -> None:
    runner("ppo.lam=0.9").run()
    made = runner("ppo.lam=0.9").planner.summary().need("ppo").manifest
    assert made.config["lam"] == 0.9
    assert made.provenance == {
        "ppo": "--set #1",
        "ppo.lam": "--set #1",
        "ppo.kl": "small.yaml:7",
        "ppo.kl.target": "small.yaml:7",
    }
    assert "save_updates" in made.config
    assert "save_updates" not in made.keyed
    assert made.packages["python"]
    assert made.hardware["cores"] >= 1
    assert made.memory["peak_bytes"] > 1_000_000
    assert set(made.inputs) == {"base", "data", "sft", "reward"}
    assert made.files["given.json"].size > 0


def test_a_held_lock_is_refused_with_its_holder(runner: MakeRunner, stages: FakeStages) -> None:
    step = runner().planner.plan("base")[0]
    assert step.folder is not None
    step.folder.mkdir(parents=True)
    (step.folder / "lock.pid").write_text("4711")
    with FileLock(step.folder / "lock"), pytest.raises(StageError, match="process 4711 is at work on this stage"):
        runner().run("base")
    assert stages.calls == []
    runner().run("base")
    assert stages.calls == ["base"]


def test_wait_takes_what_the_other_process_finished(runner: MakeRunner, stages: FakeStages) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(*given: Any) -> dict[str, Any]:
        entered.set()
        assert go_on.wait(10)
        return write_all(*given)

    stages.does["base"] = slow
    display = Lines()
    first, second = runner(), runner(wait=True, display=display)
    threads = [threading.Thread(target=first.run, args=("base",))]
    threads[0].start()
    assert entered.wait(10)
    threads.append(threading.Thread(target=second.run, args=("base",)))
    threads[1].start()
    while "waiting for process" not in display.text:
        time.sleep(0.01)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert stages.calls == ["base"]
    assert "another process has finished it" in display.text


def test_a_missing_local_file_is_found_before_anything_runs(runner: MakeRunner, stages: FakeStages) -> None:
    with pytest.raises(RecipeError, match=r"eval.judge: there is no file or folder gone.yaml") as error:
        runner("eval.judge=gone.yaml").run()
    assert error.value.where == "--set #1"
    assert stages.calls == []


def test_the_contents_of_local_files_are_part_of_the_key(runner: MakeRunner, stages: FakeStages) -> None:
    sets = "eval.judge=judge.yaml"
    Path("judge.yaml").write_text("one")
    runner(sets).run()
    Path("judge.yaml").write_text("other")
    changed = runner(sets)
    for stage in ("reward", "ppo", "eval"):  # the judge of eval is also the rubric of reward, and PPO's judge
        assert "the contents of eval.judge changed (judge.yaml)" in reason(changed, stage)
    stages.calls.clear()
    changed.run()
    assert stages.calls == ["reward", "ppo", "eval"]


def test_the_summary_survives_a_local_file_that_went(runner: MakeRunner) -> None:
    Path("judge.yaml").write_text("one")
    runner("eval.judge=judge.yaml").run()
    Path("judge.yaml").unlink()
    summary = runner("eval.judge=judge.yaml").planner.summary()
    assert list(summary.stages) == ORDER
    assert summary.need("eval").artifact.json("given.json")["seed"] == 0


def test_the_summary_of_other_values_is_theirs(runner: MakeRunner) -> None:
    runner().run()
    runner("seed=1").run("sft")
    assert list(runner().planner.summary().stages) == ORDER
    summary = runner("seed=1").planner.summary()
    assert list(summary.stages) == ["base", "data", "sft"]
    with pytest.raises(StageError, match="ppo is not finished under these recipe values"):
        summary.need("ppo")


def test_a_partial_run_keeps_the_record_of_the_rest(runner: MakeRunner) -> None:
    runner().run()
    again = runner()
    again.run("sft")
    assert not again.moved
    assert list(runner().planner.summary().stages) == ORDER


def test_unknown_and_unplanned_stages_are_refused(runner: MakeRunner) -> None:
    with pytest.raises(RecipeError, match="there is no stage called pppo"):
        runner().planner.plan("pppo")
    with pytest.raises(RecipeError, match="has no collect stage"):
        runner("rank.source=data data.rankings={path: x.csv, format: pairs}").planner.plan("collect")


def test_metrics_of_an_abandoned_run_are_not_kept(runner: MakeRunner, stages: FakeStages) -> None:
    def log_and_fail(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        ctx.metrics.log(7, loss=1)
        raise DataError("no")

    stages.does["base"] = log_and_fail
    with pytest.raises(DataError):
        runner().run("base")
    del stages.does["base"]
    runner().run("base")
    assert (folder_of(runner(), "base") / "metrics.jsonl").read_text() == ""


def test_a_tracker_that_is_not_installed_is_refused_before_the_stage_runs(
    runner: MakeRunner, stages: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(StageError, match="trackio, which is not installed") as error:
        runner("report_to=[trackio]").run("base")
    assert 'pip install "tutelage[trackio]"' in error.value.hint
    assert stages.calls == []


def test_sigterm_is_an_interruption(runner: MakeRunner, stages: FakeStages) -> None:
    def terminated(*_: Any) -> dict[str, Any]:
        os.kill(os.getpid(), 15)
        time.sleep(5)
        return {}

    stages.does["base"] = terminated
    with pytest.raises(Interrupted):
        runner().run("base")
