"""Judges that give every answer a merit of its own. None of them may be what PPO optimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from data.schema import Message, prompt_key
from data.venues.slots import SlotErrors, SlotLexicon, parse_mr
from pipeline.config.evaluate import EvalConfig
from pipeline.engine.rounds import newest
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.eval.answers import Answers
from stages.eval.wins import Array
from stages.models.text import Codec
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.classifier import (
    ResponseScorer,
    load_classifier,
    model_scorer,
    response_scorer,
    text_scorer,
)
from stages.scoring.reward_model import SPEC, RewardEnsemble, load_reward


class Judge(Protocol):
    """Attributes:
    name: as the report calls it.
    unit: of a merit; the higher the better.
    """

    name: str
    unit: str

    def merits(self, prompts: Sequence[EncodedPrompt], answers: Answers) -> Array:
        """(P, S), one an answer."""


class Rubric:
    """The task's own judge of facts. An answer's merit is the number of its faults, negative."""

    unit = "faults an answer"

    def __init__(self, lexicon: str) -> None:
        self.name, self._lexicon = lexicon, SlotLexicon.load(lexicon)
        self._known: dict[tuple[str, str], SlotErrors] = {}

    def check(self, prompt: Sequence[Message], text: str) -> SlotErrors:
        key = (prompt_key(prompt), text)
        if key not in self._known:
            self._known[key] = self._lexicon.check(parse_mr(prompt[-1]["content"]), text)
        return self._known[key]

    def checks(self, prompts: Sequence[EncodedPrompt], answers: Answers) -> list[list[SlotErrors]]:
        return [
            [self.check(prompt.messages, text) for text in texts]
            for prompt, texts in zip(prompts, answers.texts, strict=True)
        ]

    def merits(self, prompts: Sequence[EncodedPrompt], answers: Answers) -> Array:
        return np.array([[-float(faults(c)) for c in row] for row in self.checks(prompts, answers)])


def faults(check: SlotErrors) -> int:
    """Fact errors and repetitions."""
    return check.errors + len(check.repeated)


class RewardModel:
    """A reward model; as a judge, one that PPO did not use."""

    unit = "score"

    def __init__(self, name: str, scorer: ResponseScorer) -> None:
        self.name, self._scorer = name, scorer

    def merits(self, prompts: Sequence[EncodedPrompt], answers: Answers) -> Array:
        return answers.score(self._scorer, prompts)


def scoring_judges(config: EvalConfig, inputs: Mapping[str, Artifact], codec: Codec, device: str) -> list[Judge]:
    """Those that the recipe asks for; the first is what the frontier and the extremes go by."""
    found: list[Judge] = [] if config.judge == "none" else [Rubric(config.judge)]
    if config.reward_model is not None:
        name = "held-out ensemble member" if config.reward_model == "ensemble" else "held-out reward model"
        found.append(RewardModel(name, _held_out(config.reward_model, inputs, codec, device)))
    return found


def _held_out(model: str, inputs: Mapping[str, Artifact], codec: Codec, device: str) -> ResponseScorer:
    base, ppo = inputs["base"], newest(inputs, "ppo")
    if model == "ensemble":
        ensemble = load_reward(newest(inputs, "reward"), base, device)
        held_out = ppo.metrics["held_out_members"]
        return model_scorer(RewardEnsemble(ensemble.bank, ensemble.roles[-held_out:]), codec, device)
    folder = Path(model)
    if not (folder / SPEC).exists():
        return text_scorer(load_classifier(folder, device), codec)
    artifact = Artifact("reward", folder, "")
    trained = newest(inputs, "reward").file(SPEC)
    if trained.read_bytes() == (folder / SPEC).read_bytes():
        raise StageError(
            "the judge is the very reward model that PPO was trained with",
            where=str(folder),
            hint="point eval.reward_model at another one, trained on other rankings or with another seed",
        )
    return response_scorer(artifact, base, codec, device)


def proxy_scorer(inputs: Mapping[str, Artifact], codec: Codec, device: str) -> ResponseScorer:
    """The (newest) `reward` stage's model, less the members that PPO left alone: what PPO optimised, to be read
    beside the judges."""
    reward, base = newest(inputs, "reward"), inputs["base"]
    held_out = newest(inputs, "ppo").metrics.get("held_out_members", 0)
    if not held_out:
        return response_scorer(reward, base, codec, device)
    ensemble = load_reward(reward, base, device)
    return model_scorer(RewardEnsemble(ensemble.bank, ensemble.roles[:-held_out]), codec, device)
