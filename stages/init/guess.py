"""Which format a table has, and which of its columns hold what.

A guess says why. What cannot be decided is left open, with a recipe line to fill in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from data.tables import suggest
from data.tables.formats import FORMATS
from pipeline.errors import DataError
from stages.init.families import COMPLETION_WORDS
from stages.init.sample import Sample, annotator_in, named

FORMATS_PAGE = "docs/rankings/formats.md"


@dataclass(frozen=True)
class Open:
    """A value that a person must decide.

    Attributes:
        line: the recipe's line to fill in, of the table's section or of its `columns`.
        why: why it is open.
        in_columns: whether the line belongs into `columns`.
    """

    line: str
    why: str
    in_columns: bool = True


@dataclass
class Guess:
    """How a table is probably laid out.

    Attributes:
        format: of rankings; empty for demonstrations.
        columns: our name -> the table's, also where both are the same.
        labels, text_lists: as in a recipe.
        why: our name -> why this column, where it is not obvious.
        notes: what a person should look at.
    """

    format: str = ""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    text_lists: str = "refuse"
    why: dict[str, str] = field(default_factory=dict)
    open: list[Open] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def used(self) -> set[str]:
        """The table's columns that are read."""
        names = (value if isinstance(value, list) else [value] for value in self.columns.values())
        return {name for group in names for name in group}

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

    def leave_open(self, role: str, candidates: Sequence[str], why: str) -> None:
        self.open.append(Open(f"{role}: {' or '.join(candidates)}", why))


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


def demonstrations(sample: Sample) -> Guess:
    """The columns of a table of demonstrations. Raises `DataError` if none can be the prompt, or the answer."""
    guess = Guess()
    if any(is_tree(row.get("prompt")) for row in sample.rows):
        guess.columns["prompt"] = "prompt"
        guess.notes.append("trees of replies: the best reply to each message is the demonstration")
        return guess
    whole = [column for column in sample.columns if sample.holds_conversations(column, "assistant")]
    answers = [column for column in named("completion", sample.columns) if column not in whole] or [
        column for column in sample.texts(whole) if set(suggest.words_of(column)) & COMPLETION_WORDS
    ]
    if whole and not answers:
        guess.choose("messages", [column for column in whole if column in named("messages", whole)] or whole)
        guess.why["messages"] = "whole conversations that end with the assistant's turn"
        return finish(guess, sample)
    texts = sample.texts()
    guess.choose("prompt", [column for column in named("prompt", texts) if column not in answers])
    guess.choose("completion", [column for column in answers if column in texts and column not in guess.used()])
    for role, other in (("prompt", "completion"), ("completion", "prompt")):
        rest = [column for column in texts if column not in guess.used()]
        if not decided(guess, role) and other in guess.columns and rest:
            guess.choose_rest(role, rest)
    for role in ("prompt", "completion"):
        if not decided(guess, role):
            raise no_column(sample, role)
    return finish(guess, sample)


def decided(guess: Guess, role: str) -> bool:
    return role in guess.columns or any(item.line.startswith(f"{role}:") for item in guess.open)


def finish(guess: Guess, sample: Sample) -> Guess:
    """Adds the columns that are not used."""
    used = guess.used()
    guess.unused = [column for column in sample.columns if column not in used and sample.cells(column)]
    for column in guess.unused:
        if suggest.plain(column) in map(suggest.plain, suggest.SYNONYMS["prompt"]) and sample.is_text(column):
            rows = len(sample.cells(column))
            guess.notes.append(
                f"column {column} has text in {rows} rows and is not used: does it belong to the prompt?"
            )
    return guess
