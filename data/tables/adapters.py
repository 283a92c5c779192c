"""Readers of the general formats of rankings. docs/rankings/formats.md shows an example of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data.schema import Message, Ranking, prompt_key, same_text
from data.tables.columns import Candidates, Columns, Completion, as_list, as_object, as_weight, each, nothing
from data.tables.labels import preferences
from data.tables.messages import LeftOut, as_prompt
from data.tables.places import best_and_worst
from data.tables.sources import Row, TableError, as_number, as_text, is_empty
from data.tables.spelling import ROLES
from data.tables.spill import grouping
from pipeline.errors import DataError

_RANKING = TypeAdapter(Ranking)


def native(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Our own schema, as the `data` and `rank` stages and the export write it; `metadata` may be JSON text."""

    def read(row: Row) -> Iterator[Candidates]:
        cells: dict[str, Any] = {**row, "where": row.where}
        try:
            if isinstance(cells.get("metadata"), str):
                cells["metadata"] = json.loads(cells["metadata"])
            if isinstance(cells.get("prompt"), list):
                cells["prompt"] = as_prompt(cells["prompt"], "column 'prompt'", row.where)
            text = json.dumps({name: value for name, value in cells.items() if value is not None})
            ranking = _RANKING.validate_json(text, strict=True)
            if "weight" in ranking.metadata:
                as_weight(ranking.metadata["weight"], row, "metadata.weight")
        except (ValidationError, ValueError, TypeError) as error:
            problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            place = ".".join(map(str, problem["loc"]))
            raise DataError(
                f"the row is not a ranking: {place}: {problem['msg']}",
                where=row.where,
                hint="export the rankings again, or name the table's format and columns",
            ) from None
        yield Candidates(ranking.prompt, [], row, ranking.annotator, whole=ranking)

    yield from each(rows, read)


