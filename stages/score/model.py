"""A loaded reward model that scores texts as PPO scores sampled responses.

Shapes: N texts, M members of an ensemble, K completions of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from data.schema import Message, ranks_from_scores
from data.tables.messages import with_system
from pipeline.config.ppo import AggregateConfig
from pipeline.errors import DataError
from stages.models.templates import named
from stages.ppo.rewards import aggregate
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.scorer import Exchange, TextScorer, TokenScorer


@dataclass(frozen=True)
class Answers:
    """A prompt with completions, the messages as the table has them.

    Attributes:
        where: file and row, for messages.
    """

    prompt: Sequence[Message]
    completions: Sequence[str]
    where: str = ""


@dataclass(frozen=True)
class Scores:
    """Scores of a row's completions (K).

    Attributes:
        ranks: 1 is the best; equal scores have equal ranks.
        stds: standard deviations over the members of an ensemble; None for a single model.
    """

    scores: list[float]
    ranks: list[int]
    stds: list[float] | None


@dataclass(frozen=True)
class RewardScorer:
    """A reward model, loaded and verified.

    Attributes:
        scorer: gives the members' scores.
        name: for people.
        identity: tells this model from others, as JSON values; equal ones give equal scores.
        aggregation: how an ensemble's scores become one (`ppo.reward`).
        system: a system message put before prompts without one (`data.system`).
        longest: the most tokens of a conversation and completion; None if that is not known. A model with a
            tokenizer of its own reads the last ones of longer texts, as in PPO. A model on the policy's tokenizer
            refuses longer texts.
        notes: what the user should know about the model, such as a failed gate.
    """

    scorer: TokenScorer | TextScorer
    name: str
    identity: dict[str, object]
    aggregation: AggregateConfig = field(default_factory=AggregateConfig)
    system: str | None = None
    longest: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """M."""
        return self.scorer.size

    @property
    def shortened(self) -> int:
        """How many texts have lost their beginning so far."""
        return self.scorer.shortened if isinstance(self.scorer, TextScorer) else 0

    def score(self, rows: Sequence[Answers], on_batch: Callable[[int], None] = lambda count: None) -> list[Scores]:
        """Scores rows, all their completions in common batches.

        Args:
            on_batch: called with the number of completions of each batch.

        Raises:
            templates.Refused: the chat template rejects a conversation.
            DataError: a text is longer than the model can read.
            StageError: a score is not finite.
        """
        if not rows:
            return []
        self.scorer.on_batch = on_batch
        conversations = [with_system(list(row.prompt), self.system) for row in rows]
        of_tokens = isinstance(self.scorer, TokenScorer)
        scores_MN = (self._of_tokens if of_tokens else self._of_texts)(rows, conversations)
        return self._by_row(rows, scores_MN)

    def _of_texts(self, rows: Sequence[Answers], conversations: Sequence[list[Message]]) -> Tensor:
        assert isinstance(self.scorer, TextScorer)
        texts: list[Exchange] = []
        for row, conversation in zip(rows, conversations, strict=True):
            with named(row.where):
                self.scorer.encoder.check(conversation)
            texts += [(conversation, completion) for completion in row.completions]
        return self.scorer.of_texts(texts)

    def _of_tokens(self, rows: Sequence[Answers], conversations: Sequence[list[Message]]) -> Tensor:
        assert isinstance(self.scorer, TokenScorer)
        codec = self.scorer.codec
        prompts: list[EncodedPrompt] = []
        responses: list[list[int]] = []
        for row, conversation in zip(rows, conversations, strict=True):
            with named(row.where):
                prompt = EncodedPrompt(conversation, codec.prompt(conversation), "eval")
            for completion in row.completions:
                response = codec.completion(completion)
                self._check_length(len(prompt.ids), len(response), row.where)
                prompts.append(prompt)
                responses.append(response)
        return self.scorer.members(prompts, responses)

    def _check_length(self, prompt: int, completion: int, where: str) -> None:
        if self.longest is not None and prompt + completion > self.longest:
            raise DataError(
                f"prompt and completion have {prompt + completion:,} tokens ({prompt:,} of them the prompt's), and "
                f"the reward model reads at most {self.longest:,}",
                where=where,
                hint="shorten the prompt or the completion, or leave the row out",
            )

    def _by_row(self, rows: Sequence[Answers], scores_MN: Tensor) -> list[Scores]:
        combined = aggregate(scores_MN, self.aggregation).tolist()
        stds = scores_MN.std(0, unbiased=False).tolist() if len(scores_MN) > 1 else None
        ends = [0]
        for row in rows:
            ends.append(ends[-1] + len(row.completions))
        return [
            Scores(
                combined[start:end],
                ranks_from_scores(combined[start:end]),
                None if stds is None else stds[start:end],
            )
            for start, end in pairwise(ends)
        ]
