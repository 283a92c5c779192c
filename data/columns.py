"""What the adapters of ranking tables share: our column names, and a ranking before cells are left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data.messages import as_prompt
from data.schema import Message, Ranking
from data.sources import Row, as_text
from pipeline.config.data import RankingTableConfig
from pipeline.errors import RecipeError

ANONYMOUS = "unknown"
"""The annotator of a table that names none."""


@dataclass
class Answer:
    """A completion with what a table says of it; `score` is higher for better, None if the cell is empty."""

    text: str
    score: float | None
    model: str | None = None


@dataclass
class Candidates:
    """A ranking before empty cells are left out."""

    prompt: list[Message]
    answers: list[Answer]
    row: Row
    annotator: str = ANONYMOUS
    rated: bool = True
    """Whether scores are the table's ratings, to be kept, or only an order."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """As `Ranking.metadata`."""
    whole: Ranking | None = None
    """The ranking itself, where the table holds our own schema."""
    left_out: bool = False
    """Whether the adapter itself left the whole row out, for the reason in `extra`."""
    extra: list[tuple[str, int]] = field(default_factory=list)
    """Reasons and rows of answers that the adapter itself left out."""


NAMES: dict[str, tuple[str, ...]] = {
    "native": (),
    "wide": ("prompt", "completions", "ratings", "ranks", "preference", "models", "annotator"),
    "long": ("prompt", "completion", "rating", "rank", "model", "annotator", "group"),
    "pairs": ("prompt", "chosen", "rejected", "margin", "chosen_rating", "rejected_rating", "annotator"),
    "tree": ("prompt", "text", "role", "replies", "rank", "model"),
    "choice": ("prompt", "completions", "text", "choice", "model", "annotator"),
    "scored": ("prompt", "completions", "text", "score", "rank", "ratings", "ranks", "model", "annotator"),
    "argilla": ("prompt", "completions", "question", "options", "models"),
    "label_studio": ("prompt", "completions", "text", "question", "buckets", "model", "models"),
}
"""Our column names by format."""
LISTS = {
    "wide": ("completions", "ratings", "ranks", "models"),
    "argilla": ("completions", "options", "models"),
    "label_studio": ("buckets", "models"),
}
"""Names that stand for a list, by format."""
EITHER = {"label_studio": ("completions",)}
"""Names that stand for one column or a list of them."""


class Columns:
    """Our column names -> the table's. A name that the recipe does not give stands for itself."""

    def __init__(self, config: RankingTableConfig) -> None:
        self.given, self.where = config.columns, f"data.rankings.columns ({config.path})"
        names = NAMES[config.format]
        for name, value in self.given.items():
            if name not in names:
                mend = f"use {', '.join(names)}" if names else "leave `columns` out: the names are our own"
                raise self.error(f"the format {config.format} has no {name!r}", mend)
            several = name in LISTS.get(config.format, ())
            if isinstance(value, str) == several and name not in EITHER.get(config.format, ()):
                form = "a list of column names" if several else "the name of one column"
                raise self.error(f"{name} is given as {value!r}", f"write {form}")

    def error(self, what: str, mend: str) -> RecipeError:
        return RecipeError(what, where=self.where, mend=mend)

    def name(self, ours: str) -> str:
        return str(self.given.get(ours, ours))

    def names(self, ours: str) -> list[str]:
        return list(self.given.get(ours, ()))

    def order(self, row: Row, rating: str = "rating", rank: str = "rank") -> tuple[str, int]:
        """The column that orders completions, and the sign that makes higher better."""
        if rating in self.given and rank in self.given:
            raise self.error(f"both {rating} and {rank} are given", "give the one that orders them")
        by_rank = rank in self.given or (rating not in self.given and rating not in row and rank in row)
        return (self.name(rank), -1) if by_rank else (self.name(rating), 1)

    def optional(self, row: Row, ours: str) -> Any:
        """A cell of a column that the recipe need not give; None when it does not and the table has none."""
        return row[self.name(ours)] if ours in self.given or ours in row else None

    def annotator(self, row: Row) -> str:
        value = self.optional(row, "annotator")
        return str(value) if value not in (None, "") else ANONYMOUS

    def model(self, row: Row) -> str | None:
        return as_text(self.optional(row, "model"), f"column {self.name('model')!r}", row.where) or None

    def prompt(self, row: Row) -> list[Message]:
        """The prompt's cell, or the text that a template with columns in braces makes of the row."""
        column = self.name("prompt")
        if "{" in column:
            return as_prompt(self._filled(column, row), "the prompt", row.where)
        return as_prompt(row[column], f"column {column!r}", row.where)

    def _filled(self, template: str, row: Row) -> str:
        try:
            return template.format_map({name: "" if value is None else value for name, value in row.items()})
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self.error(
                f"the prompt's template does not fit the row at {row.where}: {type(error).__name__}: {error}",
                "write columns in braces, {title}, and parts of one in brackets, {info[post]}; {{ for a brace",
            ) from None
