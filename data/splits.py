"""Train and held-out prompts: decided by a hash of the prompt group, never by a random generator.

A prompt's split depends on its text and the fraction only, not on the table, its other rows or their order. So
demonstrations, rankings and extra prompts agree on it independently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from data.schema import Demonstration, Message, Prompt, Ranking, Split
from data.words import folded
from pipeline.errors import DataError


def split_of(key: str, eval_fraction: float) -> Split:
    """`eval` for the keys whose SHA-256, read as a number in [0, 1), is below `eval_fraction`."""
    uniform = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "eval" if uniform < eval_fraction else "train"


def group_of(prompt: Sequence[Message]) -> str:
    """The group a prompt is split by: its first user turn, ignoring case, white space and Unicode form.

    All turns of a conversation tree share the first one, so the whole tree stays on one side.
    """
    first = next((m for m in prompt if m["role"] == "user"), prompt[0])
    return folded(first["content"])


def split_of_prompt(prompt: Sequence[Message], eval_fraction: float) -> Split:
    """The split of a prompt's group."""
    return split_of(group_of(prompt), eval_fraction)


def check_split(row: Demonstration | Prompt | Ranking, eval_fraction: float) -> None:
    """Raises `DataError` when a row is not on the side of its prompt group.

    Checking every row is enough to keep groups out of both splits; no state is needed.
    """
    group = group_of(row.prompt)
    if row.split != split_of(group, eval_fraction):
        raise DataError(
            f"a prompt is both trained on and held out: {group[:80]!r}",
            where=getattr(row, "where", ""),
            hint="give all rows of one prompt the same split",
        )
