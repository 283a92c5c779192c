"""OpenAI's response shapes, made from what rows deliver."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from stages.serve.rows import Piece, Token
from stages.serve.text import REPLACEMENT


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def usage(prompt: int, completion: int = 0) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


@dataclass
class Answer:
    """A choice as far as it has come."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt: list[Token] = field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.prompt += piece.prompt
        self.finish = piece.finish or self.finish


class Shape(Protocol):
    """A kind of completion: whole, and as a stream of chunks."""

    def whole(self, answers: Sequence[Answer], used: dict[str, int]) -> dict[str, Any]: ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """What is sent before the first chunk of a choice."""

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]: ...

    def closing(self, used: dict[str, int]) -> dict[str, Any]:
        """The chunk with the usage."""


class _Shape:
    kind = chunk_kind = ""

    def __init__(self, model: str, tokenizer: Any, *, logprobs: bool, usage_in_chunks: bool) -> None:
        self._tokenizer, self._logprobs, self._usage = tokenizer, logprobs, usage_in_chunks
        self._common = {"id": new_id(self.prefix), "created": int(time.time()), "model": model}

    prefix = ""

    def _whole(self, choices: list[dict[str, Any]], used: dict[str, int]) -> dict[str, Any]:
        return {**self._common, "object": self.kind, "choices": choices, "usage": used}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._common, "object": self.chunk_kind, "choices": choices}
        return {**chunk, "usage": None} if self._usage else chunk

    def closing(self, used: dict[str, int]) -> dict[str, Any]:
        return {**self._chunk([]), "usage": used}

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


class ChatShape(_Shape):
    """Chat completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def whole(self, answers: Sequence[Answer], used: dict[str, int]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self._logs(answer.tokens),
                "finish_reason": answer.finish,
            }
            for index, answer in enumerate(answers)
        ]
        return self._whole(choices, used)

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._delta(index, {"role": "assistant", "content": ""}, Piece())

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        return self._delta(index, {"content": piece.text} if piece.text else {}, piece)

    def _delta(self, index: int, delta: dict[str, Any], piece: Piece) -> dict[str, Any]:
        logs = self._logs(piece.tokens) if piece.tokens else None
        return self._chunk([{"index": index, "delta": delta, "logprobs": logs, "finish_reason": piece.finish}])

    def _logs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = [
            {
                **self._entry(token.id, token.logprob),
                "top_logprobs": [self._entry(i, logprob) for i, logprob in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(token)
        return {
            "token": text,
            "logprob": logprob,
            "bytes": None if REPLACEMENT in text else list(text.encode()),  # a part of a character
        }


class TextShape(_Shape):
    """Completions of a text.

    Args:
        echoes: by choice, the prompt's text where it is part of the answer, else an empty text.
    """

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(
        self, model: str, tokenizer: Any, *, logprobs: bool, usage_in_chunks: bool, echoes: Sequence[str]
    ) -> None:
        super().__init__(model, tokenizer, logprobs=logprobs, usage_in_chunks=usage_in_chunks)
        self._echoes = echoes

    def whole(self, answers: Sequence[Answer], used: dict[str, int]) -> dict[str, Any]:
        choices = [
            self._choice(index, self._echoes[index] + answer.text, answer.prompt, answer.tokens, answer.finish)
            for index, answer in enumerate(answers)
        ]
        return self._whole(choices, used)

    def opening(self, index: int) -> dict[str, Any] | None:
        echo = self._echoes[index]
        return self._chunk([self._choice(index, echo, (), (), None)]) if echo else None

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        return self._chunk([self._choice(index, piece.text, piece.prompt, piece.tokens, piece.finish)])

    def _choice(
        self, index: int, text: str, prompt: Sequence[Token], tokens: Sequence[Token], finish: str | None
    ) -> dict[str, Any]:
        logs = self._logs(index, prompt, tokens) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": logs, "finish_reason": finish}

    def _logs(self, index: int, prompt: Sequence[Token], tokens: Sequence[Token]) -> dict[str, Any]:
        offsets: list[int] = []
        end = 0
        for token in prompt:
            offsets.append(end)
            end = min(end + len(self._text(token.id)), len(self._echoes[index]))
        offsets += [len(self._echoes[index]) + token.offset for token in tokens]
        every = [*prompt, *tokens]
        return {
            "tokens": [self._text(token.id) for token in every],
            "token_logprobs": [token.logprob for token in every],
            "top_logprobs": [self._top(token) for token in every],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """The most likely tokens by text, and the token itself. Of tokens with equal texts, the most likely."""
        if token.logprob is None:
            return None
        top: dict[str, float] = {}
        for i, logprob in (*token.top, (token.id, token.logprob)):
            top.setdefault(self._text(i), logprob)
        return top
