"""A guess as the recipe's section: as text, and as the reader's config."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from data.tables.formats import FORMATS
from data.tables.guess.guess import Guess, Open
from pipeline.config.data import JoinConfig, RankingTableConfig, TableConfig

FILL_IN = "FILL IN"
COMMENTS = 40
"""Column at which comments start, where the value leaves room."""

Line = tuple[str, str]
"""A line of YAML, and its comment."""


def config_of(
    guess: Guess, path: str, split: str = "train", limit: int | None = None
) -> TableConfig | RankingTableConfig:
    """The section as the readers take it. A guess with something open has none that is complete."""
    values = dict(guess.values)
    if "join" in values:
        values["join"] = JoinConfig(**values["join"])
    if not guess.format:
        columns = {ours: theirs for ours, theirs in guess.columns.items() if isinstance(theirs, str)}
        return TableConfig(path=path, split=split, columns=columns, limit=limit, **values)
    return RankingTableConfig(
        path=path,
        format=guess.format,
        split=split,
        columns=guess.columns,
        labels=guess.labels,  # type: ignore[arg-type]
        text_lists=guess.text_lists,  # type: ignore[arg-type]
        limit=limit,
        human=guess.human,
        **values,
    )


def section(guess: Guess, path: str, split: str = "train") -> Iterator[str]:
    """The section as lines of a recipe."""
    return aligned(_section(guess, path, split))


def _section(guess: Guess, path: str, split: str) -> Iterator[Line]:
    for depth, name in enumerate(guess.table.split(".")):
        yield f"{'  ' * depth}{name}:", ""
    yield f"    path: {scalar(path)}", ""
    if split != "train":
        yield f"    split: {scalar(split)}", ""
    yield from columns(guess)


def scalar(value: str) -> str:
    """A text as YAML writes it, also inside brackets."""
    simple = value and not any(mark in value for mark in "{}[],#:\n\"'&*!|>%@`") and value == value.strip()
    return value if simple and yaml.safe_load(value) == value else json.dumps(value, ensure_ascii=False)


def flow(value: Any) -> str:
    """A recipe's value on one line of YAML."""
    if isinstance(value, dict):
        names = [key if key == "on" else scalar(str(key)) for key in value]  # YAML 1.1 takes on for true
        return f"{{{', '.join(f'{name}: {flow(item)}' for name, item in zip(names, value.values(), strict=True))}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    return scalar(value) if isinstance(value, str) else json.dumps(value)


def columns(guess: Guess) -> Iterator[Line]:
    """The lines below a table's path: its format and columns, without names that are our own, and the lines that a
    person must fill in."""
    if guess.format:
        yield f"    format: {guess.format}", guess.why.get("format", guess.schema)
    explicit = (
        {column.name for column in FORMATS[guess.format].columns if column.explicit} if guess.format else set()
    )
    named = {ours: theirs for ours, theirs in guess.columns.items() if theirs != ours or ours in explicit}
    inside = [item for item in guess.open if item.in_columns]
    if named:
        yield "    columns:", ""
    elif inside:
        yield "    columns: {}", "replace {} by the lines below"
    for ours, theirs in named.items():
        yield f"      {ours}: {flow(theirs)}", guess.why.get(ours, "")
    for item in inside:
        yield from _open(item, "      ")
    if guess.labels:
        yield f"    labels: {{{', '.join(f'{key}: {value}' for key, value in guess.labels.items())}}}", ""
    for name, value in guess.values.items():
        yield f"    {name}: {flow(value)}", guess.why.get(name, "")
    if guess.text_lists != "refuse":
        yield f"    text_lists: {guess.text_lists}", "cells spell lists of one text"
    if not guess.human:
        yield "    human: false", "no person ranked"
    for item in guess.open:
        if not item.in_columns:
            yield from _open(item, "    ")


def _open(item: Open, indent: str) -> Iterator[Line]:
    yield f"{indent}# {FILL_IN}: {item.why}", ""
    yield f"{indent}# {item.line}", ""


def aligned(lines: Iterator[Line]) -> Iterator[str]:
    pending_blank = False
    for line, comment in lines:
        if not line:
            pending_blank = True
            continue
        if pending_blank:
            yield ""
        pending_blank = False
        yield f"{line:{COMMENTS - 2}}  # {comment}" if comment else line
