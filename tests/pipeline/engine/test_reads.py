"""Stages run again when files that they read change, not when others do; runs of other recipes are used."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_fakes import FakeStages, Lines

from pipeline.engine import manifest, registry
from pipeline.engine.clean import leftovers, remove
from pipeline.engine.manifest import InputRecord
from pipeline.engine.plan import Planner, StagePlan
from pipeline.engine.reuse import input_of
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Artifact, matches
from pipeline.errors import StageError

MakeRunner = Callable[..., Runner]
SHARED = ["base", "data", "sft", "collect", "rank", "reward", "ppo", "eval"]


def tables(**contents: str) -> Callable[..., dict[str, Any]]:
    """A `data` stage that writes files with these contents."""
    files = {"demonstrations": "d", "prompts": "p", "contamination": "c", "rankings": "r"} | contents

    def run(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        for name, content in files.items():
            (out_dir / (f"{name}.json" if name == "contamination" else f"{name}.jsonl")).write_text(content)
        return {}

    return run


def plans(planner: Planner) -> dict[str, StagePlan]:
    return {step.spec.name: step for step in planner.plan()}


def rerun(runner: MakeRunner, stages: FakeStages, **contents: str) -> list[str]:
    """The stages that run again when `data` writes other contents."""
    stages.does["data"] = tables()
    runner().run()
    stages.calls.clear()
    stages.does["data"] = tables(**contents)
    runner(fresh=["data"]).run()
    return stages.calls


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (("rankings.jsonl",), {"rankings.jsonl"}),
        (("head*", "adapter"), {"head-1.safetensors", "adapter/weights"}),
        (("*", "!notes.json", "!adapter"), {"rankings.jsonl", "head-1.safetensors"}),
        (("*", "!weights"), {"rankings.jsonl", "head-1.safetensors", "notes.json"}),
        ((), set()),
    ],
)
def test_a_pattern_names_files_and_folders(pattern: tuple[str, ...], expected: set[str]) -> None:
    names = {"rankings.jsonl", "head-1.safetensors", "adapter/weights", "notes.json"}
    assert {name for name in names if matches(name, pattern)} == expected


def test_other_rankings_do_not_rerun_sft(runner: MakeRunner, stages: FakeStages) -> None:
    assert rerun(runner, stages, rankings="others") == ["data", "rank", "reward", "ppo", "eval", "export"]
    step = plans(runner().planner)["sft"]
    assert step.action == "skip"
    assert step.reason.endswith("; data changed, but not the files that sft reads")
    assert step.finished is not None
    # The run of sft stays that of the recipe, although it was made from another `data`.
    assert runner().planner.summary().need("sft").folder == step.finished.folder


def test_other_demonstrations_rerun_sft(runner: MakeRunner, stages: FakeStages) -> None:
    assert rerun(runner, stages, demonstrations="others")[:2] == ["data", "sft"]
    assert "input data changed" not in plans(runner().planner)["rank"].reason


def test_files_that_nobody_reads_rerun_nothing(runner: MakeRunner, stages: FakeStages) -> None:
    assert rerun(runner, stages, dropped="x", duplicates="y") == ["data"]


def test_another_evaluation_of_the_reward_model_does_not_rerun_ppo(runner: MakeRunner, stages: FakeStages) -> None:
    def reward(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        (out_dir / "reward.json").write_text("the model")
        (out_dir / "eval_rankings.json").write_text(inputs["data"].fingerprint)
        return {}

    stages.does["reward"] = reward
    assert rerun(runner, stages, eval_rankings="others") == ["data", "reward"]


def test_the_plan_names_an_input_whose_files_changed(runner: MakeRunner, stages: FakeStages) -> None:
    stages.does["data"] = tables()
    runner().run()
    stages.does["data"] = tables(rankings="others")
    runner(fresh=["data"]).run("data")
    assert plans(runner().planner)["rank"].reason == "input data changed"


@pytest.mark.parametrize(
    "read", [lambda data: data.file("rankings.jsonl"), lambda data: data.has("rankings.jsonl")]
)
def test_a_stage_cannot_read_a_file_that_it_has_not_declared(
    runner: MakeRunner, stages: FakeStages, read: Callable[[Artifact], Any]
) -> None:
    def ppo(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        assert list(inputs["data"].jsonl("prompts.jsonl")) == [1]
        read(inputs["data"])
        return {}

    stages.does |= {"data": tables(prompts="1"), "ppo": ppo}
    with pytest.raises(AssertionError, match=r"reads rankings\.jsonl of its input data"):
        runner().run()


def test_what_a_stage_only_checks_may_be_read_and_is_not_in_its_key(runner: MakeRunner, stages: FakeStages) -> None:
    def sft(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        assert inputs["data"].file("rankings.jsonl").exists()
        (out_dir / "adapter").write_text("x")
        return {}

    stages.does["sft"] = sft
    assert "sft" not in rerun(runner, stages, rankings="others")


def test_runs_of_versions_without_declared_files_stay_up_to_date(
    runner: MakeRunner, stages: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.does["data"] = tables()
    with monkeypatch.context() as patch:
        for name, spec in registry.STAGES.items():
            patch.setitem(registry.STAGES, name, dataclasses.replace(spec, reads={}, checks={}))
        runner().run()
    for file in Path("runs").rglob(manifest.FILE):  # as they were written then
        record = json.loads(file.read_text())
        assert all(entry.pop("read") is None for entry in record["inputs"].values())
        file.write_text(json.dumps(record))
    assert {step.action for step in plans(runner().planner).values()} == {"skip"}
    assert set(runner().planner.summary().stages) == {*SHARED, "export"}


def test_another_recipe_uses_a_finished_run_with_the_same_key(runner: MakeRunner, stages: FakeStages) -> None:
    stages.does["data"] = tables()
    runner().run()
    stages.calls.clear()
    other = runner("name=other ppo.kl.target=8", display=(display := Lines()))
    planned = plans(other.planner)
    assert [name for name, step in planned.items() if step.action == "reuse"] == SHARED[:6]
    folder = runner().planner.summary().need("sft").folder
    assert planned["sft"].reason == f"the same as {folder}"
    assert planned["ppo"].reason == "no earlier result; the run of small differs: ppo.kl.target 6.0 -> 8.0"
    two = plans(runner("name=third ppo.kl.target=8 ppo.batch_size=64").planner)["ppo"]
    assert two.reason == "no earlier result"  # more than one value differs
    assert not other.planner.summary().stages  # until it runs, the other recipe has nothing
    other.run()
    assert stages.calls == ["ppo", "eval", "export"]
    assert f"sft: the same as {folder}, which is used" in " ".join(display.text.split())
    finished = other.planner.summary().stages
    assert {name: run.manifest.recipe for name, run in finished.items()} == {
        **dict.fromkeys(SHARED[:6], "small"),
        **dict.fromkeys(["ppo", "eval", "export"], "other"),
    }
    assert {step.action for step in plans(other.planner).values()} == {"skip"}
    # Either recipe's runs can be removed.
    remove(runner().planner, leftovers(runner().planner, everything=True), lambda line: None)
    assert not folder.exists()
    for run in finished.values():
        manifest.verify(run.folder, run.manifest, "", contents=True)
    assert {step.action for step in plans(runner("name=other ppo.kl.target=8").planner).values()} == {"skip"}


def test_a_recipe_name_alone_changes_only_the_export(runner: MakeRunner, stages: FakeStages) -> None:
    runner().run()
    stages.calls.clear()
    runner("name=other").run()
    assert stages.calls == ["export"]


def test_peoples_rankings_belong_to_one_recipe(runner: MakeRunner, stages: FakeStages) -> None:
    sets = "rank.source=app rank.app.annotators=[ann,bob]"
    runner(sets).run()
    stages.calls.clear()
    runner(f"name=other {sets}").run("rank")
    assert stages.calls == ["rank"]


def test_a_forced_or_incomplete_run_is_not_used(runner: MakeRunner, stages: FakeStages) -> None:
    runner(force=True).run("base")
    runner().run("data")
    folder = runner().planner.summary().need("data").folder
    (folder / "out/given.json").unlink()
    planned = plans(runner("name=other").planner)
    assert (planned["base"].action, planned["data"].action) == ("run", "run")


def test_changed_bytes_of_another_recipes_run_are_refused(runner: MakeRunner, stages: FakeStages) -> None:
    runner().run("base")
    file = runner().planner.summary().need("base").folder / "out/given.json"
    content = file.read_text()
    file.write_text(content.replace("1", "2"))
    with pytest.raises(StageError, match=r"the contents of given\.json .* have changed") as error:
        runner("name=other").run("base")
    assert "tutelage run base --fresh" in error.value.hint
    assert not list(Path("runs/other/base").glob(f"*/{manifest.FILE}"))
    runner("name=other", fresh=["base"]).run("base")
    assert stages.calls == ["base", "base"]


def test_a_run_is_copied_where_there_are_no_hard_links(runner: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    runner().run("base")
    monkeypatch.setattr("os.link", refuse)
    runner("name=other").run("base")
    [folder] = Path("runs/other/base").iterdir()
    record = manifest.read(folder)
    assert record is not None
    manifest.verify(folder, record, "", contents=True)


def test_an_input_that_is_gone_is_found_by_the_files_that_were_read(runner: MakeRunner, stages: FakeStages) -> None:
    rerun(runner, stages, dropped="x")
    reward = runner().planner.summary().need("reward")
    first = reward.manifest.inputs["data"].key[:12]
    data = Path("runs/small/data") / first
    assert input_of(reward.folder, reward.manifest, "data") == (data, manifest.read(data))
    copied = Path("runs/elsewhere/data") / first
    shutil.copytree(data, copied)
    shutil.rmtree(data)
    found = input_of(reward.folder, reward.manifest, "data")
    assert found is not None
    reads = registry.STAGES["reward"].reads_of("data")
    assert InputRecord.of(found[1], reads).same(reward.manifest.inputs["data"])
    shutil.rmtree("runs/elsewhere")
    for file in Path("runs/small/data").glob("*/out/prompts.jsonl"):
        shutil.rmtree(file.parents[1])
    assert input_of(reward.folder, reward.manifest, "data") is None
    assert input_of(reward.folder, reward.manifest, "ppo") is None
