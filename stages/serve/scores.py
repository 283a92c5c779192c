"""`/v1/score`, `/classify` and `/pooling`: the reward model, in vLLM's request and response shapes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from data.schema import Message
from data.tables.messages import with_system
from pipeline.errors import DataError
from stages.models.microbatch import MicroBatch
from stages.models.templates import Refused
from stages.ppo.rewards import aggregate
from stages.score.model import RewardScorer
from stages.scoring.reward_model import score_rows
from stages.scoring.scorer import TextScorer, TokenScorer
from stages.serve.engine import Engine
from stages.serve.errors import ApiError, invalid, unknown_model
from stages.serve.models import REWARD, Served
from stages.serve.protocol import PoolingRequest, ScoreRequest, conversation, parsed, refusing
from stages.serve.shapes import new_id, usage

PART = 16
"""Texts scored at once. Rows that are being decoded continue between parts."""
MAX_TEXTS = 2048


class Scores:
    """The handlers. Arguments as of `Completions`."""

    def __init__(self, served: Served, engine: Engine) -> None:
        self.served, self.engine = served, engine

    async def score(self, request: Request) -> Response:
        """Scores of answers (`text_2`) to prompts (`text_1`): one prompt for all answers, or one each."""
        asked = parsed(await request.body(), ScoreRequest)
        self._scorer(asked.model)
        prompts, answers = ([text] if isinstance(text, str) else text for text in (asked.text_1, asked.text_2))
        if len(prompts) == 1:
            prompts = prompts * len(answers)
        if len(prompts) != len(answers) or not answers:
            raise invalid(
                f"text_1 has {len(prompts)} prompts and text_2 {len(answers)} answers: give one, or one each",
                "text_1",
                "invalid_value",
            )
        rows = [
            self._row([{"role": "user", "content": prompt}], answer, "text_2")
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        scores = await self._scores(rows)
        data = [{"index": i, "object": "score", "score": score} for i, score in enumerate(scores)]
        return self._listed("score", data, rows)

    async def classify(self, request: Request) -> Response:
        rows, scores = await self._pooled(request)
        data = [
            {"index": i, "label": "reward", "probs": [score], "num_classes": 1} for i, score in enumerate(scores)
        ]
        return self._listed("classify", data, rows)

    async def pooling(self, request: Request) -> Response:
        rows, scores = await self._pooled(request)
        data = [{"index": i, "object": "pooling", "data": [score]} for i, score in enumerate(scores)]
        return self._listed("pool", data, rows)

    async def _pooled(self, request: Request) -> tuple[list[list[int]], list[float]]:
        """Scores of a conversation that ends with an answer, or of texts that a chat template has rendered."""
        asked = parsed(await request.body(), PoolingRequest)
        scorer = self._scorer(asked.model)
        if (asked.input is None) == (asked.messages is None):
            raise invalid("give either input or messages", "input", "missing_required_parameter")
        if asked.messages is not None:
            messages = conversation(asked.messages)
            if len(messages) < 2 or messages[-1]["role"] != "assistant":
                raise invalid("messages must hold a prompt and end with the assistant's answer", "messages")
            rows = [self._row(messages[:-1], messages[-1]["content"], "messages")]
        else:
            given: Any = asked.input
            texts = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
            tokenizer = _tokenizer(scorer)
            rows = [
                refusing(lambda text=text: tokenizer(text)["input_ids"], "input") if isinstance(text, str) else text  # type: ignore[misc]
                for text in texts
            ]
            if not rows or not all(rows) or not all(0 <= i < len(tokenizer) for row in rows for i in row):
                raise invalid("input needs texts, or tokens of the vocabulary", "input", "invalid_value")
        return rows, await self._scores(rows)

    # --- Scoring

    def _scorer(self, name: str | None) -> RewardScorer:
        scorer = self.served.reward
        if scorer is None:
            raise ApiError(
                404,
                "there is no reward model here: its stage is not finished",
                param="model",
                code="model_not_found",
            )
        if name in self.served.models:
            raise invalid(f"{name} is a language model; the reward model is {REWARD}", "model")
        if name not in (None, REWARD):
            raise unknown_model(name, [REWARD])
        return scorer

    def _row(self, prompt: Sequence[Message], answer: str, param: str) -> list[int]:
        """The tokens of a prompt and its answer, as the reward model read them in training."""
        scorer = self.served.reward
        assert scorer is not None
        messages = with_system(list(prompt), scorer.system)
        inner = scorer.scorer
        try:
            if isinstance(inner, TextScorer):
                return refusing(lambda: inner.encoder.row(messages, answer, inner.classifier.longest), param)
            codec = inner.codec
            return refusing(lambda: codec.prompt(messages) + codec.completion(answer), param)
        except Refused as refused:
            raise invalid(f"the chat template refuses this conversation: {refused.words}", param) from None

    async def _scores(self, rows: Sequence[list[int]]) -> list[float]:
        scorer = self.served.reward
        assert scorer is not None
        if len(rows) > MAX_TEXTS:
            raise invalid(f"{len(rows):,} texts at once; at most {MAX_TEXTS:,}", code="invalid_value")
        longest = max(map(len, rows))
        if scorer.longest is not None and longest > scorer.longest:
            raise invalid(
                f"a text has {longest:,} tokens, and the reward model reads at most {scorer.longest:,}",
                code="context_length_exceeded",
            )
        scores: list[float] = []
        for start in range(0, len(rows), PART):
            part = rows[start : start + PART]
            try:
                scores += await asyncio.wrap_future(self.engine.run(lambda part=part: _score(scorer, part)))  # type: ignore[misc]
            except DataError as error:
                raise invalid(error.what) from None
        return scores

    def _listed(self, kind: str, data: list[dict[str, Any]], rows: Sequence[list[int]]) -> Response:
        used = usage(sum(map(len, rows)))
        common = {"id": new_id(kind), "object": "list", "created": int(time.time()), "model": REWARD}
        return JSONResponse({**common, "data": data, "usage": used})


def _tokenizer(scorer: RewardScorer) -> Any:
    inner = scorer.scorer
    return inner.classifier.tokenizer if isinstance(inner, TextScorer) else inner.codec.tokenizer


def _score(scorer: RewardScorer, rows: Sequence[list[int]]) -> list[float]:
    """Scores of rows of tokens, an ensemble's combined as in PPO. On the engine's thread."""
    inner = scorer.scorer
    if isinstance(inner, TokenScorer):
        members, device = inner.model.members, inner.device
    else:
        members, device = inner.classifier.members, inner.classifier.model.device
    scores_MN = score_rows(members, rows, MicroBatch(PART, "scoring"), device, where=scorer.name)
    combined: list[float] = aggregate(scores_MN, scorer.aggregation).tolist()
    return combined
