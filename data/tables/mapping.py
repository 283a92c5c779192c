"""What a recipe's `columns` say, against the columns that a table has: those that are read, and those that lack."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from data.tables import suggest
from data.tables.formats import FORMATS
from data.tables.paths import fields_of, is_template, root
from data.tables.sources import MissingColumn
from pipeline.config.data import PromptTableConfig, RankingTableConfig, TableConfig, TaskConfig, rankings_path
from pipeline.config.formats import ColumnNames, TableFormat, text_table
from pipeline.config.recipe import Recipe
from pipeline.config.table_files import joins_of
from pipeline.errors import DataError, RecipeError, TutelageError

Table = TableConfig | RankingTableConfig

NESTED = ("native", "tree", "argilla", "label_studio")
"""Formats whose columns are those of a tool, or lie inside a cell: all columns of such a table are in use."""


def tables_of(recipe: Recipe) -> dict[str, Table]:
    """The tables that a recipe names, by dotted path."""
    pretrain = recipe.base.pretrain
    sources = {
        "base.pretrain.corpus": pretrain and pretrain.corpus,
        "data.demonstrations": recipe.data.demonstrations,
        "data.prompts": recipe.data.prompts,
        **{rankings_path(criterion): table for criterion, table in recipe.data.ranking_tables.items()},
        "data.eval_rankings": recipe.data.eval_rankings,
        **recipe.data.exclusions,
        "reward.pretrain_on": recipe.reward.pretrain_on,
        "eval.text": recipe.eval.text,
    }
    return {name: table for name, table in sources.items() if isinstance(table, TableConfig | RankingTableConfig)}


@dataclass(frozen=True)
class Problem:
    """What is wrong with a table, or with what a recipe says about it.

    Attributes:
        what: one sentence.
        key: the dotted path of the recipe's value at fault; empty where a row of the table is.
        where: the row, `file:line`, or the table.
        hint: how to fix it, with a recipe line to paste where there is one.
    """

    what: str
    key: str = ""
    where: str = ""
    hint: str = ""

    def error(self, describe: Callable[[str], str]) -> TutelageError:
        """As an error: a `RecipeError` at the recipe's line where a value is at fault, a `DataError` otherwise.

        Args:
            describe: dotted path -> where the recipe sets it, as `LoadedRecipe.describe`.
        """
        if not self.key:
            return DataError(self.what, where=self.where, hint=self.hint)
        what = self.what if self.what.startswith(self.key) else f"{self.key}: {self.what}"
        return RecipeError(what, where=place(self.key, describe), hint=self.hint)


def place(key: str, describe: Callable[[str], str]) -> str:
    """Where the recipe sets the value at a dotted path, or the nearest section around it."""
    at = key
    while at and describe(at) == "default":
        at = at.rpartition(".")[0]
    return describe(at or key)


def paste(name: str, columns: Mapping[str, str | Sequence[str]]) -> str:
    """The line for a recipe that sets `columns` of the table `name`, as in
    `data.demonstrations.columns: {prompt: question}`. Files in a list (`data.exclude[0]`) have no columns of their
    own; a table has."""
    cells = ", ".join(f"{ours}: {_yaml(theirs)}" for ours, theirs in columns.items())
    if "[" in name:
        return f"{name.partition('[')[0]}: {{path: FILE, columns: {{{cells}}}}}"
    return f"{name}.columns: {{{cells}}}"


def _yaml(names: str | Sequence[str]) -> str:
    return next(suggest.quoted([names])) if isinstance(names, str) else f"[{', '.join(suggest.quoted(names))}]"


def format_of(name: str, table: Table) -> TableFormat:
    """What the table `name` of a recipe may have as columns."""
    return FORMATS[table.format] if isinstance(table, RankingTableConfig) else text_table(name)


def read_columns(name: str, table: Table, columns: Iterable[str]) -> set[str]:
    """Those of a table's `columns` that its reader uses."""
    there = set(columns)
    form = format_of(name, table)
    if form.name in NESTED:
        return there
    named = _all_named(table)
    unread = {
        column
        for group in form.alternatives
        if set(group) & named.keys()
        for column in group
        if column not in named
    }
    if name == "data.demonstrations" and "messages" in named:
        unread = {"prompt", "completion"}
    used: set[str] = set()
    for column in form.columns:
        if column.name in named:
            used.update(tables_names(named[column.name]))
        elif column.form != "list" and not column.explicit and column.name not in unread:
            used.add(column.name)
    if isinstance(table, PromptTableConfig):
        used.update(table.metadata)
    for _, join in joins_of("", table):
        used.update([join.on] if isinstance(join.on, str) else join.on)
    used.update(table.only)
    if isinstance(table, RankingTableConfig) and isinstance(table.annotations, str):
        used.add(table.annotations)
    return {start for path in used if (start := root(path, there)) is not None}


