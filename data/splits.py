"""Train and held-out prompts: decided by a hash of the prompt group, never by a random generator.

A prompt's split depends on its text and the fraction only: not on the order of rows, on other rows or on the
table it stands in. Demonstrations, rankings and extra prompts agree on it without knowing of each other.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

from data.schema import Demonstration, Message, Prompt, Ranking, Split
from pipeline.errors import DataError


def split_of(key: str, eval_fraction: float) -> Split:
    """`eval` for the keys whose SHA-256, read as a number in [0, 1), is below `eval_fraction`."""
    uniform = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "eval" if uniform < eval_fraction else "train"


def group_of(prompt: Sequence[Message]) -> str:
    """The group a prompt is split by: its first user turn, whatever its case, white space and Unicode form (an
    accent may be part of a letter or follow it).

    A later turn of a conversation contains the earlier ones, so a whole conversation tree stays on one side.
    """
    first = next((m for m in prompt if m["role"] == "user"), prompt[0])
    # NFC on both sides: folding a case may take a letter apart, and joined letters may fold to others.
    folded = unicodedata.normalize("NFC", first["content"]).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def split_of_prompt(prompt: Sequence[Message], eval_fraction: float) -> Split:
    """The split of a prompt's group."""
    return split_of(group_of(prompt), eval_fraction)


def check_split(row: Demonstration | Prompt | Ranking, eval_fraction: float) -> None:
    """Raises `DataError` when a row is not on the side of its prompt group.

    Where all rows of all tables are, no group is in both splits, and nothing needs to be remembered to know it.
    """
    group = group_of(row.prompt)
    if row.split != split_of(group, eval_fraction):
        raise DataError(
            f"a prompt is both trained on and held out: {group[:80]!r}",
            where=getattr(row, "where", ""),
            hint="give all rows of one prompt the same split",
        )
