"""Checks the tables that a recipe names without running anything: columns, cells, and what the rows become.

`check_table` reads the first rows of a table with the reader of the stage that will use it, and reports every
problem at once, where the stage would stop at the first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from data.schema import Demonstration, MergedRanking, Prompt, Ranking, prompt_key
from data.splits import group_of
from data.tables.corpus import documents
from data.tables.demonstrations import read_demonstrations, read_prompts
from data.tables.first_wins import FirstWins
from data.tables.guess.rankings import any_table
from data.tables.guess.sample import Sample
from data.tables.guess.section import config_of
from data.tables.mapping import Problem, Table, missing, missing_in_row
from data.tables.profile import ROWS, Profile, usage_lines
from data.tables.rankings import read_rankings
from data.tables.repeats import Repeats, repeats
from data.tables.sources import Dropped, MissingColumn, Row, TableError, read_table
from data.tables.suggest import count_of, listed
from data.tables.summary import RankingSummary, summary
from pipeline import invocation
from pipeline.config.data import RankingTableConfig
from pipeline.config.paths import nearest
from pipeline.config.rules import is_local
from pipeline.config.table_files import by_name, files_of, joins_of, shown
from pipeline.errors import DataError, RecipeError

MOST = 20
"""Rows with problems after which a table is not read further."""
SHOWN = 3
"""Parsed rows that a report keeps."""

Parsed = Ranking | Demonstration | Prompt | tuple[str, ...]
"""What a row becomes; running text and a corpus's pairs are tuples."""


@dataclass
class TableReport:
    """What a table holds, as far as it was read.

    Attributes:
        name: dotted path of the table in the recipe, such as `data.rankings`.
        opened: whether its rows were read. Only local files are.
        problems: all that would stop a stage. Empty: the rows that were read are fine.
        read: rows that were read.
        complete: whether these are all rows of the table.
        kind: what its rows become: rankings, demonstrations, prompts or texts.
        parsed: how many of them there are.
        merged: rankings that are the consensus of annotators.
        prompts: distinct prompts among them.
        groups: the group of each distinct prompt, by its key (`data.splits`).
        asked: each distinct prompt, by its key, without completion and split.
        columns: of the table, in its order.
        unused: those of them that the reader does not use.
        figures: lines with the figures of rankings (`data.tables.summary`).
        lines: what the user should know about unused columns, repeated rankings and the like.
        annotators: rankings by annotator; `unknown` where the table names none.
        dropped: what is left out; `rows_out` counts rows, and `completions_out` answers of rankings, by reason.
        first: the first `SHOWN` of what the rows became.
    """

    name: str
    path: str
    kind: str
    opened: bool = True
    problems: list[Problem] = field(default_factory=list)
    read: int = 0
    complete: bool = False
    parsed: int = 0
    merged: int = 0
    prompts: int = 0
    groups: dict[str, str] = field(default_factory=dict)
    asked: dict[str, Prompt] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    annotators: Counter[str] = field(default_factory=Counter)
    dropped: Dropped = field(default_factory=Dropped)
    first: list[Parsed] = field(default_factory=list)

    def describe(self) -> Iterator[str]:
        """Lines for the user: what was read and what it became, what was left out, and unused columns."""
        if not self.opened:
            yield f"{self.name}: {self.path} was not opened, since it is not a local file"
            return
        if self.problems and not self.parsed and not self.merged:
            yield f"{self.name}: {self.path}, {count_of(self.read, 'rows')} read, none of them usable"
            yield from self.lines
            return
        some = f"{'all' if self.complete else 'the first'} {count_of(self.read, 'rows')}"
        prompts = f" of {count_of(self.prompts, 'prompts')}" if self.kind in ("rankings", "demonstrations") else ""
        line = f"{self.name}: {self.path}, {some}: {count_of(self.parsed, self.kind)}{prompts}"
        if self.annotators:
            names = listed([f"{who} ({count:,})" for who, count in self.annotators.most_common()])
            line += f", by {names}"
        if self.merged:
            line += f"; {count_of(self.merged, 'merged rankings')}"
        yield line
        if line := self.dropped.line(self.name, self.kind, self.parsed):
            yield line
        yield from self.figures
        yield from self.lines


