"""What a recipe may say about a rankings format: its name and its columns.

The formats themselves are in `data.tables.formats`, above this package; `stages.registry` registers them. They are
imported when a recipe with a table of rankings is loaded, not before.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

ColumnNames = Mapping[str, str | list[str]]
"""`columns` of a recipe: our name -> the table's, or a list of the table's."""


@dataclass(frozen=True)
class Column:
    """A column of a format, under our name for it.

    Attributes:
        form: whether a recipe gives the name of one column, a list of them, or either.
        required: whether every table of this format has it. A recipe must name one that may be a list.
        default: whether one that may be a list stands for itself where the recipe does not name it.
        distinct: whether a list may not name a column twice.
        labelled: whether the recipe's `labels` may say what its values mean.
        explicit: whether it is read only where a recipe names it.
    """

    name: str
    form: Literal["name", "list", "either"] = "name"
    required: bool = False
    distinct: bool = False
    labelled: bool = False
    default: bool = False
    explicit: bool = False


@dataclass(frozen=True)
class TableFormat:
    """A format of rankings as a recipe names it.

    Attributes:
        name: the recipe's `format`.
        summary: what a table of it holds, in a few words; docs/recipes.md prints it.
        columns: what the recipe's `columns` may name.
        alternatives: groups of columns of which a recipe names one at most.
    """

    name: str
    summary: str
    columns: tuple[Column, ...] = ()
    alternatives: tuple[tuple[str, ...], ...] = ()

    def problems(self, columns: ColumnNames) -> Iterator[tuple[str, str, str]]:
        """What is wrong with a recipe's `columns`: the column ("" for all of them), what, and a hint."""
        known = {column.name: column for column in self.columns}
        for name, value in columns.items():
            if name not in known:
                yield name, f"{self.described} has no column {name!r}", self._unknown(name, value)
                continue
            column = known[name]
            if isinstance(value, list) and column.distinct and len(set(value)) < len(value):
                yield name, f"{name} names a column twice: {', '.join(value)}", "name each column once"
            if column.form != "either" and isinstance(value, list) != (column.form == "list"):
                expected = "a list of column names" if column.form == "list" else "the name of one column"
                yield name, f"{name} must be {expected}, got {value!r}", f"write {expected}"
        for column in self.columns:
            listed = column.form != "name" and not column.default
            if listed and column.required and not columns.get(column.name):
                yield "", f"{self.described} needs {column.name}", f"write {column.name}: [a, b, ...]"
        for group in self.alternatives:
            given = [name for name in group if name in columns]
            if len(given) > 1:
                yield (
                    given[1],
                    f"both {' and '.join(given[:2])} are given",
                    "name the one that orders the completions",
                )

    @property
    def described(self) -> str:
        return f"the format {self.name}"

    def nearest(self, name: str) -> str | None:
        """The column of ours that a recipe's author probably means by `name`."""
        near = difflib.get_close_matches(name.casefold(), [column.name for column in self.columns], n=1)
        return near[0] if near else None

    def _unknown(self, name: str, value: str | list[str]) -> str:
        """A hint for a name that is none of ours."""
        known = [column.name for column in self.columns]
        if not known:
            return "leave `columns` out: the names are our own"
        if isinstance(value, str) and value in known:
            return f"our name comes first: write {{{value}: {name}}}"
        near = self.nearest(name)
        return (f"did you mean {near}? " if near else "") + f"The names are {', '.join(known)}"

    def takes_labels(self, columns: ColumnNames) -> bool:
        """Whether a table with these `columns` has one whose values `labels` can explain."""
        return any(column.labelled and (column.required or column.name in columns) for column in self.columns)


@dataclass(frozen=True)
class TextTable(TableFormat):
    """A table without rankings, which has no `format` in a recipe."""

    @property
    def described(self) -> str:
        return f"a table of {self.name}"


SYSTEM, HISTORY = Column("system", explicit=True), Column("history", explicit=True)
"""What comes before a prompt, in columns of its own."""
_PROMPT, _COMPLETION = Column("prompt"), Column("completion", required=True)
_TEXT = TextTable(
    "text",
    "running text, or prompts and completions",
    (Column("text", required=True), _PROMPT, Column("completion")),
)
_PROMPTS = TextTable("prompts", "prompts", (Column("prompt", required=True), SYSTEM, HISTORY))
TEXT_TABLES = {
    "data.demonstrations": TextTable(
        "demonstrations", "prompts and completions", (_PROMPT, _COMPLETION, Column("messages"), SYSTEM, HISTORY)
    ),
    "data.prompts": _PROMPTS,
    "data.exclude": _PROMPTS,
    "base.pretrain.corpus": _TEXT,
    "eval.text": _TEXT,
}
"""Dotted path of a table -> the columns that it may have."""


def text_table(name: str) -> TextTable:
    """The columns of a table by its dotted path, such as `data.exclude[1]`."""
    return TEXT_TABLES[name.partition("[")[0]]


_sources: list[Callable[[], Mapping[str, TableFormat]]] = []


def register(source: Callable[[], Mapping[str, TableFormat]]) -> None:
    """Adds the formats that `source` returns, by name. It is called when they are first asked for."""
    _sources.append(source)


def known_formats() -> dict[str, TableFormat]:
    """The registered formats by name; empty where nobody registered any, and names cannot be checked."""
    return {name: format for source in _sources for name, format in source().items()}


def _known(name: str) -> str:
    formats = known_formats()
    if formats and name not in formats:
        raise PydanticCustomError("unknown_name", "Input should be a format of rankings", {"valid": list(formats)})
    return name


FormatName = Annotated[str, AfterValidator(_known)]
"""The name of a registered format."""
