"""One column that orders the answers of a row: a label, the best and the worst, all in order, or a label for each
pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

from data.tables.columns import Columns, key_of
from data.tables.formats import FORMATS
from data.tables.guess.families import PREFERENCE_WORDS, RATING_WORDS, Family
from data.tables.guess.guess import Guess, Open, quoted_names
from data.tables.guess.sample import Sample, as_finite, as_items
from data.tables.labels import Labels
from data.tables.per_annotator import as_values
from data.tables.places import levels
from data.tables.sources import is_empty
from data.tables.spelling import numbers_in
from data.tables.suggest import words_of
from pipeline.config.data import RankingTableConfig
from pipeline.errors import DataError

BEST_WORDS, WORST_WORDS = {"best", "most", "top"}, {"worst", "least", "bottom"}
SHORT = 20
"""Characters of a label, on average, in a column that is not named like one."""
SORTED_WORDS = {"order", "ordering", "sorted", "permutation"}
"""Words of a column that names the answers from best to worst."""
ORDER_WORDS = {*SORTED_WORDS, "ranking", "rank", "ranks", "preference"}


def order_of_cells(guess: Guess, sample: Sample, k: int) -> bool:
    """Adds the column that orders the `k` answers of a row to a guess of the format `wide`, or leaves open which it
    is or what its values mean. Returns whether there is one."""
    unused = [column for column in sample.columns if column not in guess.used() and sample.cells(column)]
    free = [column for column in unused if not any(isinstance(cell, dict) for cell in sample.cells(column))]
    if _best_and_worst(guess, sample, free, k) or _in_order(guess, sample, free, k):
        return True
    return _labels_of_pairs(guess, sample, free, k) if k > 2 else _preference(guess, sample, free)


def _best_and_worst(guess: Guess, sample: Sample, free: Sequence[str], k: int) -> bool:
    """Columns named like the best or the worst, with cells that name an answer; of two answers, both of them."""
    known = _names(guess, k)
    places = [column for column in free if {key_of(cell) for cell in sample.cells(column)} <= known]
    called = BEST_WORDS | PREFERENCE_WORDS if k > 2 else BEST_WORDS
    best, worst = (
        [column for column in places if set(words_of(column)) & words] for words in (called, WORST_WORDS)
    )
    if len(best) > 1 or len(worst) > 1 or not (best or worst) or (k == 2 and not (best and worst)):
        return False
    guess.columns |= {ours: columns[0] for ours, columns in (("best", best), ("worst", worst)) if columns}
    _ask_start(guess, [number for column in best + worst for number in sample.numbers(column) or []], k)
    return True


def _in_order(guess: Guess, sample: Sample, free: Sequence[str], k: int) -> bool:
    """The only column whose cells name several answers each, in an order."""
    known = _names(guess, k)
    found = []
    for column in free:
        names = [[key_of(name) for level in levels(cell) for name in level] for cell in sample.cells(column)]
        called = bool(set(words_of(column)) & ORDER_WORDS)
        if called and all(2 <= len(some) == len(set(some)) and set(some) <= known for some in names):
            found.append((column, names))
    if len(found) != 1:
        return False
    [(column, names)] = found
    numbers = [float(name) for some in names for name in some if name.isdigit()]
    if _may_be_ranks(sample, column, numbers, k):
        first = f"with order, add index_from: {min(numbers):.0f}"
        shown = sample.cells(column)[0]
        why = f"{shown!r:.30} may name the answers from best to worst, or give each answer's place ({first})"
        guess.leave_open(("order", "ranks"), [column], why)
        return True
    if numbers and (k == 2 or all(as_items(cell) is not None for cell in sample.cells(column))):
        return False  # a list of numbers may as well be the answers' ranks
    guess.columns["order"] = column
    guess.why["order"] = "it names the answers from best to worst"
    _ask_start(guess, numbers, k)
    return True


def _may_be_ranks(sample: Sample, column: str, numbers: Sequence[float], k: int) -> bool:
    """Whether the cells hold one number per answer, which the column's name does not explain."""
    cells = sample.cells(column)
    explained = bool(set(words_of(column)) & SORTED_WORDS)
    listed = all(len(numbers_in(cell) or as_items(cell) or ()) == k for cell in cells)
    return listed and not explained and set(numbers) in (set(range(k)), set(range(1, k + 1)))


def _names(guess: Guess, k: int) -> set[str]:
    """What a cell may call the answers: their columns, letters or numbers."""
    completions = guess.columns["completions"]
    columns = [name.casefold() for name in completions] if isinstance(completions, list) else []
    return {*columns, *(chr(ord("a") + place) for place in range(k)), *map(str, range(k + 1))}