def kind_of(name: str, table: Table) -> str:
    """What the rows of the table `name` become."""
    if isinstance(table, RankingTableConfig):
        return "rankings"
    kinds = {"data.demonstrations": "demonstrations", "data.prompts": "prompts", "data.exclude": "prompts"}
    return kinds.get(name.partition("[")[0], "texts")


def check_table(name: str, table: Table, limit: int = ROWS) -> TableReport:
    """Reads the first `limit` rows of a table and reports what they hold and all that is wrong with them.

    Args:
        name: dotted path of the table in a recipe, one of those of `data.tables.mapping.tables_of`.
        table: what the recipe says about it. URLs and data sets on the Hub are not opened.

    Raises nothing for a wrong table or recipe; that is in `TableReport.problems`.
    """
    report = TableReport(name, shown(table.path), kind_of(name, table))
    tables = [(name, table), *joins_of(name, table)]
    sources = {at: path for dotted, each in tables for at, path in by_name(f"{dotted}.path", each.path).items()}
    if not all(map(is_local, sources.values())):
        report.opened = False
        return report
    files = {at: Path(path).expanduser() for at, path in sources.items()}
    report.problems += [_no_file(at, path) for at, path in files.items() if not path.exists()]
    if report.problems:
        return report
    rows, profile = [], Profile()
    try:
        for row in islice(read_table(table), limit + 1):
            rows.append(row)
            if not row.left_out:
                profile.add(row)
        report.complete = len(rows) <= limit
    except (DataError, RecipeError) as error:
        report.problems.append(Problem(error.what, "", error.where, error.hint))
    rows = rows[:limit]
    report.read, report.columns = len(rows), list(profile.columns)
    if not rows:
        return report
    lacking = [_nested(problem, profile) for problem in missing(name, table, report.columns)]
    if name == "data.demonstrations" and "prompt" in profile.columns and profile.columns["prompt"].keys:
        lacking = []  # a tree: answers are replies inside the prompt's cell
    report.problems += lacking
    report.unused = profile.unused(name, table)
    if not lacking:
        _parse(report, table, rows, profile)
        report.lines += usage_lines(name, table, profile)
    if not report.parsed:
        report.lines += _looks_like(name, table, rows, report.columns)
    return report


def _looks_like(name: str, table: Table, rows: Sequence[Row], columns: Sequence[str]) -> Iterator[str]:
    """A line about what a table looks like, where that is not what the recipe says."""
    if table.join is not None:  # the file alone looks otherwise
        return
    first = files_of(table.path)[0]
    try:
        guess = any_table(Sample(first, rows, columns))
    except DataError:
        return
    if replace(config_of(guess, first), path=table.path) != table:
        command = invocation.command("inspect", first)
        yield f"{name}: the table looks like {guess.looks}; `{command}` prints the section to paste"


def _nested(problem: Problem, profile: Profile) -> Problem:
    """The problem of a missing column, with a hint about columns inside the cells of another."""
    for column, about in profile.columns.items():
        if any(f"column {key!r}" in problem.what for key in about.keys):
            hint = (
                f"{column!r} holds objects with {listed(sorted(about.keys))}: write these as columns of the table"
            )
            return replace(problem, hint=hint)
    return problem


def _no_file(key: str, path: Path) -> Problem:
    near = nearest(path)
    hint = f"did you mean {near}? " if near else ""
    return Problem(
        f"{key}: there is no file or folder {path}",
        key,
        "",
        f"{hint}paths are relative to the working directory",
    )


