"""A quickstart recipe on a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repository import ROOT
from rich.console import Console

from pipeline.config.load import load_recipe
from pipeline.engine.progress import Display
from pipeline.engine.runner import Runner

SMALL = (
    "base.pretrain.corpus.size=200 base.pretrain.hidden_size=32 base.pretrain.intermediate_size=64 "
    "base.pretrain.trainer.num_train_epochs=1 base.check_tokens=4 data.demonstrations.size=200 "
    "collect.num_prompts=12 collect.eval_prompts=6 collect.response_length=24 reward.trainer.num_train_epochs=1 "
    "reward.gate=null ppo.total_episodes=32 ppo.batch_size=16 "
    "ppo.kl.num_prompts=4 ppo.kl.num_generations=8 ppo.kl.target=0.5 "
    "ppo.response_length=24 ppo.eval_updates=1 ppo.eval_prompts=4 eval.num_prompts=12 eval.response_length=24 "
    "eval.bootstrap=50 eval.best_of_n=4 dpo.enabled=true dpo.trainer.max_steps=2 dpo.trainer.learning_rate=1e-3 "
    "raft.enabled=true raft.best_of_n=2 raft.num_prompts=12 raft.response_length=24 raft.trainer.max_steps=2"
)


def runner(runs: Path, *sets: str, recipe: str = "quickstart", **options: Any) -> Runner:
    loaded = load_recipe(ROOT / f"recipes/{recipe}.yaml", [SMALL, "device=cpu", *sets])
    return Runner(loaded, runs, display=Display(Console(quiet=True)), **options)