def _ask_start(guess: Guess, numbers: Sequence[float], k: int) -> None:
    """Adds the number of the first answer, or leaves it open, where a column of answers holds numbers."""
    if numbers and 0 in numbers:
        guess.values["index_from"] = 0
    elif numbers and k in numbers:
        guess.values["index_from"] = 1
    elif numbers:
        choices = ("index_from: 0", "index_from: 1")
        why = (
            f"whether the first answer is 0 or 1 is not said; the numbers are {min(numbers):g} to {max(numbers):g}"
        )
        guess.open.append(Open("index_from: 0 or 1", why, in_columns=False, choices=choices))


def _labels_of_pairs(guess: Guess, sample: Sample, free: Sequence[str], k: int) -> bool:
    """A column with a list of one label for each pair of the answers."""
    pairs = [list(pair) for pair in combinations(range(k), 2)]
    lists = [
        column
        for column in free
        if (cells := sample.cells(column)) and all(len(as_values(cell) or ()) == len(pairs) for cell in cells)
    ]
    if len(lists) != 1:
        return False
    [column] = lists
    guess.columns["preference"] = column
    guess.why["preference"] = f"a label for each of the {len(pairs)} pairs of answers"
    guess.values["pairs"] = pairs
    guess.notes.append(
        "check that the labels are in the order of `pairs`; combine: net_wins makes one ranking of a row's labels"
    )
    labels = [label for cell in sample.cells(column) for label in as_values(cell) or () if label is not None]
    if not all(map(_is_word, labels)):
        ask_labels(guess, column, labels)
    return True


def _is_word(label: Any) -> bool:
    return isinstance(label, str) and _labels("").word(label) is not None


def _labels(column: str) -> Labels:
    """The reader of a column of labels."""
    table = RankingTableConfig(path="", format="wide", columns={"completions": ["a", "b"]})
    return Labels(Columns(table, FORMATS["wide"]), column)


BELOW_0 = "below 0 the first is better, above 0 the second"
KNOWN_SIGN = "scale_value"
"""Potato's name for a place on a scale from the left answer, below 0, to the right one."""


def _preference(guess: Guess, sample: Sample, free: Sequence[str]) -> bool:
    """The column that says which of two answers is better."""
    columns = [column for column in free if set(words_of(column)) & PREFERENCE_WORDS]
    if not columns:  # a question's number, such as Q1
        texts = [column for column in free if sample.numbers(column) is None and sample.width(column) <= SHORT]
        columns = [column for column in texts if _are_labels(sample, column, guess)]
        signed = [column for column in free if _has_both_signs(sample, column)]
        if unsaid := signed or [column for column in columns if _may_be_groups(sample, column)]:
            why = f"{' and '.join(unsaid)} may say which answer is better, or something else"
            guess.leave_open("preference", unsaid, why)
            return True
    readable = [column for column in columns if _are_labels(sample, column, guess)]
    if len(readable) > 1:
        readable = [column for column in readable if sample.numbers(column) is not None] or readable
    if len(readable) == 1:
        guess.columns["preference"] = readable[0]
        numbers = sample.numbers(readable[0])
        if numbers is None:
            guess.why["preference"] = "it names the better answer"
        elif readable[0].endswith(KNOWN_SIGN):
            guess.why["preference"] = BELOW_0
        else:
            ask_direction(guess, readable[0], numbers)
    elif len(columns) == 1:
        guess.columns["preference"] = columns[0]
        ask_labels(guess, columns[0], sample.cells(columns[0]))
    elif candidates := readable or columns:
        guess.leave_open("preference", candidates, "several columns may say which answer is better")
    return bool(columns)


def _has_both_signs(sample: Sample, column: str) -> bool:
    numbers = sample.numbers(column) or [0]
    return min(numbers) < 0 < max(numbers)


def _may_be_groups(sample: Sample, column: str) -> bool:
    """Whether a column without a telling name holds the letters A and B alone, as arms of a study do, or one value
    throughout. A question's number, such as Q1, is telling."""
    values = {key_of(cell) for cell in sample.cells(column)}
    asks = any(word in ("q", "question", "frage") for word in words_of(column))
    return not asks and (len(values) == 1 or values <= {"a", "b"})


