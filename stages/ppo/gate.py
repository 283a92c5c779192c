"""Refuses to optimise a reward model that failed its stage's gate."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline import invocation
from pipeline.engine.stage import Artifact, RunContext
from pipeline.errors import StageError
from stages.ppo.signal import Rewarded, reward_artifacts
from stages.reward.artifact import read_unfit
from stages.scoring.load import as_artifact
from stages.scoring.reward_model import criterion_of


def check(config: Rewarded, inputs: Mapping[str, Artifact], ctx: RunContext) -> list[str]:
    """Returns why the reward model failed its stage's gate, or nothing.

    Raises `StageError` when it failed and the run is without --force.
    """
    reasons: list[str] = []
    for artifact in _trained_on(config, inputs):
        unfit = read_unfit(artifact)
        criterion = criterion_of(artifact)
        if criterion is not None:
            unfit = [f"{criterion}: {reason}" for reason in unfit]
        if unfit and not ctx.force:
            raise StageError(
                "the reward model is unfit for PPO: " + "; ".join(unfit),
                where=str(artifact.path),
                hint=(
                    "train it on more or better rankings, or override this, which is recorded: "
                    f"`{invocation.again('--force')}`"
                ),
            )
        reasons += unfit
    return reasons


def _trained_on(config: Rewarded, inputs: Mapping[str, Artifact]) -> list[Artifact]:
    """The reward artifacts that are optimised."""
    models = [
        term.model for term in config.reward.terms or () if term.trained and term.model and not term.run_model
    ]
    others = [artifact for artifact in map(as_artifact, models) if artifact is not None]
    return [*reward_artifacts(config, inputs, trained=True), *others]
