"""What the columns of a table hold, from its first rows, and which unused ones a recipe may have meant to name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from data.tables import suggest
from data.tables.mapping import Table, format_of, paste, read_columns
from data.tables.paths import is_template
from data.tables.sources import Row, is_empty

ROWS = 1000
"""Rows from which a profile is made."""
SHORT = 40
"""Characters of a name; annotators, models and labels are not longer."""
LONG = 80
"""Characters from which a text is long, on average."""
MANY = 200
"""Distinct values of a column that are counted."""

METADATA = frozenset({
    "split", "subset", "source", "dataset", "domain", "topic", "category", "categories", "kategorie",
    "thema", "language", "lang", "sprache", "type", "typ", "task", "model", "system", "version", "batch",
    "date", "datum", "time", "timestamp", "created", "updated", "license", "licence", "country", "city",
    "region", "gender", "age", "status", "state", "difficulty", "label", "labels", "tag", "tags", "style",
    "level", "stage", "phase", "format", "locale", "url", "file", "path", "channel", "group", "hash",
    "seed", "unit", "platform", "device", "tool", "environment", "department", "team", "season", "color",
})  # fmt: skip
"""Words for what describes a row rather than who ranked it."""


class ColumnProfile:
    """The values of one column.

    Attributes:
        filled: cells that are not empty; `numbers` and `nested` (lists and objects) are among them.
        characters: of all cells that are not nested.
        values: how often each short text, or start of a long one, occurs.
        keys: of the objects.
    """

    def __init__(self) -> None:
        self.filled = self.numbers = self.nested = self.characters = 0
        self.values: Counter[str] = Counter()
        self.keys: set[str] = set()

    def add(self, value: Any) -> None:
        if is_empty(value):
            return
        self.filled += 1
        if isinstance(value, list | dict):
            self.nested += 1
            if isinstance(value, dict) and len(self.keys) < MANY:
                self.keys.update(value)
            return
        text = str(value).strip()
        self.characters += len(text)
        self.numbers += bool(re.fullmatch(r"[+-]?\d+(?:[.,]\d+)?", text))
        if text[: SHORT + 1] in self.values or len(self.values) < MANY:
            self.values[text[: SHORT + 1]] += 1

    @property
    def is_text(self) -> bool:
        """Whether it holds long texts."""
        return bool(self.filled) and not self.nested and self.characters / self.filled >= LONG

    @property
    def is_short(self) -> bool:
        return bool(self.values) and not self.nested and all(len(value) <= SHORT for value in self.values)

    @property
    def repeats(self) -> bool:
        """Whether it holds few distinct values, each in several rows."""
        return len(self.values) >= 2 and self.filled >= 2 * len(self.values) and len(self.values) < MANY

    @property
    def names_people(self) -> bool:
        """Whether the values may be names: short words that several rows share."""
        return (
            self.is_short
            and self.repeats
            and not self.numbers
            and not {value.casefold() for value in self.values} <= _FLAGS
            and not any(re.search(r"\d{4}-\d\d|://|/", value) for value in self.values)
            and max(len(value.split()) for value in self.values) <= 3
        )


_FLAGS = frozenset({
    "true", "false", "yes", "no", "y", "n", "ja", "nein", "none", "null", "left", "right", "first",
    "second", "tie", "both", "a", "b",
})  # fmt: skip


class Profile:
    """The first rows of a table, by column."""

    def __init__(self) -> None:
        self.rows = 0
        self.columns: dict[str, ColumnProfile] = {}

    def add(self, row: Row) -> None:
        if self.rows >= ROWS:
            return
        self.rows += 1
        for name, value in row.items():
            if name not in self.columns:
                self.columns[name] = ColumnProfile()
            self.columns[name].add(value)

    def unused(self, name: str, table: Table) -> list[str]:
        """The columns that the reader of the table `name` (a dotted path) does not use."""
        used = read_columns(name, table, self.columns)
        return [column for column in self.columns if column not in used]

    def annotators(self, name: str, table: Table) -> list[str]:
        """The unused columns that probably tell who ranked, the likeliest first; none where the recipe or the table
        names the annotators, or where the format cannot."""
        roles = {column.name for column in format_of(name, table).columns}
        if "annotator" not in roles or "annotator" in {*table.columns, *self.columns}:
            return []
        unused = self.unused(name, table)
        called = [c for c in unused if suggest.is_called("annotator", c) and self._may_be_annotator(c)]
        alike = [
            c
            for c in unused
            if c not in called
            and self.columns[c].names_people
            and not METADATA & set(suggest.words_of(c))
            and suggest.role_of(c) in (None, "annotator")
        ]
        return called + alike

    def _may_be_annotator(self, column: str) -> bool:
        profile = self.columns[column]
        return profile.is_short and not re.search(r"(?i)comment|text|turn|prompt", column)


def questions(name: str, table: Table, profile: Profile) -> Iterator[tuple[list[str], str]]:
    """The unused columns that look like something the recipe could name, each with a line that asks about it."""
    unused = profile.unused(name, table)
    asked: set[str] = set()
    if annotators := profile.annotators(name, table)[:1]:
        asked.update(annotators)
        hint = f"If it names who ranked, set {paste(name, {'annotator': annotators[0]})}"
        yield annotators, f"{name}: column {annotators[0]!r} is not used. {hint}"
    for members, line in _of_series(name, table, unused):
        asked.update(members)
        yield members, line
    if members := _orders(table, unused):
        ours = "ranks" if suggest.is_called("rank", suggest.stem(members[0])) else "ratings"
        asked.update(members)
        hint = f"If they hold the {ours}, set {paste(name, {ours: members})}"
        yield members, f"{name}: columns {' and '.join(map(repr, members))} are not used. {hint}"
    form = format_of(name, table)
    named = {*table.columns, *profile.columns}
    for column in form.columns:
        ours = column.name
        rivals = {other for group in form.alternatives if ours in group for other in group}
        if ours not in MEANINGS or named & {ours, *rivals}:
            continue
        for other in unused:
            about = profile.columns[other]
            if other not in asked and about.numbers == about.filled > 0 and suggest.is_called(ours, other):
                asked.add(other)
                hint = f"If it {MEANINGS[ours]}, set {paste(name, {ours: other})}"
                yield [other], f"{name}: column {other!r} is not used. {hint}"
                break
    may_name = {column.name for column in form.columns} - table.columns.keys()
    for other in unused:
        about = profile.columns[other]
        before = suggest.before_the_prompt(other, about.values, nested=bool(about.nested))
        if before and before in may_name and other not in asked:
            asked.add(other)
            hint = f"If it holds {BEFORE[before]}, set {paste(name, {before: other})}"
            yield [other], f"{name}: column {other!r} is not used. {hint}"
    if name == "data.demonstrations":
        for other in unused:
            about = profile.columns[other]
            if other not in asked and not about.nested and about.filled and _may_be_prompt(other, about):
                prompt = str(table.columns.get("prompt", "prompt"))
                both = f"{prompt if is_template(prompt) else f'{{{prompt}}}'}\n{{{other}}}"
                hint = f"If it belongs to the prompt, set {paste(name, {'prompt': both})}"
                yield [other], f"{name}: column {other!r} holds text and is not used. {hint}"


MEANINGS = {
    "rank": "ranks the answers",
    "rating": "rates the answers",
    "margin": "says by how much the chosen answer is better",
    "chosen_rating": "rates the chosen answer",
    "rejected_rating": "rates the rejected answer",
}
"""Our names of numbers -> what a column of them does."""


BEFORE = {"system": "the system message", "history": "earlier turns of the conversation"}
"""Our names of what comes before a prompt -> what a column of it holds."""


def _may_be_prompt(column: str, about: ColumnProfile) -> bool:
    called = any(suggest.is_called(role, column) for role in ("prompt", "completion"))
    return about.is_text or (called and not about.numbers)


def _orders(table: Table, unused: Sequence[str]) -> list[str]:
    """Unused columns that rank or rate the completions of a wide table, where the recipe names none."""
    answers = table.columns.get("completions")
    orders = {"ranks", "ratings", "preference", "best", "worst", "order", "question"}
    if not isinstance(answers, list) or orders & table.columns.keys():
        return []
    named = {stem: members for stem, members in suggest.series(unused).items() if len(members) == len(answers)}
    called = (stem for stem in named if suggest.is_called("rank", stem) or suggest.is_called("rating", stem))
    return next((named[stem] for stem in called), [])


def _of_series(name: str, table: Table, unused: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Unused columns that continue lists which the recipe names: `reply_4` after [reply_1, reply_2, reply_3]."""
    longer: dict[str, list[str]] = {}
    members: list[str] = []
    for ours, value in table.columns.items():
        stems = {suggest.stem(column) for column in value} if isinstance(value, list) else set()
        more = [column for column in unused if suggest.stem(column) in stems - {""}]
        if more and len(stems) == 1:
            longer[ours] = [*value, *more]
            members += more
    if longer:
        several = len(members) > 1
        verbs = ("columns", "are", "they continue") if several else ("column", "is", "it continues")
        shown = " and ".join(map(repr, members))
        hint = f"If {verbs[2]} those that are named, set {paste(name, longer)}"
        yield members, f"{name}: {verbs[0]} {shown} {verbs[1]} not used. {hint}"


def usage_lines(name: str, table: Table, profile: Profile) -> Iterator[str]:
    """Lines for the user about the columns that are not used: a question about each that looks like something the
    recipe could name, and one line with the others."""
    asked: set[str] = set()
    for columns, line in questions(name, table, profile):
        asked.update(columns)
        yield line
    rest = [column for column in profile.unused(name, table) if column not in asked]
    if rest:
        shown = [f"{column} (long text)" if profile.columns[column].is_text else column for column in rest]
        yield f"{name}: {'also ' if asked else ''}not used: {suggest.listed(shown)}"