def _all_named(table: Table) -> dict[str, str | list[str]]:
    """`columns` of a recipe, with those of all annotators under `annotations`."""
    named: dict[str, str | list[str]] = dict(table.columns)
    if isinstance(table, RankingTableConfig) and isinstance(table.annotations, dict):
        for columns in table.annotations.values():
            for ours, value in columns.items():
                named[ours] = [*tables_names(named.get(ours, [])), *tables_names(value)]
    return named


def tables_names(value: str | Sequence[str]) -> list[str]:
    """The table's columns, or paths into them, that a value of `columns` names: one, several, or the fields of a
    template."""
    names = [value] if isinstance(value, str) else list(value)
    return [field for name in names for field in (_fields(name) if is_template(name) else [name]) if field]


def _fields(template: str) -> list[str]:
    try:
        return fields_of(template)
    except RecipeError:  # reported by the reader
        return []


def missing(name: str, table: Table, columns: Sequence[str]) -> list[Problem]:
    """Columns that the recipe names, or that every table of this kind has, and that a table with these `columns`
    lacks: one problem per column of ours, each with the line that sets all of them."""
    form = format_of(name, table)
    if form.name in ("argilla", "label_studio"):  # fields lie inside a record, or beside it
        return []
    if isinstance(table, RankingTableConfig) and isinstance(table.annotations, str):
        return _without_annotations(f"{name}.annotations", table.annotations, columns)  # columns may lie inside
    named: ColumnNames = table.columns
    lacking: dict[str, list[str]] = {}
    there = set(columns)
    for column in form.columns:
        ours = column.name
        if ours in named:
            names = tables_names(named[ours])
        elif ours in _all_named(table):  # of annotators
            names = []
        else:
            names = [ours] if column.required and column.form != "list" else []
        if ours not in INSIDE.get(form.name, ()) and (
            gone := [theirs for theirs in names if root(theirs, there) is None]
        ):
            lacking[ours] = gone
    if form.name == "demonstrations" and "messages" in {*named, *columns}:
        lacking = {ours: gone for ours, gone in lacking.items() if ours in named}
    if form.name == "text" and "text" in lacking and "text" not in named:
        pair = {"prompt", "completion"}
        if all(ours in columns for ours in pair):
            del lacking["text"]
        elif named.keys() & pair or all(suggest.probable(ours, columns) for ours in pair):
            lacking = {ours: [str(named.get(ours, ours))] for ours in pair}
            lacking = {ours: gone for ours, gone in lacking.items() if gone[0] not in columns}
    if lacking and form.name != "text" and "prompt" not in {*named, *columns, *lacking} and "messages" not in named:
        lacking["prompt"] = ["prompt"]
    return [*_problems(name, table, columns, lacking), *_without_annotators(name, table, columns)]


def _without_annotators(name: str, table: Table, columns: Sequence[str]) -> list[Problem]:
    """The problems of annotators' columns that the table lacks."""
    groups = table.annotations if isinstance(table, RankingTableConfig) else None
    if not isinstance(groups, dict):
        return []
    return [
        problem
        for annotator, named in groups.items()
        for ours, value in named.items()
        for path in tables_names(value)
        for problem in _without_annotations(f"{name}.annotations.{annotator}.{ours}", path, columns)
    ]


def _without_annotations(key: str, path: str, columns: Sequence[str]) -> list[Problem]:
    """The problem of a path under `annotations` that starts at no column."""
    if root(path, set(columns)) is not None:
        return []
    near = suggest.close(path, columns) or _nearest_path(path, columns)
    what = f"the table has no column {path!r}" + (f"; did you mean {near!r}?" if near else "")
    hint = f"the columns are {suggest.listed(list(suggest.quoted(columns)), 30)}"
    return [Problem(what, key, "", hint)]


def _nearest_path(path: str, columns: Iterable[str]) -> str | None:
    """The path that starts at the column whose name is close to the one at which a path starts."""
    start = re.split(r"[.\[]", path, maxsplit=1)[0]
    near = suggest.close(start, columns) if start != path else None
    return near + path[len(start) :] if near else None


