"""Judges of the looks: who, besides the reward that PPO optimises, says how good the answers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.schema import Message
from data.venues.slots import SlotLexicon, parse_mr
from pipeline.config.ppo import PPOConfig
from pipeline.engine.rounds import newest
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models.bank import Bank
from stages.models.text import Codec
from stages.ppo.roles import reward_artifact
from stages.sampling.episodes import Episodes
from stages.sampling.prompts import conversations
from stages.scoring import reward_model
from stages.scoring.classifier import is_classifier, load_classifier, load_reward_classifier
from stages.scoring.scorer import Scorer, TextScorer, token_scorer

BATCH = 64

Prompts = Sequence[list[Message]]


@dataclass(frozen=True)
class Judge:
    """`score(prompts, responses, episodes)` gives a number a prompt, higher is better; `name` is for people."""

    name: str
    score: Callable[[Prompts, Sequence[str], Episodes], list[float]]


def build(config: PPOConfig, inputs: Mapping[str, Artifact], codec: Codec, bank: Bank, device: str) -> Judge | None:
    """The judge that `config.guards.judge` names; None for `none`, or for an `eval` that no recipe resolved.

    Raises `DataError` for an unknown lexicon.
    """
    name = config.guards.judge
    if name in ("none", "eval"):
        return None
    if name == "member":
        return _member(config, inputs, codec, bank, device)
    if name == "reward":
        return _model("the run’s own reward model", newest(inputs, "reward"), inputs, codec, device)
    if Path(name).is_dir():
        return _model(f"reward model {name}", Artifact("reward", Path(name), ""), inputs, codec, device)
    return _lexicon(name)


def _lexicon(name: str) -> Judge:
    """Fact errors of an answer over the facts that a prompt gives on average, negated: the mean over prompts is the
    negative slot error rate of `eval`."""
    lexicon = SlotLexicon.load(name)

    def score(prompts: Prompts, responses: Sequence[str], episodes: Episodes) -> list[float]:
        checks = [
            lexicon.check(parse_mr(prompt[-1]["content"]), text)
            for prompt, text in zip(prompts, responses, strict=True)
        ]
        given = max(1, sum(check.given for check in checks)) / len(checks)
        return [-check.errors / given for check in checks]

    return Judge(name, score)


def _member(config: PPOConfig, inputs: Mapping[str, Artifact], codec: Codec, bank: Bank, device: str) -> Judge:
    artifact = reward_artifact(config, inputs)
    members = [] if artifact is None or is_classifier(artifact) else reward_model.roles(artifact)
    if artifact is None or len(members) < 2:
        raise StageError(
            "ppo.guards.judge is member, and the reward model has one member",
            where=str(config.reward_model or "reward"),
            hint="train an ensemble (reward.ensemble), or name another judge",
        )
    if members[-1] not in bank.roles:  # a LoRA ensemble beside a policy without LoRA
        alone = reward_model.load_reward(artifact, inputs["base"], device)
        bank = alone.bank
    scorer = token_scorer(reward_model.RewardEnsemble(bank, members[-1:]), BATCH, device, codec)
    return Judge("a member of the reward ensemble, kept out of the reward", lambda p, r, e: scorer(e).tolist())


def _model(name: str, artifact: Artifact, inputs: Mapping[str, Artifact], codec: Codec, device: str) -> Judge:
    scorer: Scorer
    if not (artifact.path / reward_model.SPEC).exists():
        prompts = conversations(inputs["data"], codec)
        scorer = TextScorer(load_classifier(artifact.path, device), codec, BATCH, prompts)
    elif is_classifier(artifact):
        prompts = conversations(inputs["data"], codec)
        scorer = TextScorer(load_reward_classifier(artifact, device), codec, BATCH, prompts)
    else:
        model = reward_model.load_reward(artifact, inputs["base"], device)
        scorer = token_scorer(model, BATCH, device, codec)
    return Judge(name, lambda prompts, responses, episodes: scorer(episodes).tolist())
