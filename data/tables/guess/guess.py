"""Which format a table has, and which of its columns hold what.

A guess says why. What cannot be decided is left open, with a recipe line to fill in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data.tables import suggest
from data.tables.formats import FORMATS
from data.tables.guess.sample import Sample, annotator_in, named
from data.tables.mapping import tables_names
from data.tables.paths import starts
from pipeline.config.formats import text_table
from pipeline.errors import DataError

FORMATS_PAGE = "docs/rankings/formats.md"
RANKINGS, DEMONSTRATIONS, PROMPTS, TEXT = "data.rankings", "data.demonstrations", "data.prompts", "eval.text"
KINDS = {RANKINGS: "rankings", DEMONSTRATIONS: "demonstrations", PROMPTS: "prompts", TEXT: "texts"}
"""Dotted path of a recipe's section -> what the rows of its table become."""


@dataclass(frozen=True)
class Open:
    """A value that a person must decide.

    Attributes:
        line: the recipe's line to fill in, of the table's section or of its `columns`.
        why: why it is open.
        in_columns: whether the line belongs into `columns`.
        choices: the lines that answer it, where they can be listed.
    """

    line: str
    why: str
    in_columns: bool = True
    choices: tuple[str, ...] = ()


@dataclass
class Guess:
    """How a table is probably laid out.

    Attributes:
        format: of rankings; empty for other tables.
        columns: our name -> the table's, also where both are the same.
        labels, text_lists, human: as in a recipe.
        values: other values of the section beside `format`, such as `pairs`.
        table: dotted path of the recipe's section that the table belongs to.
        schema: the name of the public schema that it has, if it has one.
        why: our name -> why this column, where it is not obvious.
        notes: what a person should look at.
    """

    format: str = ""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    text_lists: str = "refuse"
    human: bool = True
    values: dict[str, Any] = field(default_factory=dict)
    table: str = RANKINGS
    schema: str = ""
    why: dict[str, str] = field(default_factory=dict)
    open: list[Open] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What the table's rows become."""
        return KINDS[self.table]

    @property
    def looks(self) -> str:
        """What the table looks like, in words."""
        of = f" of the schema {self.schema}" if self.schema else ""
        return self.kind + of + (f", format {self.format}" if self.format else "")

    def used(self) -> set[str]:
        """The table's columns that are read; of paths into them, every beginning that may be a column."""
        names = [name for value in self.columns.values() for name in tables_names(value)]
        return {start for name in names for start in starts(name)}

    def sort(self) -> None:
        """Puts the columns into the order of the format's."""
        known = [column.name for column in FORMATS[self.format].columns] if self.format else []
        names = [*known, *(name for name in self.columns if name not in known)]
        self.columns = {name: self.columns[name] for name in names if name in self.columns}

    def choose(self, role: str, candidates: Sequence[str]) -> None:
        """Takes the only candidate, or leaves `role` open."""
        if len(candidates) == 1:
            self.columns[role] = candidates[0]
        elif candidates:
            self.leave_open(role, candidates, f"{' and '.join(candidates)} may both be the {role}")

    def choose_rest(self, role: str, texts: Sequence[str]) -> None:
        """Takes the only column of text that has no other role, or leaves `role` open."""
        if len(texts) == 1:
            self.columns[role] = texts[0]
            self.why[role] = "the only other column of text"
        else:
            self.leave_open(role, texts, f"no column is named like the {role}; texts are in {' and '.join(texts)}")

    def leave_open(self, roles: str | Sequence[str], candidates: Sequence[str | list[str]], why: str) -> None:
        """Leaves open which of `candidates`, columns or lists of columns, has the role, or which of several roles
        one of them has."""
        roles = [roles] if isinstance(roles, str) else roles
        shown = [name if isinstance(name, str) else f"[{', '.join(name)}]" for name in candidates]
        choices = tuple(f"{role}: {quoted_names(name)}" for name in candidates for role in roles)
        self.open.append(Open(f"{' or '.join(roles)}: {' or '.join(shown)}", why, choices=choices))


def quoted_names(names: str | Sequence[str]) -> str:
    """A column's name as YAML writes it; of several, a list."""
    if isinstance(names, str):
        return next(suggest.quoted([names]))
    return f"[{', '.join(suggest.quoted(names))}]"


def no_column(sample: Sample, what: str) -> DataError:
    return DataError(
        f"no column of the table looks like the {what}",
        where=sample.path,
        hint=f"its columns are {suggest.listed(sample.columns)}; rename one to {what}, or correct the mapping on a "
        f"terminal ({FORMATS_PAGE})",
    )


def choose_prompt(guess: Guess, sample: Sample, columns: Sequence[str], optional: bool = False) -> None:
    """Chooses the prompt's column among `columns`."""
    texts = [column for column in columns if column not in guess.used() and sample.is_text(column)]
    guess.choose("prompt", named("prompt", texts))
    if decided(guess, "prompt"):
        return
    if len(talks := [column for column in texts if sample.lists_messages(column)]) == 1:
        guess.columns["prompt"] = talks[0]
        guess.why["prompt"] = "a conversation"
        return
    annotator = annotator_in(sample, columns)
    rest = [column for column in texts if column != annotator and " " in str(sample.cells(column)[0])]
    if rest:
        guess.choose_rest("prompt", rest)
    elif not optional:
        raise no_column(sample, "prompt")


def choose_annotator(guess: Guess, sample: Sample, columns: Sequence[str]) -> None:
    column = annotator_in(sample, [column for column in columns if column not in guess.used()])
    if column is not None:
        guess.columns["annotator"] = column


def is_tree(cell: object) -> bool:
    return isinstance(cell, dict) and "replies" in cell


def decided(guess: Guess, role: str) -> bool:
    return role in guess.columns or any(item.line.startswith(f"{role}:") for item in guess.open)


def _add_earlier_turns(guess: Guess, sample: Sample) -> None:
    """Adds columns of the system message and of earlier turns, where the format has them."""
    form = FORMATS[guess.format] if guess.format else text_table(guess.table)
    if "implicit_prompt" in guess.values:
        return
    for column in sample.columns:
        cells = sample.cells(column)
        nested = any(isinstance(cell, list | dict) for cell in cells)
        ours = suggest.before_the_prompt(column, map(str, cells), nested=nested)
        if ours and ours in {c.name for c in form.columns} - guess.columns.keys() and column not in guess.used():
            guess.columns[ours] = column


def finish(guess: Guess, sample: Sample) -> Guess:
    """Adds the columns with what comes before a prompt, and those that are not used."""
    _add_earlier_turns(guess, sample)
    used = guess.used() | {*guess.values.get("fill_down", ()), *guess.values.get("only", ())}
    unused = [column for column in sample.columns if column not in used and sample.cells(column)]
    guess.unused = [column for column in unused if not ({*starts(column)} - {column}) & {*unused}]
    if sample.header > 1:
        guess.values["header"] = sample.header
    for column in guess.unused:
        if suggest.plain(column) in map(suggest.plain, suggest.SYNONYMS["prompt"]) and sample.is_text(column):
            rows = len(sample.cells(column))
            guess.notes.append(
                f"column {column} has text in {rows} rows and is not used: does it belong to the prompt?"
            )
    return guess
