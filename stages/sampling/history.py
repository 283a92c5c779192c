"""Fits a conversation into a model's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.schema import Message


def fitted(
    messages: Sequence[Message], encode: Callable[[Sequence[Message]], Sequence[int]], limit: int | None
) -> tuple[list[Message], int]:
    """The conversation without its oldest turns, as far as they do not fit, and how many were left out.

    System turns at the start and the last turn always stay, so the result may still be too long. What is left
    starts with a user's turn, as chat templates want it.

    Args:
        encode: a conversation's tokens (`Codec.prompt`).
        limit: the most tokens; None: no limit.
    """
    kept = list(messages)
    first = next((i for i, message in enumerate(kept) if message["role"] != "system"), len(kept))
    while limit is not None and len(kept) - first > 1 and len(encode(kept)) > limit:
        del kept[first]
        while len(kept) - first > 1 and kept[first]["role"] != "user":
            del kept[first]
    return kept, len(messages) - len(kept)