def _are_labels(sample: Sample, column: str, guess: Guess) -> bool:
    """Whether the reader of labels knows the values of a column: words or names of the two answers, comparisons, or
    numbers of both signs."""
    if sample.numbers(column) is not None:
        return _has_both_signs(sample, column)
    completions, models = guess.columns["completions"], guess.columns.get("models")
    labels = _labels(column)
    with suppress(DataError):
        for row in sample.rows:
            texts = [str(cell) for cell in _cells(row, completions)]
            names = completions if isinstance(completions, list) else ()
            for value in as_values(row.get(column)) or [row.get(column)]:
                value = value.get("score") if isinstance(value, dict) else value
                labels.verdict(value, row, texts, [str(cell) for cell in _cells(row, models)], names)
        return labels.read == 0
    return False


def _cells(row: Any, columns: str | list[str] | None) -> Iterator[Any]:
    """The cells of columns, or the items of the one that holds a list."""
    if isinstance(columns, list):
        yield from (row.get(column) for column in columns)
    elif columns is not None:
        yield from as_items(row.find(columns)) or ()


def ask_direction(guess: Guess, column: str, numbers: Sequence[float]) -> None:
    """Leaves open which answer the numbers below 0 prefer; with many values, notes what is assumed."""
    values = sorted({*numbers})
    guess.why["preference"] = BELOW_0
    if len(values) > MOST_LABELS:
        guess.notes.append(
            f"{column}: if numbers below 0 prefer the second answer, name the completions in the other order"
        )
        return
    if len(values) <= 3:
        words = [{-1: "first", 0: "tie", 1: "second"}[(value > 0) - (value < 0)] for value in values]
        other = [{"first": "second", "second": "first"}.get(word, word) for word in words]
    else:
        words, other = ([f"{sign * value + 0:g}" for value in values] for sign in (1, -1))
    choices = [
        f"labels: {{{', '.join(f'{value:g}: {word}' for value, word in zip(values, said, strict=True))}}}"
        for said in (words, other)
    ]
    why = f"column {column} does not say whether numbers below 0 prefer the first answer or the second"
    guess.open.append(Open(choices[0], why, in_columns=False, choices=tuple(choices)))


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


FLAGS = {"true", "false", "yes", "no"}


def are_flags(family: Family, sample: Sample) -> bool:
    return {key_of(cell) for column in family.columns for cell in sample.cells(column)} <= FLAGS


def are_marks(family: Family, sample: Sample) -> bool:
    """Whether one of a row's cells holds the same mark each time, and the others are empty."""
    marks = {key_of(cell) for column in family.columns for cell in sample.cells(column)}
    filled = [sum(not is_empty(row.get(column)) for column in family.columns) for row in sample.rows]
    return len(marks) == 1 and max(filled) == 1


def labels_of_each(guess: Guess, sample: Sample, beside: Sequence[Family]) -> bool:
    """A column of labels for each answer, such as bad, fair and good: ratings whose order a person must tell, or
    flags."""
    for family in sorted(beside, key=lambda family: not family.is_called(RATING_WORDS)):
        cells = [cell for column in family.columns for cell in sample.cells(column)]
        if not cells or any(isinstance(cell, list | dict) for cell in cells):
            continue
        labels = sorted({str(cell).strip() for cell in cells})
        if are_marks(family, sample):
            guess.columns["ratings"] = family.columns
            guess.values["scale"] = ["", *labels]
            guess.why["scale"] = "lowest first: the marked answer is better"
            return True
        if {label.casefold() for label in labels} <= FLAGS:
            guess.columns["ratings"] = family.columns
            guess.values["scale"] = ["no", "yes"] if "yes" in map(str.casefold, labels) else ["false", "true"]
            guess.why["scale"] = "lowest first: the marked answer is better"
            return True
        if has_labels(sample, family.columns):
            guess.columns["ratings"] = family.columns
            ask_scale(guess, sample, family.columns)
            return True
    return False


def has_labels(sample: Sample, columns: Sequence[str]) -> bool:
    """Whether columns hold a few short values that repeat."""
    cells = [cell for column in columns for cell in sample.cells(column)]
    if any(isinstance(cell, list | dict) for cell in cells):
        return False
    labels = {str(cell).strip() for cell in cells}
    return 1 < len(labels) <= min(MOST_LABELS, len(cells) // 2) and max(map(len, labels)) <= LONGEST_LABEL


def ask_scale(guess: Guess, sample: Sample, columns: Sequence[str]) -> None:
    """Leaves open the order of the labels in columns of ratings."""
    labels = sorted({str(cell).strip() for column in columns for cell in sample.cells(column)})
    guess.open.append(
        Open(
            f"scale: [{', '.join(map(quoted_names, labels))}]",
            "the ratings are labels: write them from the worst to the best",
            in_columns=False,
        )
    )


MOST_LABELS, LONGEST_LABEL = 11, 40
"""How many labels a scale has at most, and their characters."""
