"""Loads what scores responses, from the recipe's reward and the artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from pipeline.config.ppo import AggregateConfig
from pipeline.config.term_rules import TERMS
from pipeline.engine.rounds import newest
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.criteria import of_criterion
from stages.models.bank import Bank
from stages.models.text import Codec
from stages.ppo.rewards import RewardSignal
from stages.ppo.terms import TermSignal
from stages.scoring import reward_model
from stages.scoring.load import Source, as_artifact, load_scorer, optimised_members, token_artifact
from stages.scoring.scorer import BATCH
from stages.scoring.terms import Loading
from stages.scoring.terms import paths as term_paths


class Rewarded(Protocol):
    """The values of `ppo` that name what scores."""

    @property
    def reward(self) -> AggregateConfig: ...

    @property
    def reward_model(self) -> str | None: ...

    @property
    def reward_model_revision(self) -> str | None: ...


def reward_artifacts(config: Rewarded, inputs: Mapping[str, Artifact], *, trained: bool = False) -> list[Artifact]:
    """The reward artifacts that score responses: the run's reward model or, with several criteria, those of the
    terms; or `ppo.reward_model`. None when that names a sequence classifier, or when no term is the run's reward
    model.

    Args:
        trained: only those that PPO is trained on.

    Raises `StageError` when one was trained on another base.
    """
    if config.reward.terms is not None:
        own = [term for term in config.reward.terms if term.run_model and (term.trained or not trained)]
        named = dict.fromkeys(term.criterion for term in own)
        sources = [of_criterion(newest(inputs, "reward"), name, f"{TERMS}.criterion") for name in named]
    elif config.reward_model is None:
        sources = [newest(inputs, "reward")]
    else:
        artifact = as_artifact(config.reward_model)
        sources = [] if artifact is None else [artifact]
    for artifact in sources:
        if token_artifact(artifact):
            reward_model.check_base(artifact, inputs["base"])
    return sources


def reward_signal(
    config: Rewarded,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    device: str,
    *,
    bank: Bank | None = None,
    batch_size: int = BATCH,
    say: Callable[[str], None] = lambda text: None,
    folder: Path = Path(),
) -> RewardSignal | TermSignal:
    """The reward model or the terms, loaded and checked.

    Args:
        bank: as in `load_scorer`.
        batch_size: responses scored at once, fewer once memory has run out.
        say: called with a message when a batch does not fit into memory.
        folder: the recipe's, for the replies of language models that score.

    Raises `StageError` when the reward model belongs to another base, is damaged or does not reproduce its
    fingerprints, and when the scores of a single model are to be combined.
    """
    if config.reward.terms is not None:
        loading = Loading(
            inputs=inputs,
            codec=codec,
            device=device,
            replies=folder,
            held_out=config.reward.held_out,
            bank=bank,
            batch_size=batch_size,
            say=say,
        )
        return _terms(config, loading)
    artifacts = reward_artifacts(config, inputs)
    source: Source = artifacts[0] if artifacts else str(config.reward_model)
    scorer = load_scorer(
        source,
        inputs,
        codec,
        device,
        batch_size=batch_size,
        members=optimised_members(config.reward.held_out),
        bank=bank,
        revision=config.reward_model_revision,
        say=say,
    )
    scorer.check(row["prompt"] for row in inputs["data"].jsonl("prompts.jsonl"))
    _check_aggregate(config, scorer.size)
    return RewardSignal(scorer, config.reward)


def _terms(config: Rewarded, loading: Loading) -> TermSignal:
    terms = config.reward.terms or []
    scorers = [loading.scorer(term, path) for term, path in zip(terms, term_paths(terms), strict=True)]
    for scorer in scorers:
        scorer.check(row["prompt"] for row in loading.inputs["data"].jsonl("prompts.jsonl"))
    _check_aggregate(config, max(scorer.size for scorer in scorers))
    return TermSignal(scorers, config.reward)


def _check_aggregate(config: Rewarded, members: int) -> None:
    if config.reward.aggregate != "mean" and members == 1:
        raise StageError(
            f"ppo.reward.aggregate is {config.reward.aggregate}, but the reward model has one member",
            where=str(config.reward_model or "reward"),
            hint="set ppo.reward.aggregate: mean, or train an ensemble (reward.ensemble)",
        )
