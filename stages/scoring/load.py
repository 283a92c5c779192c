"""The one way from an artifact, a folder, a Hub id or a function to a `Scorer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.engine.rounds import newest
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages import criteria
from stages.models.bank import Bank
from stages.models.text import Codec
from stages.scoring import reward_model
from stages.scoring.classifier import is_classifier, load_classifier, load_reward_classifier
from stages.scoring.reward_model import RewardEnsemble
from stages.scoring.scorer import BATCH, FunctionScorer, Scorer, TextFunction, TextScorer, TokenScorer

Source = Artifact | str | Path | TextFunction
"""A reward artifact; the folder of one, or of any sequence classifier with one label; the Hub id of such a
classifier; or a function."""

EVERY = slice(None)


def optimised_members(held_out: int) -> slice:
    """The members of an ensemble that PPO optimises, when the last `held_out` are kept from it."""
    return slice(-held_out if held_out else None)


def held_out_members(held_out: int) -> slice:
    """The others."""
    return slice(-held_out, None)


def optimised(inputs: Mapping[str, Artifact]) -> tuple[Artifact | str, str | None]:
    """The reward model that the newest `ppo` stage optimised, where its reward has no terms: the newest `reward`
    stage's or, with its commit, that of `ppo.reward_model`. (With several criteria, the reward has terms.)"""
    ppo = newest(inputs, "ppo").metrics
    model: str | None = ppo.get("reward_model")
    return model or newest(inputs, "reward"), ppo.get("reward_model_revision")


def load_scorer(
    source: Source,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    device: str,
    *,
    batch_size: int = BATCH,
    members: slice = EVERY,
    bank: Bank | None = None,
    where: str = "ppo.reward_model",
    revision: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> Scorer:
    """A scorer, its model frozen, loaded and checked.

    Args:
        inputs: `base` is needed by a reward model on the policy's tokenizer.
        batch_size: rows scored at once, fewer once memory has run out.
        members: which of an ensemble's members score.
        bank: holds the reward model already, if it has roles of these names; otherwise the reward model is loaded
            on a bank of its own.
        where: the recipe's key that names the source, for errors.
        revision: the commit of a Hub id.
        say: called with a message when the batch is halved.
        on_batch: called with the number of rows of each batch.

    Raises `StageError` when the reward model was trained on another base, is damaged, has weights that are not
    finite or does not reproduce its fingerprints; when all members are held out; and when a classifier does not
    have exactly one label.
    """
    if callable(source):
        return FunctionScorer(source, codec)
    artifact = as_artifact(source)
    if artifact is None or is_classifier(artifact):
        classifier = (
            load_classifier(str(source), device, where, revision)
            if artifact is None
            else load_reward_classifier(artifact, device, where)
        )
        return TextScorer(classifier, codec, batch_size=batch_size, say=say, on_batch=on_batch)
    model = _on_bank(artifact, inputs["base"], bank, device)
    roles = model.roles[members]
    if not roles:
        raise StageError(
            f"the reward model has {len(model.roles)} members, and all of them are held out",
            where=str(artifact.path),
            hint="lower ppo.reward.held_out, or train a larger ensemble (reward.ensemble)",
        )
    model = RewardEnsemble(model.bank, roles)
    return TokenScorer(model, codec, device, batch_size=batch_size, say=say, on_batch=on_batch)


def as_artifact(source: Artifact | str | Path) -> Artifact | None:
    """The reward artifact that a source is or lies in; None for any other classifier. Raises `StageError` for an
    artifact with several criteria, which is no single reward model."""
    folder = source.path if isinstance(source, Artifact) else Path(source)
    if names := criteria.criteria_of(folder):
        raise StageError(
            "there is a reward model for each criterion",
            where=str(folder),
            hint=f"name the folder of one of them in it: {', '.join(names)}",
        )
    if isinstance(source, Artifact):
        return source
    return Artifact("reward", folder, "") if (folder / reward_model.SPEC).exists() else None


def token_artifact(source: Artifact | str | Path) -> Artifact | None:
    """The reward artifact of a model on the policy's tokenizer; None for classifiers."""
    artifact = as_artifact(source)
    return None if artifact is None or is_classifier(artifact) else artifact


def _on_bank(artifact: Artifact, base: Artifact, bank: Bank | None, device: str) -> RewardEnsemble:
    roles = reward_model.roles(artifact)
    if bank is None or not set(roles) <= set(bank.roles):
        return reward_model.load_reward(artifact, base, device)
    reward_model.check_base(artifact, base)
    model = RewardEnsemble(bank, roles)
    reward_model.verify(artifact, model, device)
    return model
