"""Tables whose answers are in one list per row: the formats `scored` and `choice`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.tables.guess.families import COMPLETION_WORDS, PREFERENCE_WORDS, RANK_WORDS, RATING_WORDS, order_of
from data.tables.guess.guess import Guess, Open, choose_annotator, choose_prompt, finish
from data.tables.guess.sample import Sample, as_finite, named
from data.tables.suggest import words_of


def lists_in_cells(sample: Sample) -> Guess | None:
    """`scored` and `choice`: the completions of a row are a list."""
    lists = {
        column: rows for column in sample.columns if (rows := sample.lists(column)) and max(map(len, rows)) > 1
    }
    objects = [
        column for column, items in lists.items() if any(isinstance(item, dict) for row in items for item in row)
    ]
    texts = [
        column for column, items in lists.items() if any(isinstance(item, str) for row in items for item in row)
    ]
    names = (
        *COMPLETION_WORDS,
        "completions",
        "responses",
        "answers",
        "replies",
        "outputs",
        "summaries",
        "candidates",
    )
    for columns in (objects, texts):
        known = [column for column in columns if set(words_of(column)) & set(names)] or columns[: len(columns) == 1]
        if known:
            column = known[0]
            items = [item for row in lists[column] for item in row]
            others = [name for name in sample.columns if name != column]
            guess = Guess("scored", {"completions": column})
            if columns is objects:
                _objects(guess, [item for item in items if isinstance(item, dict)], lists[column])
            if columns is texts or guess.format == "choice":
                _beside(guess, sample, lists, others)
            choose_prompt(guess, sample, others)
            choose_annotator(guess, sample, others)
            return finish(guess, sample)
    return None


def _objects(guess: Guess, items: Sequence[dict[str, Any]], rows: Sequence[Sequence[Any]]) -> None:
    """The keys of scored objects. Without a key that orders them the table is a `choice`."""
    keys = list(dict.fromkeys(key for item in items for key in item))
    texts = [key for key in keys if all(isinstance(item.get(key), str | None) for item in items)]
    numbers = [
        key
        for key in keys
        if any(as_finite(item.get(key)) is not None for item in items)
        and all(item.get(key) is None or as_finite(item.get(key)) is not None for item in items)
    ]
    text = [key for key in texts if key in ("text", "content", "body")] or named("completion", texts)
    guess.choose("text", text)
    models = named("model", [key for key in texts if key not in text])
    guess.choose("model", models[:1])
    orders = [key for key in numbers if set(words_of(key)) & (RANK_WORDS | RATING_WORDS)]
    overall = [key for key in orders if "overall" in words_of(key)]
    candidates = [key for key in ("score", "rank") if key in orders] or overall or orders or numbers
    if len(candidates) == 1:
        [key] = candidates
        groups = [
            [number for item in row if isinstance(item, dict) and (number := as_finite(item.get(key))) is not None]
            for row in rows
        ]
        kind, why = order_of(words_of(key), groups, f"key {key}")
        ours = {"ranks": "rank", "ratings": "score"}.get(kind or "")
        if ours:
            guess.columns[ours] = key
            guess.why[ours] = why
        else:
            guess.leave_open(("score", "rank"), [key], why)
    elif candidates:
        guess.leave_open(("score", "rank"), candidates, "several numbers may order the answers")
    else:
        guess.format = "choice"


def _beside(guess: Guess, sample: Sample, lists: dict[str, list[list[Any]]], others: Sequence[str]) -> None:
    """What orders a list of texts: a list of numbers beside it, or the place of the best."""
    numeric = {
        column: [[number for item in row if (number := as_finite(item)) is not None] for row in rows]
        for column, rows in lists.items()
        if column in others and any(as_finite(item) is not None for row in rows for item in row)
    }
    known = [
        column for column in numeric if set(words_of(column)) & (RANK_WORDS | RATING_WORDS | {"scores"})
    ] or list(numeric)
    if len(known) == 1 and guess.format == "scored":
        kind, why = order_of(
            [*words_of(known[0]), *(word.rstrip("s") for word in words_of(known[0]))],
            numeric[known[0]],
            f"column {known[0]}",
        )
        if kind is None:
            guess.leave_open(("ratings", "ranks"), known, why)
        else:
            guess.columns[kind] = known[0]
            guess.why[kind] = why
        return
    if known and guess.format == "scored":
        guess.leave_open(("ratings", "ranks"), known, "several lists of numbers may order the answers")
        return
    guess.format = "choice"
    places = [
        column
        for column in others
        if set(words_of(column)) & (PREFERENCE_WORDS | {"chosen"}) and sample.numbers(column)
    ]
    if len(places) != 1:
        why = "no single column says which answer is best"
        if places:
            guess.leave_open("choice", places, why)
        else:
            guess.open.append(Open("choice: the column with the place of the best answer, from 0", why))
        return
    [column] = places
    guess.columns["choice"] = column
    counts = [len(row) for row in lists[str(guess.columns["completions"])]]
    numbers = sample.numbers(column) or []
    if max(numbers) >= max(counts):
        two = max(counts) == 2
        line = "labels: {1: first, 2: second}" if two else "choice: a column that counts from 0"
        why = f"column {column} counts from 1, and `choice` is a place from 0"
        guess.open.append(Open(line, why, in_columns=not two, choices=(line,) * two))
    elif 0 not in numbers:
        guess.open.append(Open(f"choice: {column}", f"no row of column {column} is 0: it must count from 0"))
    else:
        guess.why["choice"] = "the place of the best, from 0"
