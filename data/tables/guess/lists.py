"""Tables whose answers are in one cell per row: a list, or an object with one answer per system."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from data.tables.guess.families import (
    COMPLETION_WORDS,
    PREFERENCE_WORDS,
    RANK_WORDS,
    RATING_WORDS,
    families,
    order_of,
)
from data.tables.guess.guess import Guess, Open, choose_annotator, choose_prompt, finish
from data.tables.guess.orders import (
    ORDER_WORDS,
    SORTED_WORDS,
    WORST_WORDS,
    labels_of_each,
    order_of_cells,
)
from data.tables.guess.sample import Sample, as_finite, named
from data.tables.spelling import spelled
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
    objects = [column for column in objects if _texts_of(lists[column])]
    for columns in (objects, texts):
        known = [column for column in columns if set(words_of(column)) & LISTS] or columns[: len(columns) == 1]
        if known:
            column = known[0]
            items = [item for row in lists[column] for item in row]
            others = [name for name in sample.columns if name != column and not name.startswith(f"{column}[*]")]
            guess = Guess("scored", {"completions": column})
            if columns is objects:
                _objects(guess, [item for item in items if isinstance(item, dict)], lists[column])
            if columns is texts or guess.format == "choice":
                _beside(guess, sample, lists, others)
            choose_prompt(guess, sample, others)
            choose_annotator(guess, sample, others)
            return finish(guess, sample)
    return None


LISTS = {
    *COMPLETION_WORDS,
    *("completions", "responses", "answers", "replies", "outputs", "summaries", "candidates", "generations"),
}
"""Words of a column with several answers in a cell."""


def _texts_of(rows: Sequence[Sequence[Any]]) -> list[str]:
    """The keys, or paths, of objects that hold their text."""
    items = [dict(_flat(item)) for row in rows for item in row if isinstance(item, dict)]
    keys = list(dict.fromkeys(key for item in items for key in item))
    texts = [key for key in keys if all(isinstance(item.get(key), str | None) for item in items)]
    return [key for key in texts if key in ("text", "content", "body")] or named("completion", texts)


def _flat(item: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values of an object and of those inside it, by path."""
    for key, value in item.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + str(key), value


def keyed(sample: Sample) -> Guess | None:
    """`wide` with the answers in an object by system, `{"gpt": ..., "llama": ...}`."""
    objects = {}
    for column in sample.columns:
        cells = [
            spelled(cell) if isinstance(cell, str) and cell[:1] == "{" else cell for cell in sample.cells(column)
        ]
        if cells and all(isinstance(cell, dict) and len(cell) > 1 for cell in cells):
            objects[column] = cells
    for column, cells in objects.items():
        same = [
            other
            for other, values in objects.items()
            if other != column
            and [cell.keys() for cell in values] == [cell.keys() for cell in cells]
            and all(as_finite(value) is not None for cell in values for value in cell.values() if value is not None)
        ]
        rows = [[value for value in cell.values() if value is not None] for cell in cells]
        if not (same or set(words_of(column)) & LISTS):
            continue
        guess = Guess(
            "wide", {"completions": f"{column}.*"}, why={"completions": "an object with an answer per system"}
        )
        if all(isinstance(value, dict) for row in rows for value in row):
            if not (text := _texts_of(rows)[:1]):
                continue
            guess.columns["completions"] = f"{column}.*.{text[0]}"
            _keyed_order(guess, {f"{column}.*.{key}": numbers for key, numbers in _numbers_of(rows).items()})
        elif all(isinstance(value, str) for row in rows for value in row):
            _keyed_order(
                guess,
                {f"{other}.*": [[float(v) for v in cell.values() if v is not None] for cell in objects[other]]
                 for other in same},
            )  # fmt: skip
        else:
            continue
        others = [name for name in sample.columns if name.partition(".")[0] not in objects]
        if not ({"ratings", "ranks"} & guess.columns.keys() or guess.open) and not order_of_cells(
            guess, replace(sample, columns=others), max(map(len, rows))
        ):
            why = "nothing orders the answers"
            guess.open.append(Open("ratings or ranks: the path of an object with a number per system", why))
        choose_prompt(guess, sample, others)
        choose_annotator(guess, sample, others)
        return finish(guess, sample)
    return None


def _numbers_of(rows: Sequence[Sequence[Any]]) -> dict[str, list[list[float]]]:
    """The keys, or paths, of objects that hold numbers, and the numbers of each row."""
    flat = [[dict(_flat(item)) for item in row] for row in rows]
    keys = dict.fromkeys(key for row in flat for item in row for key in item)
    numbers = {}
    for key in keys:
        cells = [[item[key] for item in row if item.get(key) is not None] for row in flat]
        if any(cells) and all(as_finite(cell) is not None for row in cells for cell in row):
            numbers[key] = [[float(cell) for cell in row] for row in cells]
    return numbers


