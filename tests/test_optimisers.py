"""benchmarks/optimisers.py: recipe values of each method, the budgets, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optimisers
import pytest
from optimisers import METHODS, TASKS, compare, nearest_kl, scaled

from pipeline.config.load import load_recipe
from stages.eval.best_of_n import kl_bound

QUICKSTART = TASKS["quickstart"]


def row(kl: float = 2.0, seconds: float = 60.0, **values: Any) -> dict[str, Any]:
    return {
        "values": "", "judge": "venues", "eval_prompts": 12, "errors": [0.1, 0.08, 0.12], "wins": [0.7, 0.6, 0.8],
        "kl": kl, "kl_interval": [kl, kl], "score": 1.0, "length": 20.0, "seconds": seconds, "prompts": 100,
        "samples": 1000, "peak": {"ppo": 10**9},
    } | values  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_the_values_of_every_method_are_a_valid_recipe(name: str, task: str) -> None:
    recipe = load_recipe(TASKS[task].recipe, ["seed=1"]).recipe
    for values in METHODS[name].variants(TASKS[task], recipe):
        changed = load_recipe(TASKS[task].recipe, ["seed=1", values]).recipe
        assert (changed.base, changed.sft, changed.reward) == (recipe.base, recipe.sft, recipe.reward)
        assert changed.ppo.kl.goal == TASKS[task].kl
        assert changed.ppo.kl.kind == ("adaptive" if name == "grpo" else "solved")
        assert (changed.raft is not None and changed.raft.enabled) == (name == "raft")
        assert (changed.dpo is not None and changed.dpo.enabled) == (name == "dpo")
        assert changed.ppo.method.label == {"rloo": "RLOO", "grpo": "GRPO", "reinforce++": "REINFORCE"}.get(
            name, "PPO"
        )
    bounds = [abs(kl_bound(n) - TASKS[task].kl) for n in (TASKS[task].n - 1, TASKS[task].n, TASKS[task].n + 1)]
    assert min(bounds) == bounds[1]


def test_a_budget_of_minutes_scales_what_a_method_trains_on() -> None:
    recipe = load_recipe(
        "quickstart", ["dpo.enabled=true raft.enabled=true raft.trainer.num_train_epochs=2"]
    ).recipe
    assert scaled("ppo", recipe, 0.5) == "ppo.total_episodes=7680"
    assert scaled("ppo", recipe, 0.0001) == "ppo.total_episodes=128"
    assert scaled("dpo", recipe, 3.0) == "dpo.trainer.num_train_epochs=3.000"
    assert scaled("raft", recipe, 0.25, 1000) == "raft.num_prompts=250"
    assert scaled("raft", recipe, 1.5, 1000) == "raft.trainer.num_train_epochs=3.000"


def test_the_variant_nearest_in_kl_is_reported_whatever_the_judge_says() -> None:
    far, near = row(9.0, wins=[0.9, 0.8, 1.0]), row(2.4)
    assert nearest_kl([far, near], 2.0) is near


def test_minutes_are_those_of_ppo_at_equal_kl() -> None:
    asked: list[tuple[str, float, int]] = []

    def run(task: Any, method: Any, sets: Any, values: str, runs: Path, scale: float, prompts: int) -> Any:
        asked.append((values, scale, prompts))
        return row()

    key = {"task": "quickstart", "budget": "minutes", "method": "rloo", "seed": 2}
    first = {"task": "quickstart", "budget": "kl", "seed": 2}
    rows = [
        first | row(method="ppo", seconds=300.0),
        first | row(method="rloo", seconds=200.0, values="a=b"),
        first | row(method="rloo", seconds=1.0) | {"seed": 1},
    ]
    assert compare(rows, key, QUICKSTART, METHODS["rloo"], [], Path(), run) == key | row()
    assert asked == [("a=b", 1.5, 100)]
    assert compare(rows, key | {"method": "sft"}, QUICKSTART, METHODS["sft"], [], Path(), run) is None
    with pytest.raises(LookupError, match="run both first"):
        compare(rows[1:], key, QUICKSTART, METHODS["rloo"], [], Path(), run)


def test_results_that_are_there_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = []

    def once(rows: Any, key: dict[str, Any], *_: Any) -> dict[str, Any]:
        measured.append(tuple(key.values()))
        return key | row(1.0 + key["seed"])

    monkeypatch.setattr(optimisers, "compare", once)
    out = tmp_path / "rows.jsonl"
    arguments = ["--tasks", "quickstart", "--budgets", "kl", "--methods", "ppo", "--out", str(out)]
    optimisers.main([*arguments, "--seeds", "1"])
    optimisers.main([*arguments, "--seeds", "2"])
    assert measured == [("quickstart", "kl", "ppo", 0), ("quickstart", "kl", "ppo", 1)]
    assert [json.loads(line)["seed"] for line in out.read_text().splitlines()] == [0, 1]
    printed = capsys.readouterr().out.splitlines()
    line = [line for line in printed if line.startswith("ppo ")][-3]
    assert line.split() == [
        "ppo", "2", "0.100", "+-0.000", "0.700", "+-0.000", "1.500", "+-6.355", "1.0", "1000", "1.00",
    ]  # fmt: skip
    assert printed[-2] == "ppo          seed 1: errors 0.100 (0.080 to 0.120), wins 0.700 (0.600 to 0.800), KL 2.00"