INSIDE = {
    "tree": ("text", "role", "replies", "rank", "model"),
    "scored": ("text", "score", "rank", "model"),
    "choice": ("text", "model"),
}
"""Names that a format looks up inside a cell, not among the table's columns."""


def _problems(
    name: str,
    table: Table,
    columns: Sequence[str],
    lacking: Mapping[str, Sequence[str]],
    what: str = "the table has no column",
    where: str = "",
) -> list[Problem]:
    named: ColumnNames = table.columns
    free = [column for column in columns if column not in read_columns(name, table, columns)]
    better: dict[str, str | list[str]] = {}
    lacking = dict(sorted(lacking.items(), key=lambda item: item[0] != "prompt"))
    for ours, gone in lacking.items():
        guess = _meant(ours, named.get(ours, ours), gone, free, columns)
        if guess:
            better[ours] = guess
            free = [column for column in free if column not in tables_names(guess)]
    rest = f"the columns are {suggest.listed(list(suggest.quoted(columns)), 30)}"
    if len(better) == len(lacking):
        hint = f"set {paste(name, better)}"
    else:
        hint = f"set {paste(name, {ours: better.get(ours, 'COLUMN') for ours in lacking})}; {rest}"
    problems = []
    for ours, gone in lacking.items():
        key = f"{name}.columns.{ours}" if ours in named else name
        message = f"{what} {' and no '.join(map(repr, gone))}"
        guess = better.get(ours)
        if guess and isinstance(named.get(ours, ours), str):
            message += f"; {guess!r} is probably the {ours}" if ours not in named else f"; did you mean {guess!r}?"
        elif guess:
            new = [column for column in guess if column not in named[ours]]
            message += f"; did you mean {' and '.join(map(repr, new))}?"
        problems.append(Problem(message, key, where, hint))
    return problems


def _meant(
    ours: str, value: str | Sequence[str], gone: Sequence[str], free: Sequence[str], columns: Sequence[str]
) -> str | list[str] | None:
    """What the recipe should name as `ours` instead of `value`, of which the table lacks `gone`; None where no
    column of the `free` ones is likely. Paths may start at any of the `columns`."""
    if isinstance(value, str):
        if "{" in value:
            return None
        near = None if value == ours else suggest.close(value, free) or _nearest_path(value, columns)
        also = {"text": "completion", "score": "rating"}.get(ours, ours)
        return near or suggest.probable(ours, free) or suggest.probable(also, free)
    names: list[str] = []
    for column in value:
        left = [other for other in free if other not in names]
        near = suggest.close(column, left) or _nearest_path(column, columns) if column in gone else column
        if near is None:
            return None
        names.append(near)
    return names


@contextmanager
def located(
    name: str, table: Table | TaskConfig, describe: Callable[[str], str], columns: Iterable[str] = ()
) -> Iterator[None]:
    """Errors about a missing column, raised inside, as errors at the recipe's line, with a line to paste.

    Args:
        name: dotted path of the table, as in `tables_of`.
        describe: as in `Problem.error`.
        columns: those of the table's rows so far, read when the error comes.
    """
    try:
        yield
    except MissingColumn as error:
        if isinstance(table, TaskConfig):  # generated, without columns
            raise
        first, *more = missing_in_row(name, table, error, columns)
        what = "; ".join([first.what, *(problem.what for problem in more)])  # one hint for all
        raise replace(first, what=what).error(describe) from None


def missing_in_row(name: str, table: Table, error: MissingColumn, columns: Iterable[str]) -> list[Problem]:
    """The problems behind a reader's error. `columns` are those of the table's rows so far."""
    there = list(dict.fromkeys([*columns, *error.columns]))
    if error.column in columns and error.column not in error.columns:
        what = f"the row has no {error.column!r}, which other rows have"
        return [Problem(what, "", error.where, "add it to the row, or remove the row")]
    named = _all_named(table)
    ours = next((key for key, value in named.items() if error.column in tables_names(value)), error.column)
    inside = INSIDE.get(format_of(name, table).name, ())
    if ours in inside:
        lacking = {ours: [error.column]}
        if "score" in inside and not {"score", "rank"} & {*table.columns, *error.columns}:
            lacking["score"] = ["score"]
        return _problems(name, table, error.columns, lacking, "the objects in the row have no", error.where)
    problems = missing(name, table, there)
    if not any(repr(error.column) in problem.what for problem in problems):
        problems += _problems(name, table, there, {ours: [error.column]})
    return problems
