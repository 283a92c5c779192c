"""More rounds than one: which steps there are, what each gets, and what a finished run keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pipeline_fakes import FakeStages, write_rankings
from pyarrow import parquet

from pipeline.config.load import LoadedRecipe
from pipeline.engine import clean, registry
from pipeline.engine.processes import Processes
from pipeline.engine.rounds import by_round, newest, parse, step_name
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Silent
from pipeline.errors import RecipeError, StageError
from stages.publish import uploads

MakeRunner = Callable[..., Runner]
ONE = ["base", "data", "sft", "collect", "rank", "reward", "ppo", "eval", "export"]
THREE = [
    *ONE[:7],
    *("collect-2", "rank-2", "reward-2", "ppo-2"),
    *("collect-3", "rank-3", "reward-3", "ppo-3"),
    *ONE[7:],
]  # fmt: skip


def actions(runner: Runner, until: str | None = None) -> dict[str, str]:
    return {step.spec.name: step.action for step in runner.planner.plan(until)}


def given(runner: Runner, step: str) -> dict[str, Any]:
    [file] = (runner.planner.folder / step).glob("*/out/given.json")
    return dict(json.loads(file.read_text()))


def test_steps_are_named_by_stage_and_round() -> None:
    assert [step_name("ppo", number) for number in (1, 2, 12)] == ["ppo", "ppo-2", "ppo-12"]
    assert [parse(name) for name in ("ppo", "ppo-2", "ppo-12")] == [("ppo", 1), ("ppo", 2), ("ppo", 12)]
    assert parse("eval") == ("eval", 1)
    assert registry.is_step("ppo-2")
    assert not registry.is_step("eval-2"), "eval runs once"
    assert parse("ppo-0") == ("ppo-0", 1)


def test_values_of_rounds_come_in_order() -> None:
    found = {"ppo-10": "j", "sft": "s", "ppo": "a", "ppo-2": "b", "reward-3": "r"}
    assert list(by_round(found, "ppo").items()) == [(1, "a"), (2, "b"), (10, "j")]
    assert newest(found, "ppo", "sft") == "j"
    assert newest({"sft": "s"}, "ppo", "sft") == "s"
    with pytest.raises(KeyError):
        newest(found, "rank")


def test_rounds_repeat_four_stages_and_each_comes_after_its_needs(load: Callable[..., LoadedRecipe]) -> None:
    planned = registry.planned(load("rounds=3").recipe)
    assert [spec.name for spec, _ in planned] == THREE
    seen: set[str] = set()
    for spec, needs in planned:
        assert set(needs) <= seen
        seen.add(spec.name)
    needs = {spec.name: set(needs) for spec, needs in planned}
    assert needs["collect-3"] == {"base", "data", "ppo-2", "rank", "rank-2"}
    assert needs["rank-3"] == {"data", "collect-3"}
    assert needs["reward-3"] == {"base", "data", "sft", "rank", "rank-2", "rank-3"}
    assert needs["ppo-3"] == {"base", "data", "sft", "reward-3", "ppo-2"}
    assert needs["eval"] == {"base", "data", "sft", "reward-3", "ppo", "ppo-2", "ppo-3"}
    assert needs["export"] == {"base", "data", "reward-3", "ppo-3", "eval"}


def test_until_a_later_round_plans_what_leads_to_it(load: Callable[..., LoadedRecipe]) -> None:
    planned = [spec.name for spec, _ in registry.planned(load("rounds=3").recipe, "reward-2")]
    assert planned == THREE[: THREE.index("reward-2") + 1]


def test_a_finished_run_continues_when_rounds_is_raised(runner: MakeRunner, stages: FakeStages) -> None:
    runner().run()
    more = runner("rounds=3")
    expected = dict.fromkeys(ONE[:7], "skip") | {"collect-2": "run"}
    assert actions(more) == expected | dict.fromkeys([name for name in THREE if name not in expected], "wait")
    stages.calls.clear()
    more.run()
    assert stages.calls == ["collect", "rank", "reward", "ppo"] * 2 + ["eval", "export"]
    assert set(actions(runner("rounds=3")).values()) == {"skip"}
    assert set(actions(runner()).values()) == {"skip"}, "the run of one round is still there"
    stages.calls.clear()
    runner("rounds=2").run()
    assert stages.calls == ["eval", "export"], "three rounds begin with two"


def test_each_round_draws_other_numbers_and_the_rest_keeps_the_seed(runner: MakeRunner) -> None:
    made = runner("rounds=2 seed=5")
    made.run()
    seeds = {step: given(made, step)["seed"] for step in actions(made)}
    assert {seeds[step] for step in ONE} == {5}
    assert {seeds[f"{stage}-2"] for stage in ("collect", "rank", "reward", "ppo")} == {1_000_008}


def test_what_only_later_rounds_read_leaves_the_first_alone(runner: MakeRunner) -> None:
    runner("rounds=2").run()
    changed = runner("rounds=2 collect.pool=6")
    assert [name for name, action in actions(changed).items() if action == "run"] == ["collect-2"]
    [reason] = [step.reason for step in changed.planner.plan() if step.spec.name == "collect-2"]
    assert reason == "changed: collect.pool 4 -> 6"


@pytest.mark.parametrize("stage", ["ppo-3", "eval-2", "ppo-02"])
def test_an_unknown_step_is_refused_with_those_there_are(runner: MakeRunner, stage: str) -> None:
    with pytest.raises(RecipeError, match=rf"no stage called {stage}[^$]*ppo-2, eval, export"):
        runner("rounds=2").planner.plan(stage)


def test_a_step_of_a_later_round_can_be_rerun_alone(runner: MakeRunner, stages: FakeStages) -> None:
    runner("rounds=2").run()
    stages.calls.clear()
    runner("rounds=2", fresh=["reward-2"]).run()
    assert stages.calls == ["reward"]


def test_clean_removes_the_rounds_that_the_recipe_no_longer_has(runner: MakeRunner) -> None:
    made = runner("rounds=2")
    made.run()
    fewer = runner().planner
    gone = {leftover.path.parent.name for leftover in clean.leftovers(fewer)}
    assert gone >= {"collect-2", "rank-2", "reward-2", "ppo-2"}
    assert not gone & {"base", "collect", "ppo"}
    clean.remove(fewer, clean.leftovers(fewer), lambda line: None)
    assert not (made.planner.folder / "ppo-2").exists()
    assert (made.planner.folder / "ppo").exists()


def test_a_bare_name_means_the_last_round(runner: MakeRunner) -> None:
    made = runner("rounds=3")
    made.run("reward-2")
    summary = made.planner.summary()
    with pytest.raises(StageError, match="ppo-3 is not finished"):
        summary.need("ppo")
    assert summary.need("ppo-1").manifest.stage == "ppo"
    newest_policy, newest_reward = summary.newest("ppo"), summary.newest("reward")
    assert newest_policy
    assert newest_policy.manifest.stage == "ppo"
    assert newest_reward
    assert newest_reward.manifest.stage == "reward-2"
    made.run()
    summary = made.planner.summary()
    assert list(summary.stages) == THREE
    assert summary.need("ppo").manifest.stage == "ppo-3"


def test_rankings_of_all_rounds_are_published(runner: MakeRunner, stages: FakeStages) -> None:
    stages.does["rank"] = write_rankings
    made = runner("rounds=2 publish.rankings=me/rankings")
    made.run()
    [rankings] = uploads.uploads(made.planner.summary(), Silent.progress)
    [file] = rankings.files.values()
    asked = [row["prompt"][0]["content"] for row in parquet.read_table(file).to_pylist()]
    assert asked == ["p0", "p1000003"], "a round each"


def test_a_token_in_an_earlier_rounds_rankings_stays_here(runner: MakeRunner, stages: FakeStages) -> None:
    def leak(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        made = write_rankings(config, inputs, out_dir, ctx)
        if ctx.seed == 0:
            text = (out_dir / "rankings.jsonl").read_text().replace('"x"', f'"hf_{"a" * 30}"')
            (out_dir / "rankings.jsonl").write_text(text)
        return made

    stages.does["rank"] = leak
    made = runner("rounds=2 publish.rankings=me/rankings")
    made.run()
    with pytest.raises(StageError, match="a Hugging Face token"):
        uploads.uploads(made.planner.summary(), Silent.progress)


def test_another_process_takes_part_in_a_later_round_with_its_seed(runner: MakeRunner, stages: FakeStages) -> None:
    class Two(Processes):
        size = 2
        said: ClassVar[list[Mapping[str, Any]]] = []

        def announce(self, task: Mapping[str, Any]) -> None:
            self.said.append(json.loads(json.dumps(task)))

        def tasks(self) -> Iterator[Any]:
            yield from self.said

    runner("rounds=2", processes=Two()).run()
    assert [task["stage"] for task in Two.said] == ["sft", "reward", "ppo", "reward-2", "ppo-2"]
    seeds: list[int] = []
    given: list[set[str]] = []

    def note(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        seeds.append(ctx.seed)
        given.append(set(inputs))
        return {}

    stages.does |= dict.fromkeys(("sft", "reward", "ppo"), note)
    runner("rounds=2", processes=Two()).follow()
    assert seeds == [0, 0, 0, 1_000_003, 1_000_003]
    assert given[-1] == {"base", "data", "sft", "reward-2", "ppo"}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            "rounds=2 rank.source=data data.rankings={path: r.csv, format: pairs}",
            "rounds: 2 rounds need annotators",
        ),
        (
            "rounds=2 ppo.reward_model=./models/rm",
            "ppo.reward_model: would replace the reward models",
        ),
        (
            "collect.select=disagreement collect.num_prompts=8",
            r"collect.select: .*set reward.ensemble to 2",
        ),
        ("collect.select=disagreement", r"collect.num_prompts .*: is required"),
        ("rounds=0", "rounds: "),
    ],
)
def test_what_does_not_fit_rounds_is_refused(load: Callable[..., LoadedRecipe], sets: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(sets)


def test_a_run_without_rounds_folder_has_nothing_to_clean(runner: MakeRunner) -> None:
    assert clean.leftovers(runner().planner, everything=True) == []
    assert not Path("runs/small").exists()
