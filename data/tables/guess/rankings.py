"""What a table is; of a table of rankings the format and the columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from data.tables.columns import key_of
from data.tables.guess.families import (
    COMPLETION_WORDS,
    MODEL_WORDS,
    OTHER_WORDS,
    PREFERENCE_WORDS,
    RANK_WORDS,
    RATING_WORDS,
    VERDICT_WORDS,
    Family,
    Order,
    families,
    order_of,
    rankings_of,
)
from data.tables.guess.flatten import flattened, with_neighbours
from data.tables.guess.guess import (
    FORMATS_PAGE,
    Guess,
    Open,
    choose_annotator,
    choose_prompt,
    decided,
    finish,
    is_tree,
    no_column,
)
from data.tables.guess.lists import keyed, lists_in_cells
from data.tables.guess.orders import (
    are_flags,
    are_marks,
    ask_scale,
    has_labels,
    labels_of_each,
    order_of_cells,
)
from data.tables.guess.respelled import respelled
from data.tables.guess.sample import Sample, as_finite, named
from data.tables.guess.schemas import known
from data.tables.guess.texts import demonstrations, prompts_or_text
from data.tables.guess.tools import argilla, label_studio
from data.tables.messages import shared_start
from data.tables.places import levels
from data.tables.selection import filled_down
from data.tables.sources import is_empty
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
        _check_texts(sample)
    try:
        return demonstrations(sample)
    except DataError:
        return prompts_or_text(sample)


def _check_texts(sample: Sample) -> None:
    """Raises `DataError` for ranks or ratings beside which no column is named like a text."""
    roles = ("prompt", "completion", "text", "messages", "chosen")
    numbers = [column for column in sample.columns if _may_order(sample, column)]
    called = [c for c in sample.columns if set(words_of(c)) & (RANK_WORDS | RATING_WORDS | PREFERENCE_WORDS)]
    orders = called or numbers[: len(numbers) * (len(numbers) > 1)]
    if orders and not any(named(role, sample.columns) for role in roles):
        raise DataError(
            f"the table may rank answers (by {listed(orders, 4)}) and does not hold their texts",
            where=sample.path,
            hint=f"its columns are {listed(sample.columns)}: add one with the prompt and one with each answer; or, "
            "if another table has them, join: {path: FILE, on: COLUMN} (docs/rankings/formats.md)",
        )


def _may_order(sample: Sample, column: str) -> bool:
    """Whether a column holds small whole numbers, and is not named like a count or an id."""
    numbers = sample.numbers(column) or [0.5]
    small = all(number.is_integer() and 0 <= number <= HIGHEST for number in numbers)
    return small and not set(words_of(column)) & OTHER_WORDS


HIGHEST = 20
"""The largest rank, or rating, in a table that does not say what its numbers are."""


def rankings(sample: Sample) -> Guess:
    """The format and the columns of a table of rankings. If they do not tell, texts that spell numbers are read as
    numbers. Raises `DataError` if the table looks like none, or like one that lacks a column."""
    guess, problem = None, None
    try:
        guess = _of_views(sample)
    except DataError as error:
        problem = error
    if (guess is None or guess.open) and (numbers := respelled(sample)):
        with suppress(DataError):
            other = _of_views(numbers.sample)
            if numbers.explain(other) and (guess is None or len(other.open) < len(guess.open)):
                return other
    if guess is None:
        assert problem is not None
        raise problem
    return guess


def _of_views(sample: Sample) -> Guess:
    """What a table of rankings is by its own columns, or else by what lies inside its cells, or by the other tables
    in its folder. Raises `DataError` as `rankings` does."""
    problem: DataError | None = None
    best: Guess | None = None
    for name, other, values in _views(sample):
        on = values.get("join", {}).get("on", ())
        keys = {on} if isinstance(on, str) else {*on}
        try:
            guess = _of_columns(other)
        except DataError as error:
            problem = problem or error
            continue
        if values and not guess.used() & {*sample.columns} - keys - {guess.columns.get("annotator")}:
            continue  # nothing of the table itself orders the answers
        guess.values |= values
        if name:
            guess.notes.append(name)
        if best is None or len(guess.open) < len(best.open):
            best = guess
        if not best.open:
            break
    if best is None:
        assert problem is not None
        raise problem
    return best


def _views(sample: Sample) -> Iterator[tuple[str, Sample, dict[str, Any]]]:
    """The table as it is, with the columns inside its cells, and with those of another table: what a person should
    know about it, the table, and what the recipe says beside `format`."""
    yield "", sample, {}
    flat = flattened(sample)
    if len(flat.columns) > len(sample.columns):
        yield "", flat, {}
    if not any(sample.width(column) > WIDE or sample.lists(column) for column in sample.texts()):
        for joined, join in with_neighbours(flat):
            on = join["on"] if isinstance(join["on"], str) else ", ".join(join["on"])
            yield f"the texts are in {join['path']}, joined by {on}", joined, {"join": join}


WIDE = 20
"""Characters from which a column of text, on average, may hold prompts or answers."""


def _of_columns(sample: Sample) -> Guess:
    for attempt in (known, label_studio, argilla, _native, _tree, keyed, lists_in_cells, _pairs, _wide, _long):
        guess = attempt(sample)
        if guess is not None:
            return guess
    raise NoFormat(
        "the table looks like no format of rankings: it needs answers in several columns, in one list, or in one "
        "row each, and what orders them",
        where=sample.path,
        hint=f"its columns are {listed(sample.columns)}; {FORMATS_PAGE} shows an example of each format. Texts in "
        "another table are added by join: {path: FILE, on: COLUMN}",
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
    chosen, rejected = (named(name, sample.columns)[:1] for name in ("chosen", "rejected"))
    if not chosen or not rejected:
        chosen, rejected = _opposites(sample)
    if not chosen or not rejected or not all(map(sample.is_text, (*chosen, *rejected))):
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
    prompts = [
        column
        for column in sample.columns
        if not sample.holds_conversations(column, "assistant")
        or (column != "messages" and not sample.lists_messages(column))
    ]
    if not whole and not any(column not in guess.used() and sample.is_text(column) for column in prompts):
        _implicit_prompt(guess, sample)
    else:
        if whole:  # the prompt is in them, so that another column must be named like it to be one
            prompts = named("prompt", prompts)
        choose_prompt(guess, sample, prompts, optional=whole)
    choose_annotator(guess, sample, sample.columns)
    return finish(guess, sample)


OPPOSITES = {
    "good": "bad", "better": "worse", "positive": "negative", "pos": "neg", "win": "lose",
    "winning": "losing", "winner": "loser", "chosen": "rejected", "accepted": "rejected",
    "preferred": "dispreferred", "gut": "schlecht", "j": "k",
}  # fmt: skip
"""A word of the better answer's column -> the word of the worse one's: `good_answer` and `bad_answer`. `response_j`
and `response_k` are those of public pairs from Stack Exchange."""


def _opposites(sample: Sample) -> tuple[list[str], list[str]]:
    """Two columns of text whose names differ in one word, which says that one is better; empty without them."""
    by_words = {tuple(words_of(column)): column for column in sample.texts()}
    for words, column in by_words.items():
        for place, word in enumerate(words):
            other = (*words[:place], OPPOSITES.get(word, ""), *words[place + 1 :])
            if other in by_words and (len(words) > 1 or word != "j"):
                return [column], [by_words[other]]
    return [], []


def _implicit_prompt(guess: Guess, sample: Sample) -> None:
    """Takes the prompt from the beginning that both answers of a row share. Raises `DataError` if one has none."""
    rows = [[str(row.get(str(column)) or "") for column in guess.columns.values()][:2] for row in sample.rows]
    if not all(shared_start(texts) for texts in rows):
        raise no_column(sample, "prompt")
    guess.values["implicit_prompt"] = True
    guess.why["implicit_prompt"] = "no column holds it, and both texts of each row begin alike"


def _wide(sample: Sample) -> Guess | None:
    groups = families(sample.columns)
    texts = [family for family in groups if sample.are_texts(family.columns) and not are_flags(family, sample)]
    models = [family for family in texts if family.is_called(MODEL_WORDS)]
    if not any(sample.width(column) > WIDE for family in models for column in family.columns):
        texts = [family for family in texts if family not in models]
    else:
        models = []  # named like models, and long: answers under their systems' names
    answers = [family for family in texts if family.is_called(COMPLETION_WORDS)] or texts
    if not answers and (systems := _named_in_cells(sample)):
        answers = [Family((), dict(enumerate(systems)))]
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


def _named_in_cells(sample: Sample) -> list[str]:
    """The columns of text that another column's cells name, as the best or in an order: a column per system, `gpt4`
    and `llama`, and `best` with their names. Empty if there are none. A text that no cell names may be something
    else, such as a comment."""
    texts = {key_of(column): column for column in sample.texts() if sample.width(column) > WIDE}
    for column in sample.columns:
        cells = sample.cells(column)
        if not cells or column in texts.values() or any(isinstance(cell, list | dict) for cell in cells):
            continue
        named = [{key_of(name) for level in levels(cell) for name in level} for cell in cells]
        known = set().union(*named)
        if all(named) and len(known) > 1 and known <= texts.keys():
            return [theirs for key, theirs in texts.items() if key in known]
    return []


def _order_of_columns(guess: Guess, sample: Sample, groups: Sequence[Family], completions: Family) -> None:
    """What orders the completions of a wide table: a family of numbers or of labels, or one column."""
    beside = [
        family
        for family in groups
        if family.members.keys() == completions.members.keys() and not {*family.columns} & guess.used()
    ]
    numbers = [
        family
        for family in beside
        if not family.is_called(OTHER_WORDS)
        and sample.are_numbers(family.columns)
        and not are_marks(family, sample)
    ]
    best = [family for family in numbers if family.is_called(RANK_WORDS | RATING_WORDS)]
    candidates = best or numbers
    if len(candidates) > 1:
        names = [" ".join(family.words) for family in candidates]
        lists = [family.columns for family in candidates]
        guess.leave_open(("ratings", "ranks"), lists, f"{' and '.join(names)} may both order the answers{CRITERIA}")
    elif candidates:
        [family] = candidates
        where = f"{family.columns[0]} to {family.columns[-1]}"
        kind, why = order_of(family.words, rankings_of(sample, family, completions), where)
        if kind is None:
            guess.leave_open(("ratings", "ranks"), [family.columns], why)
        else:
            guess.columns[kind] = family.columns
            guess.why[kind] = why
        if others := [family for family in numbers if family not in candidates]:
            names = [", ".join(family.columns) for family in others]
            guess.notes.append(f"{' and '.join(names)} may order the answers too{CRITERIA}")
    elif not labels_of_each(guess, sample, beside) and not order_of_cells(guess, sample, len(completions.members)):
        two = len(completions.members) == 2
        guess.open.append(
            Open("preference: the column that says which answer is better", NO_LABEL)
            if two
            else Open(
                "ratings or ranks: [one column for each answer]",
                f"no columns of numbers go with {', '.join(completions.columns)}, so nothing orders the answers",
            )
        )


NO_LABEL = "no column of numbers or labels says which answer is better"
CRITERIA = "; to learn from several, give each a table under data.rankings.criteria (docs/rankings/criteria.md)"


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
    sample = _merged_cells(guess, sample)
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


def _merged_cells(guess: Guess, sample: Sample) -> Sample:
    """The table with filled columns, if its prompt's cell is empty below the first of several answers, as
    spreadsheets export merged cells."""
    prompt = str(guess.columns.get("prompt"))
    if "prompt" not in guess.columns or is_empty(sample.rows[0].get(prompt)):
        return sample
    below = [row for row in sample.rows if is_empty(row.get(prompt))]
    if len(below) < len(sample.rows) / 4 or any(
        is_empty(row.get(str(guess.columns["completion"]))) for row in below
    ):
        return sample
    merged = [column for column in sample.columns if all(is_empty(row.get(column)) for row in below)]
    merged = [column for column in merged if sample.cells(column)]
    guess.values["fill_down"] = merged
    guess.why["fill_down"] = "empty below the first answer, like merged cells"
    return replace(sample, rows=list(filled_down(sample.rows, merged)))


def _order_of_rows(guess: Guess, sample: Sample, numbers: Sequence[str]) -> None:
    """What orders the rows of a long table."""
    called = [column for column in numbers if named("rank", [column]) or named("rating", [column])]
    candidates = called or numbers
    if not candidates and _labels_of_rows(guess, sample):
        return
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


def _labels_of_rows(guess: Guess, sample: Sample) -> bool:
    """Takes the only column of labels, such as up and down, for ratings whose order a person must tell."""
    free = [column for column in sample.columns if column not in guess.used()]
    marked = [column for column in free if set(words_of(column)) & VERDICT_WORDS and has_labels(sample, [column])]
    if len(marked) != 1:
        return False
    guess.columns["rating"] = marked[0]
    ask_scale(guess, sample, marked)
    return True


def _order_of(column: str, sample: Sample, keys: Sequence[str]) -> tuple[Order | None, str]:
    """`order_of` a column, whose rankings are the rows that are alike in the columns `keys`."""
    groups: dict[str, list[float]] = {}
    for row in sample.rows:
        number = as_finite(row.get(column))
        if number is not None:
            groups.setdefault(repr([row.get(key) for key in keys]), []).append(number)
    return order_of([*words_of(column), plain(column)], groups.values(), f"column {column}")