def _keyed_order(guess: Guess, numbers: dict[str, list[list[float]]]) -> None:
    called = [path for path in numbers if set(words_of(path.rpartition("*")[2] or path)) & NUMBERS] or [
        path for path in numbers if set(words_of(path)) & NUMBERS
    ]
    candidates = called or list(numbers)
    if len(candidates) > 1:
        guess.leave_open(("ratings", "ranks"), candidates, "several numbers may order the answers")
    for path in candidates if len(candidates) == 1 else ():
        words = [*words_of(path), *(word.rstrip("s") for word in words_of(path))]
        kind, why = order_of(words, numbers[path], path)
        if kind is None:
            guess.leave_open(("ratings", "ranks"), [path], why)
        else:
            guess.columns[kind] = path
            guess.why[kind] = why


NUMBERS = RANK_WORDS | RATING_WORDS | {"scores"}


def _objects(guess: Guess, items: Sequence[dict[str, Any]], rows: Sequence[Sequence[Any]]) -> None:
    """The keys of scored objects. Without a key that orders them the table is a `choice`."""
    items = [dict(_flat(item)) for item in items]
    keys = list(dict.fromkeys(key for item in items for key in item))
    texts = [key for key in keys if all(isinstance(item.get(key), str | None) for item in items)]
    numbers = list(_numbers_of([items]))
    text = _texts_of(rows)
    guess.choose("text", text)
    models = named("model", [key for key in texts if key not in text])
    guess.choose("model", models[:1])
    orders = [key for key in numbers if set(words_of(key)) & (RANK_WORDS | RATING_WORDS)]
    overall = [key for key in orders if "overall" in words_of(key)]
    candidates = [key for key in ("score", "rank") if key in orders] or overall or orders or numbers
    if len(candidates) == 1:
        [key] = candidates
        groups = _numbers_of([[item for item in row if isinstance(item, dict)] for row in rows])[key]
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
    column_of_texts = str(guess.columns["completions"])
    numeric = {
        column: [[number for item in row if (number := as_finite(item)) is not None] for row in rows]
        for column, rows in lists.items()
        if column in others and any(as_finite(item) is not None for row in rows for item in row)
    }
    known = [
        column for column in numeric if set(words_of(column)) & (RANK_WORDS | RATING_WORDS | {"scores"})
    ] or list(numeric)
    if len(known) == 1 and guess.format == "scored":
        if _is_order(known[0], lists[column_of_texts], numeric[known[0]]):
            _order_or_ranks(guess, known[0], numeric[known[0]])
            return
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
    k = max(map(len, lists[column_of_texts]))
    wide = Guess("wide", {"completions": _list_of_texts(guess)})
    places = [
        column
        for column in others
        if set(words_of(column)) & (PREFERENCE_WORDS | {"chosen"}) and sample.numbers(column)
    ]
    unplaced = [c for c in others if min(sample.numbers(c) or [-1]) < 0]  # a place is 0 or more
    if places:  # the other columns must be named like what orders the answers
        unplaced = [c for c in unplaced if set(words_of(c)) & (ORDER_WORDS | PREFERENCE_WORDS)]
    free = replace(sample, columns=unplaced)
    if labels_of_each(wide, sample, [f for f in families(others) if len(f.members) == k]) or order_of_cells(
        wide, free, k
    ):
        guess.format, guess.columns, guess.values = "wide", wide.columns, wide.values
        guess.why, guess.notes, guess.open = wide.why, wide.notes, wide.open
        return
    if len(places) != 1:
        why = (
            "no single column says which answer is best. If it is always the first of two, use format: pairs with "
            f"columns: {{chosen: {column_of_texts}[0], rejected: {column_of_texts}[1]}}"
        )
        if places:
            guess.leave_open("choice", places, why)
        else:
            guess.open.append(Open("choice: the column with the place of the best answer, from 0", why))
        return
    [column] = places
    guess.columns["choice"] = column
    worst = [c for c in others if c not in places and set(words_of(c)) & WORST_WORDS and sample.numbers(c)]
    if len(worst) == 1:
        guess.columns["worst"] = worst[0]
    counts = [len(row) for row in lists[column_of_texts]]
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


def _is_order(column: str, texts: Sequence[Sequence[Any]], rows: Sequence[Sequence[float]]) -> bool:
    """Whether lists of numbers may name the texts from best to worst, `[2, 0, 1]`: each has every place once, and
    the name does not say that they are the texts' ranks."""
    words = set(words_of(column))
    once = all(
        sorted(row) in ([*range(len(row))], [*range(1, len(row) + 1)]) and len(row) == len(answers)
        for row, answers in zip(rows, texts, strict=False)
    )
    return bool(words & ORDER_WORDS - {"rank", "ranks"}) and once


def _order_or_ranks(guess: Guess, column: str, rows: Sequence[Sequence[float]]) -> None:
    """Reads a column as the order of the answers, or leaves open whether it holds their ranks."""
    guess.format = "wide"
    start = int(min(map(min, rows)))
    if set(words_of(column)) & SORTED_WORDS:
        guess.columns["order"] = column
        guess.why["order"] = "the places of the answers, from best to worst"
        guess.values["index_from"] = start
    else:
        why = (
            f"{rows[0]} may name the answers from best to worst, or give each answer's rank (with order, add "
            f"index_from: {start})".replace(".0", "")
        )
        guess.leave_open(("order", "ranks"), [column], why)


def _list_of_texts(guess: Guess) -> str:
    """The path of the texts in a list of completions."""
    column, text = guess.columns["completions"], guess.columns.get("text")
    return f"{column}[*].{text}" if text else str(column)
