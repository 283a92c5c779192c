"""Bytes of the models that score in PPO besides the run's own reward model."""

from __future__ import annotations

from pathlib import Path

from pipeline import hub_models
from pipeline.config.fit import REWARD_ARTIFACT
from pipeline.config.recipe import Recipe
from pipeline.config.term_rules import terms_of
from pipeline.memory.components import PlannedModel

WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
"""Names of files of weights, the preferred kind first."""


def scorer_bytes(recipe: Recipe, model: PlannedModel) -> float:
    """The weights of `ppo.reward_model` and of the terms' models. Classifiers are held as their files are. A reward
    model that is an adapter gets a copy of the backbone. 0 for a model whose files are not on this machine.

    Args:
        model: as PPO trains it.
    """
    named = {"ppo.reward_model": recipe.ppo.reward_model}
    named |= {f"{path}.model": term.model for path, term in terms_of(recipe).items() if not term.run_model}
    total = 0.0
    for _, _, folder in hub_models.folders(recipe, named):
        files = _files(folder)
        if (folder / REWARD_ARTIFACT).exists() and (folder / "adapter").is_dir():
            total += model.weights
        total += sum(file.stat().st_size for file in files)
    return total


def _files(folder: Path) -> list[Path]:
    return next((files for pattern in WEIGHTS if (files := sorted(folder.rglob(pattern)))), [])
