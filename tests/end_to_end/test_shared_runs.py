"""Tables of rankings alone; other rankings after SFT; recipes that share a base and an SFT run."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pipeline_fakes import Lines
from rich.console import Console

from pipeline.cli.tables import plan_table
from pipeline.config.load import load_recipe
from pipeline.engine import manifest, registry
from pipeline.engine.plan import StageRun
from pipeline.engine.runner import Runner
from pipeline.engine.stage import matches
from pipeline.errors import RecipeError, StageError
from stages.report.build import build_report
from stages.report.findings import collect
from stages.report.overlaps import transfer

FIRST = """\
name: first
device: cpu
base:
  pretrain:
    corpus: {task: venues, size: 40}
    held_out: 0.4
    vocab_size: 300
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 1
    num_attention_heads: 2
    trainer: {max_steps: 1}
  check_tokens: 2
data:
  demonstrations: {path: demonstrations.jsonl}
  rankings: {path: rankings.jsonl, format: pairs}
  eval_fraction: 0.4
sft: {lora: {r: 2}, max_length: 200, trainer: {max_steps: 1}}
rank: {source: data}
reward: {gate: null, lora: {r: 2}, max_length: 200, ensemble: 2, trainer: {max_steps: 1}}
ppo:
  total_episodes: 4
  batch_size: 4
  num_mini_batches: 1
  response_length: 4
  eval_updates: 1
  eval_prompts: 2
  max_prompt_length: 120
  kl: {kind: fixed, init: 0.1}
eval: {num_prompts: 3, response_length: 4, max_prompt_length: 120, bootstrap: 10, best_of_n: 2, judge: none}
"""
PROMPT = "Describe the {} item on the shelf in a few plain words, please"


def write(name: str, rows: list[dict[str, str]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(first: int, last: int, good: str = "It is red and quite small.") -> list[dict[str, str]]:
    rng = random.Random(first)
    rows = []
    for number in range(first, last):
        for who in ("ann", "bob"):
            sides = [good, "no"] if rng.random() < 0.8 else ["no", good]
            rows.append(
                {"prompt": PROMPT.format(number), "chosen": sides[0], "rejected": sides[1], "annotator": who}
            )
    return rows


WATCHED: dict[str, tuple[str, ...] | None] = {}
"""The artifacts that the running stage got, and what of them it may read."""
UNDECLARED: list[str] = []


def watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and WATCHED and isinstance(args[0], str | os.PathLike):
        path = os.path.realpath(os.fspath(args[0]))
        for folder, declared in WATCHED.items():
            if path.startswith(f"{folder}/") and declared is not None:
                name = path.removeprefix(f"{folder}/")
                UNDECLARED.extend([] if matches(name, declared) else [name])


sys.addaudithook(watch)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with tables and the first recipe. Stages may open the files of their inputs that they declare."""
    monkeypatch.chdir(tmp_path)
    write("rankings.jsonl", pairs(0, 30))
    shown = [{"prompt": PROMPT.format(n), "completion": "It is blue."} for n in range(100, 120)]
    write("demonstrations.jsonl", shown)
    Path("first.yaml").write_text(FIRST)
    load = registry.StageSpec.load

    def watched(spec: registry.StageSpec) -> Callable[..., Any]:
        function = load(spec)

        def run(config: Any, inputs: Mapping[str, Any], out_dir: Path, ctx: Any) -> Any:
            WATCHED.update({os.path.realpath(entry.path): entry.declared for entry in inputs.values()})
            try:
                return function(config, inputs, out_dir, ctx)
            finally:
                WATCHED.clear()

        return run

    monkeypatch.setattr(registry.StageSpec, "load", watched)
    UNDECLARED.clear()
    yield tmp_path
    assert not UNDECLARED


def runner(recipe: str, *sets: str) -> Runner:
    return Runner(load_recipe(Path(recipe), sets), Path("runs"), display=Lines())


def run(recipe: str, *sets: str, until: str | None = None) -> dict[str, str]:
    """Runs a recipe. Returns the action of each stage."""
    return {step.spec.name: step.action for step in runner(recipe, *sets).run(until)}


def finished(recipe: str, stage: str, *sets: str) -> StageRun:
    return runner(recipe, *sets).planner.summary().need(stage)


