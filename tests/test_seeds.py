"""benchmarks/seeds.py: which runs it needs, and its table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import seeds

from pipeline.config.load import LoadedRecipe
from stages.eval.artifact import Contest, Evaluation, ModelResult
from stages.intervals import Interval


def evaluation(errors: float, wins: float) -> Evaluation:
    return Evaluation(
        judge="venues",
        prompts=12,
        models={
            "sft": ModelResult(slot_error_rate=0.2, slot_error_low=0.15, slot_error_high=0.25, score=1.0),
            "ppo": ModelResult(
                slot_error_rate=errors, slot_error_low=0.05, slot_error_high=0.15, kl=1.5, score=2.0
            ),
        },
        wins=[
            Contest(judge=judge, ours="ppo", theirs="sft", value=wins, low=0.6, high=0.8, ties=0.1, prompts=12)
            for judge in ("venues", "reward_model")
        ],
        reduction=Interval(value=errors / 0.2 - 1, low=-0.7, high=-0.3),
    )


def test_only_other_seeds_than_the_recipes_need_runs_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int | None] = []
    manifest = SimpleNamespace(seconds=90.0, peak_memory=2 * 10**9)
    summary = SimpleNamespace(
        stages={"ppo": SimpleNamespace(manifest=manifest)}, need=lambda stage: SimpleNamespace(artifact=stage)
    )

    def runner(loaded: LoadedRecipe, runs: Path) -> Any:
        asked.append(loaded.recipe.ppo.seed)
        return SimpleNamespace(run=lambda until: None, planner=SimpleNamespace(summary=lambda: summary))

    monkeypatch.setattr(seeds, "Runner", runner)
    monkeypatch.setattr(Evaluation, "read", lambda artifact: evaluation(0.1, 0.7))
    found = [seeds.run("quickstart", ["seed=1"], seed, tmp_path) for seed in (0, 1)]
    assert asked == [0, None]
    assert found[0].peak == {"ppo": 2 * 10**9}


def test_the_table_has_means_over_seeds_and_each_seed_over_prompts() -> None:
    found = [
        seeds.Run(seed, evaluation(errors, wins), {"ppo": 90.0}, {"ppo": 2e9})
        for seed, errors, wins in ((0, 0.09, 0.72), (1, 0.11, 0.68))
    ]
    text = seeds.table(found)
    assert "ppo: fact errors 0.100 +-" in text
    assert "  seed 1: 0.110 (0.050 to 0.150), KL -, score 2.000" in text
    assert "PPO against the reference: -0.500 +-" in text
    assert "PPO wins against sft: 0.700 +-" in text
    assert text.count("0.720 (0.600 to 0.800)") == 1, "by the rubric alone"
    assert "ppo: 1 min 30 s, 1 min 30 s; at most 2" in text