def _parse(report: TableReport, table: Table, rows: Sequence[Row], profile: Profile) -> None:
    """Reads the rows again after each one with a problem, without it."""
    left = list(rows)
    wrong: list[DataError | RecipeError] = []
    while True:
        with ExitStack() as opened:
            repeated = None
            if isinstance(table, RankingTableConfig) and report.name != "reward.pretrain_on":
                repeated = opened.enter_context(repeats(report.name, table, profile))
            figures = None
            if isinstance(table, RankingTableConfig):
                figures = opened.enter_context(summary(FirstWins.of(table)))
            dropped = Dropped()
            try:
                _count(report, parse(report.name, table, dropped, rows=left, repeats=repeated), figures)
            except (DataError, RecipeError) as error:
                row_at_fault = not isinstance(error, TableError)
                places = (place for place, row in enumerate(left) if row_at_fault and row.where == error.where)
                at = next(places, None)
                if at is not None and len(wrong) < MOST and len(left) > 1:
                    wrong.append(error)
                    del left[at]
                    continue
                if at is not None or not wrong:
                    wrong.append(error)
            else:
                if repeated is not None:
                    report.lines += repeated.lines()
            report.dropped = dropped
            report.figures = list(figures.lines(report.name, repeated)) if figures else []
            break
    report.problems += _grouped(report, table, wrong)


def parse(
    name: str,
    table: Table,
    dropped: Dropped,
    *,
    rows: Iterable[Row] | None = None,
    repeats: Repeats | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Parsed]:
    """What the rows of the table `name` become. `rows` are the table's, where they were read before; `repeats` and
    `say` as in `read_rankings`."""
    if isinstance(table, RankingTableConfig):
        yield from read_rankings(table, dropped, say, repeats, rows)
    elif name == "data.demonstrations":
        yield from read_demonstrations(table, 0.0, dropped, say, rows)
    elif kind_of(name, table) == "prompts":
        yield from read_prompts(table, 0.0, dropped, say, rows, name=name)
    else:
        yield from documents(table, 0, 0.0, dropped.counting(read_table(table, say) if rows is None else rows))


def _count(report: TableReport, parsed: Iterable[Parsed], figures: RankingSummary | None) -> None:
    """Counts what the rows become, in `report` and, of rankings, in `figures`."""
    report.parsed, report.merged, report.first, report.annotators = 0, 0, [], Counter()
    report.groups, report.asked = {}, {}
    try:
        for item in parsed:
            if isinstance(item, MergedRanking):
                report.merged += 1
            else:
                report.parsed += 1
                if report.parsed <= SHOWN:
                    report.first.append(item)
                if isinstance(item, Ranking):
                    report.annotators[item.annotator] += 1
                    if figures is not None:
                        figures.add(item)
            if not isinstance(item, tuple):
                key = prompt_key(item.prompt)
                report.groups[key] = group_of(item.prompt)
                report.asked.setdefault(key, Prompt(item.prompt, where=item.where))
    finally:
        report.prompts = len(report.groups)


def _grouped(report: TableReport, table: Table, errors: Sequence[DataError | RecipeError]) -> list[Problem]:
    """The problems behind a reader's errors; those that differ in the row only are one."""
    alike: dict[str, list[Any]] = {}
    for error in errors:
        signature = re.sub(r"(?<!\w)\d+(?!\w)", "", error.what.partition(", got")[0])
        alike.setdefault(signature, []).append(error)
    problems: list[Problem] = []
    for first, *more in alike.values():
        if isinstance(first, MissingColumn):
            problems += missing_in_row(report.name, table, first, report.columns)
            continue
        where = first.where
        if more:
            where += f", and {count_of(len(more), 'other rows')}: {listed([error.where for error in more], 3)}"
        key = f"{report.name}.columns" if isinstance(first, RecipeError) else ""
        problems.append(Problem(first.what, key, where, first.hint))
    if len(errors) > MOST:
        last = problems[-1]
        problems[-1] = Problem(last.what, last.key, last.where, f"{last.hint} (later rows were not checked)")
    return problems
