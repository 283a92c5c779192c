"""Builds the judge of PPO's evaluation steps, which scores responses independently of the reward."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.config.ppo import PPOConfig
from pipeline.engine.rounds import newest
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models.bank import Bank
from stages.models.text import Codec
from stages.ppo.signal import reward_artifacts
from stages.scoring import reward_model
from stages.scoring.judge import ScoringJudge
from stages.scoring.load import Source, held_out_members, load_scorer, token_artifact
from stages.scoring.slots import SlotErrorJudge, SlotScorer

BATCH = 64
WHERE = "ppo.monitor.judge"


def build(
    config: PPOConfig, inputs: Mapping[str, Artifact], codec: Codec, bank: Bank, device: str
) -> ScoringJudge | None:
    """The judge that `config.monitor.judge` names; None for `none`, and for an unresolved `eval`.

    Raises `DataError` for an unknown lexicon.
    """
    name = config.monitor.judge
    if name in ("none", "eval"):
        return None
    if name == "member":
        return _member(config, inputs, codec, bank, device)
    if name == "reward":
        return _model("the run’s own reward model", newest(inputs, "reward"), inputs, codec, device)
    if Path(name).is_dir():
        return _model(f"reward model {name}", name, inputs, codec, device)
    return SlotErrorJudge(SlotScorer(name, codec))


def _member(
    config: PPOConfig, inputs: Mapping[str, Artifact], codec: Codec, bank: Bank, device: str
) -> ScoringJudge:
    rewards = reward_artifacts(config, inputs)
    artifact = token_artifact(rewards[0]) if rewards else None
    if artifact is None or len(reward_model.roles(artifact)) < 2:
        raise StageError(
            f"{WHERE} is member, but the reward model has one member",
            where=str(config.reward_model or "reward"),
            hint="train an ensemble (reward.ensemble), or name another judge",
        )
    scorer = load_scorer(
        artifact, inputs, codec, device, batch_size=BATCH, members=held_out_members(1), bank=bank, where=WHERE
    )
    return ScoringJudge("a member of the reward ensemble, kept out of the reward", "score", scorer)


def _model(name: str, source: Source, inputs: Mapping[str, Artifact], codec: Codec, device: str) -> ScoringJudge:
    scorer = load_scorer(source, inputs, codec, device, batch_size=BATCH, where=WHERE)
    scorer.check(row["prompt"] for row in inputs["data"].jsonl("prompts.jsonl"))
    return ScoringJudge(name, "score", scorer)