def wide(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`completions: [a, b, ...]` with `ratings: [...]` (higher is better) or `ranks: [...]` (lower is)."""
    completions, models = columns.names("completions"), columns.names("models")
    if "preference" in columns.named:
        yield from preferences(rows, columns, completions, models)
        return
    if {"best", "worst"} & columns.named.keys():
        _check_lengths(columns, completions, models or completions, "models")
        yield from best_and_worst(rows, columns, completions, models)
        return
    kind = "ranks" if "ranks" in columns.named else "ratings"
    orders = columns.names(kind)
    if len(completions) < 2:
        raise columns.error(
            f"a ranking needs at least 2 completions and `completions` names {len(completions)} columns",
            "name the K columns, completions: [a, b, ...], and their ratings: [...] or ranks: [...]",
        )
    if not orders:
        raise columns.error(
            "no column orders the completions",
            "name K columns, ratings: [...] (higher is better) or ranks: [...] (lower is), or best: COLUMN and "
            "worst: COLUMN, or for two completions preference: COLUMN",
        )
    _check_lengths(columns, completions, orders, kind)
    _check_lengths(columns, completions, models or completions, "models")
    sign = -1 if kind == "ranks" else 1

    def read(row: Row) -> Iterator[Candidates]:
        scores = [columns.score(row, order, sign) for order in orders]
        prompt, texts = columns.exchange(row, columns.cells(row, completions))
        answers = [Completion(text, score) for text, score in zip(texts, scores, strict=True)]
        for answer, model in zip(answers, models, strict=False):
            answer.model = row.text(model)
        yield Candidates(prompt, answers, row, columns.annotator(row), rated=kind == "ratings")

    yield from each(rows, read)


def _check_lengths(columns: Columns, completions: list[str], values: list[str], name: str) -> None:
    if len(values) != len(completions):
        raise columns.error(
            f"{len(completions)} completion columns have {len(values)} {name} columns",
            f"name one column in {name} for each completion",
        )


def long(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """One row per completion. Rows with equal `prompt` and `annotator`, or equal `group`, are a ranking.

    The rows of a ranking need not be neighbours, so they wait in a temporary database.
    """
    with grouping() as groups:
        where = ""
        for row in rows:
            group = row[columns.name("group")] if "group" in columns.named else None
            if "group" in columns.named and is_empty(group):
                yield nothing(row, "empty group", "fill the group's column, or leave `group` out")
                continue
            try:
                prompt, [text] = columns.exchange(row, columns.cells(row, [columns.name("completion")]))
            except LeftOut as why:
                yield nothing(row, why.reason, why.hint)
                continue
            order, sign, rival = columns.order(row)
            annotator, key = columns.annotator(row), "" if group is None else str(group)
            answer = [text, columns.score(row, order, sign), columns.model(row), _rival(row, rival)]
            groups.add(
                key or f"{prompt_key(prompt)} {annotator}",
                [row.number, row.where, key, prompt, annotator, order, sign, columns.weight(row), answer],
            )
            where = where or row.where
        if groups.groups and groups.largest() < 2 and not columns.merges_ratings:
            raise TableError(
                "a ranking needs at least 2 completions and every group of this table has 1",
                where=where,
                hint="give rows of one ranking the same prompt and annotator, or name their `group` column; or "
                "merge the annotators of a prompt, consensus: mean",
            )
        for group in groups:
            number, where, key, prompt, annotator, order, sign, weight, _ = group[0]
            result = Candidates(prompt, [], Row(number, {}, where), annotator, rated=sign == 1, weight=weight)
            for _, other, _, its_prompt, its_annotator, its_order, _, its_weight, answer in group:
                if its_weight != weight:
                    raise DataError(
                        f"the row has the weight {its_weight:g}, and its ranking, at {where}, {weight:g}",
                        where=other,
                        hint="give all rows of a ranking, one prompt and annotator, the same weight",
                    )
                if (its_prompt, its_annotator) != (prompt, annotator):
                    raise DataError(
                        f"group {key!r} has a different prompt or annotator at {where}",
                        where=other,
                        hint="give each ranking a group of its own",
                    )
                if its_order != order:
                    raise DataError(
                        f"the row is ordered by {its_order!r}, and its ranking, at {where}, by {order!r}",
                        where=other,
                        hint="name the one that orders the completions under `columns`, rating or rank",
                    )
                text, score, model, rival = answer
                result.answers.append(Completion(text, score, model, rival, other))
            yield result


def pairs(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`chosen` and `rejected`: answers, or conversations that differ in the last message only.

    Transcripts that differ earlier are left out: HH-RLHF holds some, and they cannot be corrected here.
    """

    def read(row: Row) -> Iterator[Candidates]:
        names = [columns.name("chosen"), columns.name("rejected")]
        prompt, texts = columns.exchange(row, columns.cells(row, names))
        *scores, rated = _pair_scores(row, columns)
        if same_text(texts[0]) == same_text(texts[1]) and texts[0].strip():
            yield nothing(row, "chosen and rejected are the same")
            return
        answers = [Completion(text, score) for text, score in zip(texts, scores, strict=True)]
        yield Candidates(prompt, answers, row, columns.annotator(row), rated=rated)

    yield from each(rows, read)


def _pair_scores(row: Row, columns: Columns) -> tuple[float, float, bool]:
    """Scores of the chosen and the rejected answer, and whether the table gives them. Raises `DataError` where they
    contradict the names of the columns, or each other."""
    ratings = [
        columns.as_score(columns.optional(row, name), f"column {columns.name(name)!r}", row)
        for name in ("chosen_rating", "rejected_rating")
    ]
    margin = as_number(columns.optional(row, "margin"), f"column {columns.name('margin')!r}", row.where)
    if ratings[0] is not None and ratings[1] is not None:
        if margin is not None and (margin > 0) != (ratings[0] > ratings[1]):
            raise DataError(
                f"the margin is {margin:g} and the ratings are {ratings[0]:g} and {ratings[1]:g}",
                where=row.where,
                hint="correct the row, or rename the column that is wrong",
            )
        if ratings[0] < ratings[1]:
            raise DataError(
                f"the chosen answer is rated {ratings[0]:g}, below the rejected one ({ratings[1]:g})",
                where=row.where,
                hint="remove the row, or exchange the two columns",
            )
        return ratings[0], ratings[1], True
    if margin is not None and margin < 0:
        raise DataError(
            f"the margin must be at least 0, got {margin:g}",
            where=row.where,
            hint="write 0 for a tie, or leave the cell empty",
        )
    return 1.0 if margin is None else margin, 0.0, margin is not None


def tree(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Conversation trees. The ranked replies to one message are a ranking; the lowest rank is best.

    Deleted messages are left out, with everything below them.
    """
    yield from each(rows, partial(_rankings_of_tree, columns=columns))


def _rankings_of_tree(row: Row, columns: Columns) -> Iterator[Candidates]:
    open_nodes: list[tuple[Row, list[Message]]] = [(as_object(row[columns.name("prompt")], row), [])]
    if open_nodes[0][0].get("deleted"):
        yield nothing(row, "deleted message")
        return
    any_ranking = False
    while open_nodes:
        node, before = open_nodes.pop()
        role = ROLES.get(node.text(columns.name("role")))
        if role is None:
            raise DataError(
                f"a message has the role {node[columns.name('role')]!r}",
                where=row.where,
                hint=f"use one of {', '.join(ROLES)}",
            )
        path = [*before, {"role": role, "content": node.text(columns.name("text"))}]
        replies = [as_object(reply, row) for reply in node.get(columns.name("replies")) or []]
        live = [reply for reply in replies if not reply.get("deleted")]
        open_nodes.extend((reply, path) for reply in reversed(live))
        deleted = ["deleted message"] * (len(replies) - len(live))
        if role == "user" and len(live) > 1:
            any_ranking = True
            yield _siblings(path, live, row, columns, deleted)
        elif deleted:
            yield Candidates([], [], row, without=deleted)
    if not any_ranking:
        yield nothing(row, "no message with several replies")


def _siblings(
    path: list[Message], replies: list[Row], row: Row, columns: Columns, without: list[str]
) -> Candidates:
    result = Candidates(path, [], row, rated=False, without=without)
    text, rank, model = columns.name("text"), columns.name("rank"), columns.name("model")
    for reply in replies:
        score = columns.as_score(reply.get(rank), f"{rank!r} of a reply", row, -1)
        name = as_text(reply.get(model), f"{model!r} of a reply", row.where)
        result.answers.append(Completion(reply.text(text), score, name))
    return result


def scored(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`completions`: a list of `{text, score}` or `{text, rank}`; or texts, beside `ratings` or `ranks`."""

    def read(row: Row) -> Iterator[Candidates]:
        items = as_list(row, columns.name("completions"))
        if any(isinstance(item, dict) for item in items):
            sign, cells, rest = _scored_objects(items, row, columns)
        else:
            sign, cells, rest = _scored_texts(items, row, columns)
        named = [(f"completion {place} of the row", cell) for place, cell in enumerate(cells, 1)]
        prompt, texts = columns.exchange(row, named)
        answers = [Completion(text, *scores) for text, scores in zip(texts, rest, strict=True)]
        yield Candidates(prompt, answers, row, columns.annotator(row), rated=sign == 1)

    yield from each(rows, read)


Scored = tuple[int, list[Any], list[tuple[float | None, str | None, float | None]]]
"""The sign of the scores, the answers' cells, and score, model and rival score of each."""


def _scored_objects(items: list[Any], row: Row, columns: Columns) -> Scored:
    text = columns.name("text")
    for item in items:
        if item is not None and not isinstance(item, dict):
            raise DataError(
                f"completions must all be objects or all be texts, got objects and {item!r:.60}",
                where=row.where,
                hint="write objects with a text and a score, or texts beside a list of scores",
            )
    entries = [None if item is None else as_object(item, row) for item in items]
    order, sign, rival = columns.order(next(entry for entry in entries if entry is not None), "score", "rank")
    cells = [None if entry is None else entry[text] for entry in entries]
    rest = [
        (None, None, None)
        if entry is None
        else (columns.score(entry, order, sign), columns.model(entry), _rival(entry, rival))
        for entry in entries
    ]
    return sign, cells, rest


def _scored_texts(items: list[Any], row: Row, columns: Columns) -> Scored:
    order, sign, rival = columns.order(row, "ratings", "ranks")
    what = f"a value of column {order!r}"
    scores = [columns.as_score(value, what, row, sign) for value in _values(row, order, len(items))]
    rivals: list[float | None] = [None] * len(items)
    if rival is not None:
        with suppress(DataError):  # a column that holds no numbers ranks nothing
            ranks = [as_number(value, rival, row.where) for value in _values(row, rival, len(items))]
            rivals = [None if rank is None else -rank for rank in ranks]
    return sign, items, [(score, None, other) for score, other in zip(scores, rivals, strict=True)]


def _values(row: Row, column: str, count: int) -> list[Any]:
    """A list cell with one value per completion; None for all of them where the cell is empty."""
    values = (as_list(row, column) or [None] * count) if count else []
    if len(values) != count:
        raise DataError(
            f"column {column!r} must hold {count} values, one per completion, got {len(values)}",
            where=row.where,
            hint="write one value per completion, or leave the cell empty",
        )
    return values


def _rival(row: Row, column: str | None) -> float | None:
    """The rank beside a rating, higher for better; None where the column holds no number and so ranks nothing."""
    try:
        number = None if column is None else row.value(column)
    except DataError:
        return None
    return None if number is None else -number
