"""Which columns of a table are probably meant by our names for them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompt": ("instruction", "question", "input", "query", "user_prompt", "prompt_text", "post", "context"),
    "completion": ("output", "answer", "response", "reply", "text", "demonstration", "summary", "target"),
    "messages": ("conversation", "conversations", "dialogue", "dialog", "chat"),
    "chosen": ("preferred", "better", "winner", "accepted", "response_chosen"),
    "rejected": ("dispreferred", "worse", "loser", "response_rejected"),
    "annotator": (
        "rater", "worker", "labeler", "labeller", "judge", "reviewer", "user", "evaluator",
        "annotator_id", "worker_id", "rater_id", "user_id",
    ),
    "rank": ("place", "position", "pos", "ranking", "order"),
    "rating": ("score", "stars", "grade", "points", "quality"),
    "model": ("model_name", "system", "generator", "policy", "source"),
    "group": ("prompt_id", "item", "item_id", "example_id", "task_id"),
}  # fmt: skip
"""Our name for a column -> other names that people give it, the likeliest first. None of them is ours."""

CUTOFF = 0.8
"""Similarity of two spellings from which one is taken for a slip of the other (1: equal)."""


def probable(wanted: str, columns: Iterable[str]) -> str | None:
    """The column that is probably meant by our name `wanted`, or None: the same but for case and punctuation, a
    known synonym, or a close spelling."""
    by_plain = {plain(column): column for column in reversed(list(columns))}
    for name in (wanted, *SYNONYMS.get(wanted, ())):
        if plain(name) in by_plain:
            return by_plain[plain(name)]
    return close(wanted, by_plain.values())


def close(wanted: str, names: Iterable[str]) -> str | None:
    """The name whose spelling is close to `wanted`; None if there is none."""
    by_plain = {plain(name): name for name in names}
    near = difflib.get_close_matches(plain(wanted), by_plain, n=1, cutoff=CUTOFF)
    return by_plain[near[0]] if near else None


def plain(name: str) -> str:
    """The name without case and punctuation: "Annotator ID" and "annotator_id" are the same."""
    return re.sub(r"[\W_]+", "", name.casefold())
