"""What a table is; of a table of rankings the format and the columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.tables.guess.families import (
    COMPLETION_WORDS,
    MODEL_WORDS,
    OTHER_WORDS,
    PREFERENCE_WORDS,
    RANK_WORDS,
    RATING_WORDS,
    Family,
    Order,
    families,
    order_of,
    rankings_of,
)
from data.tables.guess.guess import (
    FORMATS_PAGE,
    Guess,
    Open,
    choose_annotator,
    choose_prompt,
    decided,
    finish,
    is_tree,
    quoted_names,
)
from data.tables.guess.lists import lists_in_cells
from data.tables.guess.sample import Sample, as_finite, named
from data.tables.guess.schemas import known
from data.tables.guess.texts import demonstrations, prompts_or_text
from data.tables.guess.tools import argilla, label_studio
from data.tables.labels import WORDS
from data.tables.suggest import listed, plain, words_of
from pipeline.errors import DataError


class NoFormat(DataError):
    """A table that looks like no format of rankings."""


def any_table(sample: Sample) -> Guess:
    """What a table is, and its columns. Raises `DataError` if nothing that a recipe can name."""
    try:
        guess = rankings(sample)
        if (
            guess.format != "long"
            or {"rating", "rank"} & guess.columns.keys()
            or any(i.choices for i in guess.open)
        ):
            return guess
    except NoFormat:
        pass
    try:
        return demonstrations(sample)
    except DataError:
        return prompts_or_text(sample)


def rankings(sample: Sample) -> Guess:
    """The format and the columns of a table of rankings. Raises `DataError` if it looks like none, or like one that
    lacks a column."""
    for attempt in (known, label_studio, argilla, _native, _tree, lists_in_cells, _pairs, _wide, _long):
        guess = attempt(sample)
        if guess is not None:
            return guess
    raise NoFormat(
        "the table looks like no format of rankings: it needs answers in several columns, in one list, or in one "
        "row each, and what orders them",
        where=sample.path,
        hint=f"its columns are {listed(sample.columns)}; {FORMATS_PAGE} shows an example of each format",
    )


def _native(sample: Sample) -> Guess | None:
    ours = ("prompt", "completions", "ranks", "annotator", "human")
    if not set(ours) <= set(sample.columns):
        return None
    return Guess("native", why={"format": "the columns are those that `tutelage export-rankings` writes"})


def _tree(sample: Sample) -> Guess | None:
    column = next((name for name in sample.columns if any(map(is_tree, sample.cells(name)))), None)
    if column is None:
        return None
    return Guess("tree", {"prompt": column}, why={"format": "messages with nested replies"})


def _pairs(sample: Sample) -> Guess | None:
    chosen, rejected = (named(name, sample.columns) for name in ("chosen", "rejected"))
    if not chosen or not rejected or not all(map(sample.is_text, (chosen[0], rejected[0]))):
        return None
    guess = Guess("pairs", {"chosen": chosen[0], "rejected": rejected[0]})
    for ours in ("chosen_rating", "rejected_rating"):
        side = ours.removesuffix("_rating")
        scores = [
            column
            for column in sample.columns
            if side in words_of(column)
            and set(words_of(column)) & RATING_WORDS
            and sample.numbers(column) is not None
        ]
        if len(scores) == 1:
            guess.columns[ours] = scores[0]
    if len(guess.columns) == 3:  # a rating of one side alone says nothing
        guess.columns.popitem()
    if "margin" in sample.columns and sample.numbers("margin") is not None and "chosen_rating" not in guess.columns:
        guess.columns["margin"] = "margin"
    whole = all(sample.holds_conversations(column, "assistant") for column in (chosen[0], rejected[0]))
    choose_prompt(guess, sample, [column for column in sample.columns if column != "messages"], optional=whole)
    choose_annotator(guess, sample, sample.columns)
    return finish(guess, sample)


def _wide(sample: Sample) -> Guess | None:
    groups = families(sample.columns)
    texts = [family for family in groups if sample.are_texts(family.columns)]
    models = [family for family in texts if family.is_called(MODEL_WORDS)]
    texts = [family for family in texts if family not in models]
    answers = [family for family in texts if family.is_called(COMPLETION_WORDS)] or texts
    if not answers:
        return None
    answers.sort(key=lambda family: -sum(map(sample.width, family.columns)))
    completions = answers[0]
    guess = Guess("wide", {"completions": completions.columns})
    for family in models:
        if family.members.keys() == completions.members.keys():
            guess.columns["models"] = family.columns
    if sample.spells_lists(completions.columns):
        guess.text_lists = "unwrap"
        guess.notes.append("the cells spell lists of one text, which are unwrapped (text_lists)")
    _order_of_columns(guess, sample, groups, completions)
    choose_prompt(guess, sample, sample.columns)
    choose_annotator(guess, sample, sample.columns)
    return finish(guess, sample)


def _order_of_columns(guess: Guess, sample: Sample, groups: Sequence[Family], completions: Family) -> None:
    """What orders the completions of a wide table: a family of numbers, or one column of labels."""
    numbers = [
        family
        for family in groups
        if family.members.keys() == completions.members.keys()
        and not family.is_called(OTHER_WORDS)
        and sample.are_numbers(family.columns)
    ]
    best = [family for family in numbers if family.is_called(RANK_WORDS | RATING_WORDS)]
    candidates = best or numbers
    if len(candidates) > 1:
        names = [" ".join(family.words) for family in candidates]
        lists = [family.columns for family in candidates]
        guess.leave_open(("ratings", "ranks"), lists, f"{' and '.join(names)} may both order the answers")
    elif candidates:
        [family] = candidates
        where = f"{family.columns[0]} to {family.columns[-1]}"
        kind, why = order_of(family.words, rankings_of(sample, family, completions), where)
        if kind is None:
            guess.leave_open(("ratings", "ranks"), [family.columns], why)
        else:
            guess.columns[kind] = family.columns
            guess.why[kind] = why
    elif len(completions.members) == 2:
        _preference(guess, sample)
    else:
        guess.open.append(
            Open(
                "ratings or ranks: [one column for each answer]",
                f"no columns of numbers go with {', '.join(completions.columns)}, so nothing orders the answers",
            )
        )


def _preference(guess: Guess, sample: Sample) -> None:
    """The column that says which of two completions is better."""
    columns = [
        column
        for column in sample.columns
        if column not in guess.used() and set(words_of(column)) & PREFERENCE_WORDS and sample.cells(column)
    ]
    readable = [column for column in columns if _are_labels(sample, column, guess.columns["completions"])]
    if len(readable) > 1:
        readable = [column for column in readable if sample.numbers(column) is not None] or readable
    if len(readable) == 1:
        guess.columns["preference"] = readable[0]
        numeric = sample.numbers(readable[0]) is not None
        guess.why["preference"] = (
            "below 0 the first is better, above 0 the second" if numeric else "it names the better answer"
        )
    elif len(columns) == 1:
        guess.columns["preference"] = columns[0]
        ask_labels(guess, columns[0], sample.cells(columns[0]))
    elif candidates := readable or columns:
        guess.leave_open("preference", candidates, "several columns may say which answer is better")
    else:
        why = "no column of numbers or labels says which answer is better"
        guess.open.append(Open("preference: the column that says which answer is better", why))


def ask_labels(guess: Guess, column: str, cells: Sequence[Any]) -> None:
    """Leaves open what the values of a column of labels mean."""
    values = sorted({str(cell) for cell in cells if not isinstance(cell, list | dict)})[:4]
    example = ", ".join(f"{value}: first, second or tie" for value in values)
    keys = [quoted_names(value) if as_finite(value) is None else value for value in values]
    meanings = {
        2: ("first second", "second first"),
        3: ("tie first second", "first second tie", "first tie second"),
    }
    pairs = (zip(keys, order.split(), strict=True) for order in meanings.get(len(values), ()))
    guess.open.append(
        Open(
            f"labels: {{{example}}}",
            f"column {column} does not say which answer its values {', '.join(values)} prefer",
            in_columns=False,
            choices=tuple(f"labels: {{{', '.join(f'{key}: {verdict}' for key, verdict in row)}}}" for row in pairs),
        )
    )


def _are_labels(sample: Sample, column: str, completions: str | list[str]) -> bool:
    """Whether the reader of labels knows the values: words for the two answers, or numbers of both signs."""
    cells = sample.cells(column)
    known = {word for group in WORDS.values() for word in group} | {name.casefold() for name in completions}
    if all(isinstance(cell, str) and cell.strip().casefold() in known for cell in cells):
        return True
    numbers = sample.numbers(column)
    return numbers is not None and min(numbers) < 0 < max(numbers)


def _long(sample: Sample) -> Guess | None:
    texts = sample.texts()
    answers = [column for column in named("completion", texts) if column not in named("prompt", texts)]
    if not answers:
        return None
    guess = Guess("long")
    guess.choose("completion", answers)
    choose_prompt(guess, sample, [column for column in sample.columns if column not in answers], optional=True)
    if not decided(guess, "prompt"):
        return None
    prompts = [str(row.get(str(guess.columns.get("prompt")))) for row in sample.rows]
    if "prompt" in guess.columns and len(set(prompts)) == len(prompts):
        return None  # no prompt has two answers
    choose_annotator(guess, sample, sample.columns)
    for role in ("model", "group"):
        rest = [column for column in sample.columns if column not in guess.used()]
        guess.choose(role, [column for column in named(role, rest) if column not in texts or role == "model"][:1])
    rest = [column for column in sample.columns if column not in guess.used()]
    numbers = [
        column
        for column in rest
        if sample.numbers(column) is not None and not set(words_of(column)) & (OTHER_WORDS - {"overall"})
    ]
    _order_of_rows(guess, sample, numbers)
    return finish(guess, sample)


def _order_of_rows(guess: Guess, sample: Sample, numbers: Sequence[str]) -> None:
    """What orders the rows of a long table."""
    called = [column for column in numbers if named("rank", [column]) or named("rating", [column])]
    candidates = called or numbers
    if not candidates:
        why = "no column of numbers orders the answers"
        guess.open.append(Open("rating or rank: the column that orders the answers", why))
        return
    keys = [str(guess.columns[name]) for name in ("prompt", "annotator") if name in guess.columns]
    orders = {column: _order_of(column, sample, keys) for column in candidates}
    if len(candidates) > 1:
        kinds = [kind[:-1] for kind, _ in orders.values() if kind] or ["rating", "rank"]
        why = "several columns of numbers may order the answers"
        guess.leave_open(list(dict.fromkeys(kinds)), candidates, why)
        return
    [(column, (kind, why))] = orders.items()
    if kind is None:
        guess.leave_open(("rating", "rank"), [column], why)
    else:
        guess.columns[kind[:-1]] = column
        guess.why[kind[:-1]] = why


def _order_of(column: str, sample: Sample, keys: Sequence[str]) -> tuple[Order | None, str]:
    """`order_of` a column, whose rankings are the rows that are alike in the columns `keys`."""
    groups: dict[str, list[float]] = {}
    for row in sample.rows:
        number = as_finite(row.get(column))
        if number is not None:
            groups.setdefault(repr([row.get(key) for key in keys]), []).append(number)
    return order_of([*words_of(column), plain(column)], groups.values(), f"column {column}")
