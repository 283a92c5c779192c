"""The formats in which rankings come, one object each. docs/rankings/formats.md shows an example of every one.

To add a format, write the function that reads it, here or in a module of its own, and add it to `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data.tables import adapters, labels, suggest, tools
from data.tables.columns import Candidates, Columns
from data.tables.sources import Row
from pipeline.config.formats import HISTORY, SYSTEM, Column, TableFormat


@dataclass(frozen=True, kw_only=True)
class Format(TableFormat):
    """A format of rankings, and what reads it.

    Attributes:
        read: the table's rows, and its column names, to rankings.
        ordered: whether the order of a ranking's completions is that of their ranks, or of unrelated rows. In other
            formats a first completion that nearly always wins is a sign of labels read the wrong way.
    """

    read: Callable[[Iterator[Row], Columns], Iterator[Candidates]]
    ordered: bool = False

    def nearest(self, name: str) -> str | None:
        role, names = suggest.role_of(name), [column.name for column in self.columns]
        return next((ours for ours in (role, f"{role}s") if ours in names), None) or super().nearest(name)


PROMPT = Column("prompt")
CONVERSATION = (PROMPT, SYSTEM, HISTORY)
MODEL, ANNOTATOR = Column("model"), Column("annotator")
WEIGHT = Column("weight", explicit=True)
MODELS = Column("models", "list")

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format(name="native", summary="as `tutelage export-rankings` writes", read=adapters.native),
        Format(
            name="wide",
            summary="K completion and K rating columns per row",
            columns=(
                *CONVERSATION,
                Column("completions", "either", required=True, distinct=True),
                Column("ratings", "either", distinct=True),
                Column("ranks", "either", distinct=True),
                Column("preference", "either", labelled=True),
                Column("best", explicit=True),
                Column("worst", explicit=True),
                Column("order", explicit=True),
                Column("models", "either"),
                ANNOTATOR,
                WEIGHT,
            ),
            alternatives=(
                ("ratings", "ranks", "preference", "best", "order"),
                *((order, "worst") for order in ("ratings", "ranks", "preference", "order")),
            ),
            read=adapters.wide,
        ),
        Format(
            name="long",
            summary="one row per completion",
            columns=(
                *CONVERSATION,
                Column("completion", required=True),
                Column("rating"),
                Column("rank"),
                MODEL,
                ANNOTATOR,
                WEIGHT,
                Column("group", explicit=True),
            ),
            alternatives=(("rating", "rank"),),
            read=adapters.long,
            ordered=True,
        ),
        Format(
            name="pairs",
            summary="chosen and rejected",
            columns=(
                *CONVERSATION,
                Column("chosen", required=True),
                Column("rejected", required=True),
                Column("margin"),
                Column("chosen_rating"),
                Column("rejected_rating"),
                ANNOTATOR,
                WEIGHT,
            ),
            read=adapters.pairs,
            ordered=True,
        ),
        Format(
            name="tree",
            summary="nested replies with ranks (OASST)",
            columns=(
                Column("prompt", required=True),
                Column("text", required=True),
                Column("role", required=True),
                Column("replies", required=True),
                Column("rank", required=True),
                MODEL,
                WEIGHT,
            ),
            read=adapters.tree,
            ordered=True,
        ),
        Format(
            name="scored",
            summary="one list of scored completions per row",
            columns=(
                *CONVERSATION,
                Column("completions", required=True),
                Column("text"),
                Column("score"),
                Column("rank"),
                Column("ratings"),
                Column("ranks"),
                MODEL,
                Column("models"),
                ANNOTATOR,
                WEIGHT,
            ),
            alternatives=(("score", "rank"), ("ratings", "ranks")),
            read=adapters.scored,
        ),
        Format(
            name="choice",
            summary="one list of completions per row, and the place of the best",
            columns=(
                *CONVERSATION,
                Column("completions", required=True),
                Column("text"),
                Column("choice", required=True, labelled=True),
                Column("worst", explicit=True),
                MODEL,
                ANNOTATOR,
                WEIGHT,
            ),
            read=labels.choice,
        ),
        Format(
            name="argilla",
            summary="an export of Argilla",
            columns=(
                PROMPT,
                Column("completions", "list", required=True, distinct=True),
                Column("question"),
                Column("options", "list"),
                MODELS,
                WEIGHT,
            ),
            read=tools.argilla,
        ),
        Format(
            name="label_studio",
            summary="an export of Label Studio",
            columns=(
                PROMPT,
                Column("completions", "either", required=True, distinct=True, default=True),
                Column("text"),
                Column("question"),
                Column("buckets", "list"),
                MODEL,
                MODELS,
                WEIGHT,
            ),
            read=tools.label_studio,
        ),
    )
}
"""`format` of a recipe's ranking table -> how it is read."""
