"""A row: one answer that is being generated, from its prompt to its last token.

Rows belong to the engine's thread. What a row produces goes to its request as `Piece`s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from stages.serve.text import Detokenizer, StopStrings

Finish = Literal["stop", "length"]
DRAWN = 64
"""Uniform numbers drawn at once."""


@dataclass(frozen=True)
class Options:
    """How a row is sampled.

    Attributes:
        max_tokens: upper limit on the generated tokens; 0 generates none.
        temperature, top_k, top_p: as in `stages.sampling.sampler.SamplingParams`.
        seed: of the row's random numbers; None draws one.
        stops: strings that end the answer, and are not part of it.
        logprobs: log-probs of the tokens are wanted, and of this many of the most likely tokens at each position;
            None: no log-probs.
        echo: the same for the prompt's tokens.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stops: Sequence[str] = ()
    logprobs: int | None = None
    echo: bool = False

    @property
    def draw(self) -> tuple[float, int, float]:
        """Rows with equal values are sampled together."""
        return self.temperature, self.top_k, self.top_p


@dataclass(frozen=True)
class Token:
    """A token with its log-prob under the model, in nats, before temperature, `top_k` and `top_p`.

    Attributes:
        offset: where its text starts, in characters of the answer.
        logprob: None for the first token of a prompt.
        top: the most likely tokens and their log-probs, best first.
    """

    id: int
    offset: int = 0
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Piece:
    """What is new in a row.

    Attributes:
        text: to append to the answer.
        tokens: the tokens of this and earlier text, if log-probs are wanted.
        prompt: the prompt's tokens, once, if they are wanted.
        finish: why the row ended, in its last piece.
        error: why it failed, in its last piece.
    """

    text: str = ""
    tokens: Sequence[Token] = ()
    prompt: Sequence[Token] = ()
    finish: Finish | None = None
    error: Exception | None = None

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None


@dataclass(eq=False)
class Row:
    """One answer.

    Args:
        model: the name of the model that answers.
        prompt: its tokens.
        stop_ids: tokens that end the answer.
        deliver: called on the engine's thread with each piece.
        context: tokens that the answer's text continues (`Detokenizer`).

    Attributes:
        generated: number of tokens so far.
        cancelled: set by any thread when nobody waits for the answer any more.
    """

    model: str
    prompt: list[int]
    options: Options
    tokenizer: Any
    stop_ids: Collection[int]
    deliver: Callable[[Piece], None]
    context: Sequence[int] = ()
    generated: int = 0
    cancelled: bool = False
    _pending: list[Token] = field(default_factory=list)
    _offset: int = 0
    _passed: int = 0
    _drawn: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._text = Detokenizer(self.tokenizer, self.context)
        self._stops = StopStrings(self.options.stops)
        self._generator = torch.Generator()
        if self.options.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self.options.seed)

    @property
    def left(self) -> int:
        """How many tokens may still be generated."""
        return self.options.max_tokens - self.generated

    def uniform(self) -> float:
        """The row's next random number in [0, 1). They do not depend on the other rows."""
        if not self._drawn:
            self._drawn = torch.rand(DRAWN, generator=self._generator).tolist()[::-1]
        return self._drawn.pop()

    def accept(self, token: int, logprob: float | None = None, top: Sequence[tuple[int, float]] = ()) -> bool:
        """Takes the next token and delivers what it completes. Returns whether the row is finished."""
        self.generated += 1
        if self.options.logprobs is not None:
            self._pending.append(Token(token, self._offset, logprob, top))
        if token in self.stop_ids:
            return self._finish("stop")
        text = self._text.add(token)
        self._offset += len(text)
        passed = self._stops.add(text)
        if self._stops.stopped:
            self._passed += len(passed)
            self._deliver(Piece(passed, self._released(self._passed), finish="stop"))
            return True
        if self.left == 0:
            return self._finish("length", passed)
        self._passed += len(passed)
        tokens = self._released(self._passed if self._stops.holds or not text else self._passed + 1)
        if passed or tokens:
            self._deliver(Piece(passed, tokens))
        return False

    def _finish(self, reason: Finish, passed: str = "") -> bool:
        passed += self._stops.add(self._text.rest())
        if self._stops.stopped:
            reason = "stop"
        passed += self._stops.rest()
        self._passed += len(passed)
        cut = self._passed if self._stops.stopped else self._passed + 1
        self._deliver(Piece(passed, self._released(cut), finish=reason))
        return True

    def _released(self, end: int) -> list[Token]:
        """The pending tokens whose text starts before `end`."""
        released = [token for token in self._pending if token.offset < end]
        self._pending = [token for token in self._pending if token.offset >= end]
        return released

    def begin(self, prompt: Sequence[Token]) -> bool:
        """Delivers the prompt's tokens, if wanted. Returns whether the row is finished, with nothing to
        generate."""
        done = self.options.max_tokens == 0
        if prompt or done:
            self._deliver(Piece(prompt=prompt, finish="length" if done else None))
        return done

    def fail(self, error: Exception) -> None:
        self._deliver(Piece(error=error))

    def _deliver(self, piece: Piece) -> None:
        if not self.cancelled:
            self.deliver(piece)
