"""Scorers give a number to each response to a prompt; higher is better.

Every model that scores is used through `Scorer`: PPO's reward, the proxy and the judges of `eval`, the measurements
of `export`, the choice of prompts in `collect`. `stages.scoring.load.load_scorer` makes one from an artifact, a
folder, a Hub id or a function. Shapes: N responses, M members of an ensemble.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from data.schema import Message
from pipeline.errors import StageError
from stages.models.microbatch import MicroBatch
from stages.models.text import Codec
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.classifier import TextClassifier
from stages.scoring.reward_model import RewardEnsemble, ScoringModule, score_rows
from stages.scoring.text_encoder import TextEncoder

BATCH = 256
"""Rows scored at once, unless the caller says otherwise."""

Exchange = tuple[Sequence[Message], str]
"""A conversation that ends with the user's turn, and a response to it."""

TextFunction = Callable[[Sequence[Sequence[Message]], Sequence[str]], Sequence[float]]
"""`function(conversations, responses)` -> one number per response."""


def _ignore(_: object) -> None:
    pass


class Scorer(ABC):
    """Gives scores to responses.

    Attributes:
        name: for people: in reports, progress and errors.
        size: M, the number of members; 1 for a single model.
        optional: whether a response may have no score, which is NaN.
        on_batch: called with the number of responses of each batch that is scored.
    """

    name: str
    size: int = 1
    optional: bool = False
    on_batch: Callable[[int], None] = staticmethod(_ignore)

    @abstractmethod
    def members(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        """Each member's scores (M, N), float32, on the CPU. Raises `StageError` when one is not finite, except for
        the NaN of an `optional` scorer.

        Args:
            responses: one per prompt, as sampled: ids of the policy's tokenizer, the stop token included.
        """

    def __call__(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        """The mean over members (N,); 0 where there is no score."""
        scores = self.members(prompts, responses).mean(0)
        return scores.nan_to_num(nan=0.0) if self.optional else scores

    def scoring(self) -> contextlib.AbstractContextManager[None]:
        """What must be held while several batches are scored: processes have unequal numbers of them, and a sharded
        role must not be gathered per batch. `members` holds it too; nesting is allowed."""
        return contextlib.nullcontext()

    def check(self, conversations: Iterable[Sequence[Message]]) -> None:  # noqa: B027 (optional)
        """Raises `templates.Refused` for a conversation that the scorer cannot read, so that it is named before
        anything is sampled. A scorer that reads the policy's ids reads them all."""


class TokenScorer(Scorer):
    """A reward model on the policy's tokenizer. Ids go in as sampled, except that the stop token is always the one
    that ended the completions of the rankings.

    Args:
        batch_size: rows scored at once, fewer once memory has run out.
        say: called with a message when the batch is halved.
        on_batch: see `Scorer`.
    """

    def __init__(
        self,
        model: RewardEnsemble | ScoringModule,
        codec: Codec,
        device: str | torch.device,
        *,
        batch_size: int = BATCH,
        name: str = "reward model",
        say: Callable[[str], None] = _ignore,
        on_batch: Callable[[int], None] = _ignore,
    ) -> None:
        self.model, self.codec, self.device, self.name = model, codec, device, name
        self.size = len(model.roles) if isinstance(model, RewardEnsemble) else 1
        self._batch, self.on_batch = MicroBatch(batch_size, "scoring", say), on_batch

    def members(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        rows = [p.ids + self.codec.ended_as_trained(r) for p, r in zip(prompts, responses, strict=True)]
        with self.scoring():
            return score_rows(
                self.model.members, rows, self._batch, self.device, on_batch=self.on_batch, where=self.name
            )

    def scoring(self) -> contextlib.AbstractContextManager[None]:
        return self.model.whole() if isinstance(self.model, RewardEnsemble) else contextlib.nullcontext()


class TextScorer(Scorer):
    """A sequence classifier with a tokenizer of its own, which reads the prompt's messages and the response as
    text. Arguments as of `TokenScorer`.

    Attributes:
        shortened: how many texts have lost their beginning so far.
    """

    def __init__(
        self,
        classifier: TextClassifier,
        codec: Codec,
        *,
        batch_size: int = BATCH,
        name: str = "reward model",
        say: Callable[[str], None] = _ignore,
        on_batch: Callable[[int], None] = _ignore,
    ) -> None:
        self.classifier, self.codec, self.name = classifier, codec, name
        self.encoder = TextEncoder(classifier, codec)
        self._say, self._reported, self.shortened = say, False, 0
        self._batch, self.on_batch = MicroBatch(batch_size, "scoring", say), on_batch

    def members(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        return self.of_texts(
            [
                (prompt.messages, self.codec.decode(response))
                for prompt, response in zip(prompts, responses, strict=True)
            ]
        )

    def of_texts(self, texts: Sequence[Exchange]) -> Tensor:
        """As `members`, of responses given as text."""
        classifier, longest = self.classifier, self.classifier.longest
        rows = [self.encoder.row(messages, text) for messages, text in texts]
        too_long = {place: len(row) for place, row in enumerate(rows) if len(row) > longest}
        for place in too_long:
            rows[place] = self.encoder.row(*texts[place], longest)
        self.shortened += len(too_long)
        if too_long and not self._reported:
            self._reported = True
            self._say(
                f"{self.name}: {len(too_long):,} of {len(rows):,} texts lose their beginning: longer than the "
                f"{longest:,} tokens that it reads (the longest has {max(too_long.values()):,}). Lower "
                "max_prompt_length or response_length."
            )
        return score_rows(
            classifier.members,
            rows,
            self._batch,
            classifier.model.device,
            on_batch=self.on_batch,
            where=classifier.where,
        )

    def check(self, conversations: Iterable[Sequence[Message]]) -> None:
        for messages in conversations:
            self.encoder.check(messages)


class FunctionScorer(Scorer):
    """Any Python function of texts, such as a rule or a call to a service.

    Args:
        function: called once per batch of prompts with their conversations and the decoded responses.
    """

    def __init__(self, function: TextFunction, codec: Codec, name: str | None = None) -> None:
        self.function, self.codec = function, codec
        self.name = name or str(getattr(function, "__name__", "function"))

    def members(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        texts = [self.codec.decode(response) for response in responses]
        values: Any = self.function([prompt.messages for prompt in prompts], texts)
        scores = torch.as_tensor(values, dtype=torch.float32, device="cpu")
        if scores.shape != (len(texts),):
            raise StageError(
                f"the function returned scores of shape {tuple(scores.shape)} for {len(texts)} responses",
                where=self.name,
                hint="return one number per response",
            )
        if broken := int((~scores.isfinite()).sum()):
            raise StageError(
                f"the function gave {broken} of {len(texts)} responses a score that is NaN or infinite",
                where=self.name,
                hint="return finite numbers",
            )
        self.on_batch(len(texts))
        return scores[None]
