"""Rules about what the cells of a table of rankings mean: `labels`, `pairs`, `scale` and so on."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config.data import RankingTableConfig
from pipeline.config.formats import TableFormat
from pipeline.config.table_rules import of_an_annotator

PLACES = ("choice", "best", "worst", "order")
"""Columns that hold the place of a completion."""
RANKED = ("rank", "ranks", "order", "buckets", "options")
"""Columns of ranks, of which some may be empty; `tree` and the labelling tools have them too."""
UNRANKED = ("rating", "ratings", "score", "preference", "best", "worst")
"""Columns that order completions otherwise."""


def problems(table: RankingTableConfig, format: TableFormat) -> Iterator[tuple[str, str]]:
    """The values that are wrong or would have no effect, and why."""
    columns = of_an_annotator(table)
    names = {column.name for column in format.columns}
    strengths = [value for value in table.labels.values() if not isinstance(value, str)]
    if strengths and any(value in ("first", "second") for value in table.labels.values()):
        yield "labels", "mixes strengths with first or second: write all as signed numbers (tie is 0), or none"
    yield from _pairs(table, format)
    if "worst" in columns and (table.labels or table.pairs):
        name = "labels" if table.labels else "pairs"
        yield name, "orders two completions, and `worst` names one of K: leave one of them out"
    keys = [label.strip().casefold() for label in table.scale]
    if len(keys) == 1:
        yield "scale", "needs two labels or more, lowest first"
    elif twice := next((label for label in keys if keys.count(label) > 1), None):
        yield "scale", f"names {twice!r} twice (case and white space around a label do not matter)"
    if table.scale and (
        not names & {"rating", "ratings", "score", "chosen_rating"}
        or {"rank", "ranks", "preference", "best", "order"} & columns.keys()
    ):
        yield "scale", "gives the meaning of ratings, and this table has none: name their columns, or leave it out"
    if table.index_from is not None and not any(
        column.name in PLACES and (column.required or column.name in columns) for column in format.columns
    ):
        yield (
            "index_from",
            f"is the number of the first completion in {', '.join(PLACES)}, and there is no such column",
        )
    if table.unranked == "last" and (not names & {*RANKED} or {*UNRANKED} & columns.keys()):
        yield "unranked", "is about ranks, and this table has none"
    if table.implicit_prompt and format.name != "pairs":
        yield "implicit_prompt", f"is for the format pairs, and the table's is {format.name}: leave it out"
    elif table.implicit_prompt and "prompt" in columns:
        yield "implicit_prompt", "takes the prompt from the answers, and `columns` names one: leave one of them out"
    if table.consensus in ("mean", "zscore") and table.combine == "net_wins":
        yield "consensus", f"{table.consensus} is of ratings, and combine: net_wins leaves none: use bradley_terry"


def _pairs(table: RankingTableConfig, format: TableFormat) -> Iterator[tuple[str, str]]:
    columns = of_an_annotator(table)
    completions, preference = columns.get("completions"), columns.get("preference")
    if not table.pairs:
        if isinstance(preference, list):
            yield "pairs", "is required where `preference` names several columns: [[0, 1], [0, 2], [1, 2]]"
        return
    if not format.takes_labels(columns):
        yield (
            "pairs",
            "is the order of the labels in `preference` (format wide) or `choice`, and there is no such column",
        )
        return
    if wrong := next((pair for pair in table.pairs if len(pair) != 2), None):
        yield "pairs", f"must hold two completions each, got {wrong}"
        return
    if any(first == second for first, second in table.pairs):
        yield "pairs", "compares an answer with itself"
    if len({frozenset(pair) for pair in table.pairs}) < len(table.pairs):
        yield "pairs", "names a pair twice"
    highest = max(place for pair in table.pairs for place in pair)
    if isinstance(completions, list) and highest >= len(completions):
        yield "pairs", f"names completion {highest}, and the {len(completions)} completions are numbered from 0"
    if isinstance(preference, list) and len(preference) != len(table.pairs):
        yield "pairs", f"has {len(table.pairs)} pairs, and `preference` names {len(preference)} columns"
