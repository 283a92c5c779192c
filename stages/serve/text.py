"""Turns sampled tokens into text piece by piece, and finds stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
"""What a tokenizer decodes bytes to that are not (yet) a character."""


class Detokenizer:
    """The text of tokens that arrive one at a time.

    A token may hold part of a character, and a tokenizer may decode it differently at the start of a text. So the
    last tokens before it are decoded with it each time, and text that ends in the middle of a character is held
    back.

    Args:
        context: tokens in front of the first one, whose text is not returned.
    """

    CONTEXT = 6
    """Tokens of a prompt that are decoded with what follows it."""

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer, self._ids = tokenizer, list(context[-self.CONTEXT :])
        self._start, self._end = 0, len(self._ids)

    def add(self, token: int) -> str:
        """The text that this token completes; empty in the middle of a character."""
        self._ids.append(token)
        text = self._new()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._start, self._end = self._end, len(self._ids)
        return text

    def rest(self) -> str:
        """The text that is still held back."""
        return self._new() if self._end < len(self._ids) else ""

    def _new(self) -> str:
        before = self._decoded(self._ids[self._start : self._end])
        return self._decoded(self._ids[self._start :])[len(before) :]

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


class StopStrings:
    """Passes text on up to the first stop string, and holds back what may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = [stop for stop in stops if stop], ""
        self.stopped = False

    @property
    def holds(self) -> bool:
        """Whether text is held back."""
        return bool(self._held)

    def add(self, text: str) -> str:
        """The text that can be passed on. `stopped` is true from the first stop string on."""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped, passed, self._held = True, self._held[: min(places)], ""
            return passed
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        passed, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return passed

    def rest(self) -> str:
        """The text held back, when no more follows."""
        passed, self._held = self._held, ""
        return passed


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
