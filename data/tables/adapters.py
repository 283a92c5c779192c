"""Readers of the general formats of rankings. docs/rankings/formats.md shows an example of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data.schema import Message, Ranking, prompt_key, same_text
from data.tables.columns import Candidates, Cells, Columns, Completion, as_object, as_weight, each, nothing, signed
from data.tables.labels import preferences
from data.tables.messages import LeftOut, as_prompt
from data.tables.per_annotator import Annotator, by_annotator
from data.tables.places import best_and_worst, orders
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
    """`completions: [a, b, ...]` with `ratings: [...]` (higher is better) or `ranks: [...]` (lower is). Each may
    also be one column with a list in its cells."""
    if "preference" in columns.named:
        _check_lists(columns, "models")
        yield from preferences(rows, columns)
        return
    if {"best", "worst", "order"} & columns.named.keys():
        _check_lists(columns, "models")
        yield from (orders if "order" in columns.named else best_and_worst)(rows, columns)
        return
    kind = "ranks" if "ranks" in columns.named else "ratings"
    _check_orders(columns, kind)
    _check_lists(columns, kind, "models")
    sign = -1 if kind == "ranks" else 1

    def read(row: Row) -> Iterator[Candidates]:
        completions = columns.items(row, "completions")
        orders = columns.beside(completions, row, kind)
        scored = [(who, cells.scores(row, columns, sign)) for who, cells in orders.by_annotator(row, columns)]
        prompt, texts = columns.exchange(row, completions.named)
        models = columns.models(row, completions)
        for (annotator, weight), scores in scored:
            answers = list(map(Completion, texts, scores, models))
            yield Candidates(prompt, answers, row, annotator, rated=kind == "ratings", weight=weight)

    yield from each(rows, read)


def _check_orders(columns: Columns, kind: str) -> None:
    """Raises `RecipeError` where the recipe names too few completions, or nothing that orders them."""
    completions = columns.named.get("completions")
    if isinstance(completions, list) and len(completions) < 2:
        raise columns.error(
            f"a ranking needs at least 2 completions and `completions` names {len(completions)} columns",
            "name the K columns, completions: [a, b, ...], and their ratings: [...] or ranks: [...]",
        )
    if not columns.named.get(kind):
        raise columns.error(
            "no column orders the completions",
            "name K columns, ratings: [...] (higher is better) or ranks: [...] (lower is), or best: COLUMN and "
            "worst: COLUMN, or order: COLUMN, or for two completions preference: COLUMN",
        )


def _check_lists(columns: Columns, *names: str) -> None:
    """Raises `RecipeError` where lists of columns are not as long as that of the completions."""
    completions = columns.named.get("completions")
    for name in names:
        values = columns.named.get(name) or completions
        if isinstance(values, list) and isinstance(completions, list) and len(values) != len(completions):
            raise columns.error(
                f"{len(completions)} completion columns have {len(values)} {name} columns",
                f"name one column in {name} for each completion",
            )


def long(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """One row per completion. Rows with equal `annotator` and equal `prompt`, or `group`, are a ranking.

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
            key, model = "" if group is None else str(group), columns.model(row)
            try:
                orders = list(Cells([row[order]], [f"column {order!r}"]).by_annotator(row, columns))
            except LeftOut as why:
                yield nothing(row, why.reason, why.hint)
                continue
            for (annotator, weight), cells in orders:
                weight = columns.weight(row) if weight is None else weight
                answer = [text, *cells.scores(row, columns, sign), model, _rival(row, rival)]
                groups.add(
                    f"{key or prompt_key(prompt)} {annotator}",
                    [row.number, row.where, key, prompt, annotator, order, sign, weight, answer],
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
            for _, other, _, its_prompt, _, its_order, _, its_weight, answer in group:
                if its_weight != weight:
                    raise DataError(
                        f"the row has the weight {its_weight:g}, and its ranking, at {where}, {weight:g}",
                        where=other,
                        hint="give all rows of a ranking, one prompt and annotator, the same weight",
                    )
                if its_prompt != prompt:
                    raise DataError(
                        f"group {key!r} has a different prompt at {where}",
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

    Conversations that differ earlier are left out: HH-RLHF holds some, and they cannot be corrected here.
    """

    def read(row: Row) -> Iterator[Candidates]:
        names = [columns.name("chosen"), columns.name("rejected")]
        prompt, texts = columns.exchange(row, columns.cells(row, names))
        rankings = _pair_scores(row, columns)
        if same_text(texts[0]) == same_text(texts[1]) and texts[0].strip():
            yield nothing(row, "chosen and rejected are the same")
            return
        for (annotator, weight), (chosen, rejected, rated) in rankings:
            answers = [Completion(texts[0], chosen), Completion(texts[1], rejected)]
            yield Candidates(prompt, answers, row, annotator, rated=rated, weight=weight)

    yield from each(rows, read)


def _pair_scores(row: Row, columns: Columns) -> list[tuple[Annotator, tuple[float, float, bool]]]:
    """Each annotator with the scores of the chosen and the rejected answer, and whether the table gives them."""
    ours = ("chosen_rating", "rejected_rating", "margin")
    what = [f"column {columns.name(name)!r}" for name in ours]
    scores = []
    for annotator, values in by_annotator(row, columns, [columns.optional(row, name) for name in ours]):
        ratings = Cells(values[:2], what[:2]).scores(row, columns)
        margin = as_number(values[2], what[2], row.where)
        scores.append((annotator, _of_pair(row, ratings[0], ratings[1], margin)))
    return scores


def _of_pair(
    row: Row, chosen: float | None, rejected: float | None, margin: float | None
) -> tuple[float, float, bool]:
    """Scores of the two answers. Raises `DataError` where they contradict the columns' names, or each other."""
    ratings = chosen, rejected
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
        replies = [as_object(reply, row) for reply in node.find(columns.name("replies")) or []]
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
        score = columns.as_score(reply.find(rank), f"{rank!r} of a reply", row, -1)
        name = as_text(reply.find(model), f"{model!r} of a reply", row.where)
        result.answers.append(Completion(reply.text(text), score, name))
    return result


def scored(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`completions`: a list of `{text, score}` or `{text, rank}`; or texts, beside `ratings` or `ranks`."""

    def read(row: Row) -> Iterator[Candidates]:
        items = columns.items(row, "completions")
        is_object = any(isinstance(item, dict) for item in items.values)
        sign, texts, orders, rivals, models = (_scored_objects if is_object else _scored_texts)(items, row, columns)
        ranked = [(who, cells.scores(row, columns, sign)) for who, cells in orders.by_annotator(row, columns)]
        prompt, answers = columns.exchange(row, list(zip(items.names, texts, strict=True)))
        for (annotator, weight), scores in ranked:
            completions = list(map(Completion, answers, scores, models, rivals))
            yield Candidates(prompt, completions, row, annotator, rated=sign == 1, weight=weight)

    yield from each(rows, read)


Scored = tuple[int, list[Any], Cells, list[float | None], list[str | None]]
"""The sign of the scores; the answers' cells; their scores, second scores and models."""


def _scored_objects(items: Cells, row: Row, columns: Columns) -> Scored:
    text = columns.name("text")
    for item in items.values:
        if item is not None and not isinstance(item, dict):
            raise DataError(
                f"completions must all be objects or all be texts, got objects and {item!r:.60}",
                where=row.where,
                hint="write objects with a text and a score, or texts beside a list of scores",
            )
    entries = [None if item is None else as_object(item, row) for item in items.values]
    order, sign, rival = columns.order(next(entry for entry in entries if entry is not None), "score", "rank")
    texts = [None if entry is None else entry[text] for entry in entries]
    orders = Cells(
        [None if entry is None else entry[order] for entry in entries], [f"column {order!r}"] * len(texts)
    )
    rivals = [None if entry is None else _rival(entry, rival) for entry in entries]
    named = zip(entries, items.models, strict=True)
    models = [None if entry is None else columns.model(entry) or key for entry, key in named]
    return sign, texts, orders, rivals, models


def _scored_texts(items: Cells, row: Row, columns: Columns) -> Scored:
    _, sign, rival = columns.order(row, "ratings", "ranks")
    ours = "ranks" if sign == -1 else "ratings"
    rivals: list[float | None] = [None] * len(items.values)
    if rival is not None:
        with suppress(DataError):  # a column that holds no numbers ranks nothing
            rivals = columns.beside(items, row, "ranks").numbers(row.where, -1)
    return sign, items.values, columns.beside(items, row, ours), rivals, columns.models(row, items)


def _rival(row: Row, column: str | None) -> float | None:
    """The rank beside a rating, higher for better; None where the column holds no number and so ranks nothing."""
    try:
        return None if column is None else signed(row.value(column), -1)
    except DataError:
        return None
