"""The built-in task's scorer: how many facts does a response get wrong? (data/venues/slots.py)"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from data.schema import Message, prompt_key
from data.venues.slots import SlotErrors, SlotLexicon, parse_mr
from stages.models.text import Codec
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.judge import ScoringJudge
from stages.scoring.scorer import Scorer


class SlotScorer(Scorer):
    """A response's score is the number of its faults, negative.

    Args:
        lexicon: a lexicon shipped in data/venues/lexicons, by name, or another one's path.

    Raises `DataError` for an unknown lexicon, and when a prompt that is scored is not a meaning representation.
    """

    def __init__(self, lexicon: str, codec: Codec) -> None:
        self.name, self.codec, self._lexicon = lexicon, codec, SlotLexicon.load(lexicon)
        self._cache: dict[tuple[str, str], SlotErrors] = {}

    def check_text(self, messages: Sequence[Message], text: str) -> SlotErrors:
        """The errors of one response."""
        key = (prompt_key(messages), text)
        if key not in self._cache:
            self._cache[key] = self._lexicon.check(parse_mr(messages[-1]["content"]), text)
        return self._cache[key]

    def errors(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> list[SlotErrors]:
        """The errors of each response (N)."""
        errors = []
        for prompt, response in zip(prompts, responses, strict=True):
            errors.append(self.check_text(prompt.messages, self.codec.decode(response)))
            self.on_batch(1)
        return errors

    def check(self, conversations: Iterable[Sequence[Message]]) -> None:
        for messages in conversations:
            parse_mr(messages[-1]["content"])

    def members(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        return -torch.tensor([[float(faults(errors)) for errors in self.errors(prompts, responses)]])


class SlotErrorJudge(ScoringJudge):
    """Scores whose mean is the negative slot error rate of `eval`: the fact errors of a response over the facts
    that a prompt gives on average."""

    scorer: SlotScorer

    def __init__(self, scorer: SlotScorer) -> None:
        super().__init__(scorer.name, "errors per fact", scorer)

    def scores(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> list[float]:
        errors = self.scorer.errors(prompts, responses)
        facts = max(1, sum(of_text.given for of_text in errors)) / len(errors)
        return [-of_text.errors / facts for of_text in errors]


def faults(errors: SlotErrors) -> int:
    """Fact errors and repetitions."""
    return errors.errors + len(errors.repeated)
