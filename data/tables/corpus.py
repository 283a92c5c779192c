"""The text that a base model is pretrained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from data.splits import split_of_prompt
from data.tables.layout import arranged
from data.tables.messages import exchange
from data.tables.selection import usable
from data.tables.sources import MissingColumn, Row, read_table
from data.venues import task as venues
from pipeline.config.data import TableConfig, TaskConfig
from pipeline.errors import DataError


def documents(
    config: TaskConfig | TableConfig, seed: int, held_out: float, rows: Iterable[Row] | None = None
) -> Iterator[tuple[str, ...]]:
    """Yields `(text,)` for running text and `(prompt, completion)` for a demonstration, without the prompts that
    `data.splits` holds out at the share `held_out`. `rows` are the table's, where they were read before. Raises
    `DataError`.
    """
    if isinstance(config, TaskConfig):
        for d in venues.corpus(config, seed, held_out):
            yield d.prompt[-1]["content"], d.completion
        return
    config, read = arranged(config, usable(read_table(config) if rows is None else rows), None)
    names = {ours: config.columns.get(ours, ours) for ours in ("text", "prompt", "completion")}
    for row in read:
        if row.has(names["text"]) and (
            "text" in config.columns or not config.columns.keys() & {"prompt", "completion"}
        ):
            yield (row.text(names["text"]),)
        elif row.has(names["prompt"]) and row.has(names["completion"]):
            prompt, text = _demonstration(row, names["prompt"], names["completion"], config)
            if split_of_prompt([{"role": "user", "content": prompt}], held_out) == "train":
                yield prompt, text
        else:
            lacking = [theirs for ours, theirs in names.items() if ours in config.columns and not row.has(theirs)]
            raise MissingColumn(lacking[0] if lacking else "text", row)


def _demonstration(row: Row, prompt: str, completion: str, config: TableConfig) -> tuple[str, str]:
    """The text of a prompt of one user turn, and its completion. Raises `DataError`."""
    messages, [text] = exchange(
        row[prompt],
        [(f"column {completion!r}", row[completion])],
        row.where,
        text_lists=config.text_lists,
        what=f"column {prompt!r}",
    )
    if len(messages) > 1 or (messages and messages[0]["role"] != "user"):
        raise DataError(
            "a prompt of a corpus must be a single user turn, and this one is a conversation",
            where=row.where,
            hint="remove the row, or write the conversation as running text in a `text` column",
        )
    return messages[0]["content"] if messages else "", text