def test_other_rankings_train_the_reward_model_again_and_not_sft(here: Path) -> None:
    assert set(run("first.yaml", until="reward").values()) == {"run"}
    before = finished("first.yaml", "sft").manifest
    write("rankings.jsonl", pairs(0, 34))  # with further prompts
    again = runner("first.yaml")
    assert {step.spec.name: step.action for step in again.planner.plan("sft")} == {
        "base": "skip",
        "data": "run",
        "sft": "wait",
    }
    assert run("first.yaml", until="reward") == {
        "base": "skip",
        "data": "run",
        "sft": "skip",
        "rank": "run",
        "reward": "run",
    }
    assert finished("first.yaml", "sft").manifest == before
    assert finished("first.yaml", "reward").manifest.metrics["prompts"] > 0
    step = next(step for step in again.planner.plan() if step.spec.name == "sft")
    assert step.reason.endswith("data changed, but not the files that sft reads")


def test_a_second_recipe_uses_the_base_and_sft_of_the_first(here: Path) -> None:
    run("first.yaml", until="sft")
    write("others.jsonl", pairs(200, 220, good="Yes."))
    Path("extended.yaml").write_text(
        "extends: first.yaml\nname: extended\ndata: {rankings: {path: others.jsonl}}\n"
    )
    assert run("extended.yaml", until="sft") == {"base": "reuse", "data": "run", "sft": "reuse"}
    assert set(run("extended.yaml", until="reward").values()) == {"skip", "run"}

    second = (
        FIRST.replace("name: first", "name: second")
        .replace(FIRST[FIRST.index("  pretrain:") : FIRST.index("  check_tokens")], "  model: runs/first/base\n")
        .replace("rankings.jsonl", "others.jsonl")
    )
    Path("second.yaml").write_text(second)
    planned = runner("second.yaml").planner.plan("sft")
    assert [step.action for step in planned] == ["run", "reuse", "wait"]  # `data` of the extended recipe
    assert run("second.yaml", until="reward") == {
        "base": "run",
        "data": "reuse",
        "sft": "reuse",
        "rank": "reuse",
        "reward": "reuse",
    }
    first, taken = finished("first.yaml", "base"), finished("second.yaml", "base")
    assert taken.manifest.fingerprint == first.manifest.fingerprint
    assert taken.manifest.key != first.manifest.key
    assert taken.manifest.metrics["parameters"] == first.manifest.metrics["parameters"]
    stages = {stage.name: stage for stage in collect(runner("second.yaml").planner.summary()).stages}
    assert {name: getattr(stages[name], "reused", None) for name in ("base", "data", "sft", "ppo")} == {
        "base": None,
        "data": "extended",
        "sft": "first",
        "ppo": None,
    }
    # Another base has another fingerprint, and SFT is trained again.
    planned = runner("extended.yaml", "base.pretrain.trainer.max_steps=2", "name=third").planner.plan("sft")
    assert [step.action for step in planned] == ["run", "reuse", "wait"]
    stream = StringIO()
    Console(file=stream, width=120).print(plan_table(planned, 120))
    assert "the same as runs/extended/data/" in stream.getvalue()


@pytest.mark.parametrize("model", ["runs/first", "runs/first/base", "{run}", "{run}/out", "{run}/out/model"])
def test_a_base_is_named_by_its_run(here: Path, model: str) -> None:
    run("first.yaml", "base.dtype=float32", "base.chat_template=chatml", until="base")
    folder = finished("first.yaml", "base", "base.dtype=float32", "base.chat_template=chatml").folder
    name = model.format(run=folder)
    recipe = FIRST.replace("name: first", "name: second").replace(
        FIRST[FIRST.index("  pretrain:") : FIRST.index("  check_tokens")], f"  model: {name}\n"
    )
    Path("second.yaml").write_text(recipe)
    loaded = load_recipe(Path("second.yaml"))
    assert loaded.recipe.base.model == f"{folder}/out"
    assert loaded.recipe.base.dtype == "float32"
    assert loaded.describe("base.dtype") == str(folder)
    assert run("second.yaml", until="base") == {"base": "run"}
    made = finished("second.yaml", "base")
    assert made.manifest.fingerprint == manifest.read(folder).fingerprint  # type: ignore[union-attr]
    Path("second.yaml").write_text(recipe.replace("  check_tokens", "  dtype: bfloat16\n  check_tokens"))
    with pytest.raises(RecipeError, match=r'base.dtype: is "float32" in runs/first/base/\w+, whose model') as error:
        load_recipe(Path("second.yaml"))
    assert error.value.where == "second.yaml:5"
    Path("second.yaml").write_text(recipe)
    (folder / "out/base.json").write_text((folder / "out/base.json").read_text().replace("null", "true"))
    with pytest.raises(StageError, match=r"base\.json"):
        run("second.yaml", "seed=1", until="base")


