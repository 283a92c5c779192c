"""The answers to rank, from the `collect` stage or from a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from data.tables.messages import exchange
from data.tables.sources import as_text, read_table
from pipeline.config.data import TableConfig
from pipeline.errors import DataError
from ranking.campaign import Source


def collected(rows: Iterable[dict[str, Any]]) -> list[Source]:
    """The rows of the `collect` stage."""
    return [Source(row["prompt"], row["completions"], row.get("models"), row["split"]) for row in rows]


def read_sources(path: str) -> Iterator[Source]:
    """Rows `{"prompt", "completions"[, "models"]}` of a table (JSONL, JSON or Parquet). Conversations are read as
    in every other table (`data.messages`).

    Raises `DataError` that names file and row.
    """
    for row in read_table(TableConfig(path=path)):
        cells = _list(row["completions"], "completions", row.where)
        named = [(f"completion {place} of the row", cell) for place, cell in enumerate(cells, 1)]
        prompt, completions = exchange(row["prompt"], named, row.where, what="column 'prompt'")
        models = None if row.get("models") is None else _texts(row["models"], "models", row.where)
        if not prompt or len(completions) < 2:
            raise DataError(
                "a row needs a prompt and at least 2 completions",
                where=row.where,
                hint="complete or remove the row",
            )
        if models is not None and len(models) != len(completions):
            raise DataError(
                f"{len(completions)} completions have {len(models)} models",
                where=row.where,
                hint="write one of models per completion",
            )
        yield Source(prompt, completions, models)


def _list(value: Any, what: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{what} must be a list, got {value!r:.60}", where=where, hint='write ["...", "..."]')
    return value


def _texts(value: Any, what: str, where: str) -> list[str]:
    return [as_text(text, f"one of {what}", where) for text in _list(value, what, where)]