def test_the_base_of_a_run_of_another_stage_or_of_several_runs_is_refused(here: Path) -> None:
    run("first.yaml", until="data")
    data = finished("first.yaml", "data").folder
    recipe = FIRST.replace(FIRST[FIRST.index("  pretrain:") : FIRST.index("  check_tokens")], "  model: {}\n", 1)

    def load(model: Path | str) -> None:
        Path("second.yaml").write_text(recipe.replace("model: {}", f"model: {model}"))
        load_recipe(Path("second.yaml"))

    with pytest.raises(RecipeError, match="is a run of data, which holds no base model"):
        load(data)
    for seed in (0, 1):
        run("first.yaml", f"seed={seed}", until="base")
    Path("runs/first/current.json").unlink()
    with pytest.raises(RecipeError, match=r"holds several finished runs: name one of runs/first/base/\w+, runs"):
        load("runs/first/base")


def test_rankings_alone_run_every_stage_and_are_evaluated_on_another_source(here: Path) -> None:
    write("other.jsonl", [*pairs(25, 40), *pairs(400, 420)])
    Path("exclude.csv").write_text(f'prompt\n"{PROMPT.format(3).upper()}"\n"{PROMPT.format(401)}"\n')
    Path("only.yaml").write_text(
        FIRST.replace("name: first", "name: only")
        .replace("  demonstrations: {path: demonstrations.jsonl}\n", "")
        .replace(FIRST[FIRST.index("sft:") : FIRST.index("rank:")], "sft: null\n")
        .replace(
            "  eval_fraction",
            "  eval_rankings: {path: other.jsonl, format: pairs}\n  exclude: [exclude.csv]\n  eval_fraction",
        )
    )
    assert list(run("only.yaml")) == ["data", "base", "rank", "reward", "ppo", "eval", "export"]
    summary = runner("only.yaml").planner.summary()
    data, reward = (summary.need(name).manifest.metrics for name in ("data", "reward"))
    assert data["dropped_rankings/excluded prompt"] == data["dropped_eval_rankings/excluded prompt"] == 2
    assert (data["rankings_train"] + data["rankings_eval"], data["eval_rankings"]) == (58, 68)
    assert data["eval_rankings_prompts"] == 34
    assert data["excluded_prompts"] == data["excluded_prompts_met"] == 2
    trained = sum(f'"{PROMPT.format(n)}"' in line for n in range(25, 30) for line in split(summary, "train"))
    assert data["eval_rankings_in_rankings/exact"] == trained > 0
    assert transfer(summary) == [f"{trained} of 34 prompts occur in the rankings that were trained on"]
    quality = collect(summary).reward
    assert quality is not None
    assert quality.transfer is not None
    assert quality.transfer.pairs == reward["transfer_pairs"] == 68
    assert quality.transfer.prompts == 34
    assert len(quality.transfer.member_accuracy) == 2
    assert 0 <= quality.transfer.accuracy_low <= quality.transfer.accuracy <= quality.transfer.accuracy_high  # type: ignore[operator]
    assert quality.held_out.pairs < 58
    assert reward["transfer_read_rankings"] == 68
    build_report(summary, here / "report.html")
    text = (here / "report.html").read_text(encoding="utf-8")
    assert "On rankings of another source" in text
    assert transfer(summary)[0] in text
    # Other rankings to evaluate on train the reward model anew, to the same weights: PPO keeps its run.
    write("other.jsonl", pairs(400, 430))
    assert run("only.yaml", until="ppo") == {
        "data": "run",
        "base": "skip",  # it reads the excluded prompts
        "rank": "skip",
        "reward": "run",
        "ppo": "skip",
    }


def split(summary: Any, name: str) -> list[str]:
    """The distinct prompts of the rankings of a split, in quotes."""
    rows = summary.need("data").artifact.jsonl("rankings.jsonl")
    return sorted({json.dumps(row["prompt"][-1]["content"]) for row in rows if row["split"] == name})
