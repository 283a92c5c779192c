"""One adapter for each shape of table in which rankings come. docs/rankings.md shows each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data.columns import Answer, Candidates, Columns
from data.messages import ROLES, as_completion, is_transcript
from data.schema import Message, Ranking, prompt_key
from data.sources import Row, as_number, as_text
from data.spill import grouping
from pipeline.errors import DataError

_RANKING = TypeAdapter(Ranking)


def native(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Our own schema, as the `data` and `rank` stages and the export write it; `metadata` may be JSON text."""
    for row in rows:
        cells: dict[str, Any] = {**row, "where": row.where}
        try:
            if isinstance(cells.get("metadata"), str):
                cells["metadata"] = json.loads(cells["metadata"])
            text = json.dumps({name: value for name, value in cells.items() if value is not None})
            ranking = _RANKING.validate_json(text, strict=True)
        except (ValidationError, ValueError, TypeError) as error:
            problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            place = ".".join(map(str, problem["loc"]))
            raise DataError(
                f"the row is no ranking: {place}: {problem['msg']}",
                where=row.where,
                mend="export the rankings again, or name the table's format and columns",
            ) from None
        yield Candidates(ranking.prompt, [], row, ranking.annotator, whole=ranking)


def wide(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`completions: [a, b, ...]` with `ratings: [...]` (higher is better) or `ranks: [...]` (lower is)."""
    completions, models = columns.names("completions"), columns.names("models")
    if "preference" in columns.given:
        yield from _preferences(rows, columns, completions, models)
        return
    kind = "ranks" if "ranks" in columns.given else "ratings"
    orders = columns.names(kind)
    if columns.names("ranks") and columns.names("ratings"):
        raise columns.error("both ratings and ranks are given", "give the one that orders the completions")
    if len(completions) < 2:
        raise columns.error(
            f"a ranking needs at least 2 completions and `completions` names {len(completions)} columns",
            "name the K columns, completions: [a, b, ...], and their ratings: [...] or ranks: [...]",
        )
    for name, values in ((kind, orders), ("models", models or completions)):
        if len(values) != len(completions):
            raise columns.error(
                f"{len(completions)} completion columns have {len(values)} {name} columns",
                f"name one column in {name} for each completion",
            )
    sign = -1 if kind == "ranks" else 1
    for row in rows:
        answers = [
            Answer(row.text(completion), _signed(row.value(order), sign))
            for completion, order in zip(completions, orders, strict=True)
        ]
        for answer, model in zip(answers, models, strict=False):
            answer.model = row.text(model)
        yield Candidates(columns.prompt(row), answers, row, columns.annotator(row), rated=kind == "ratings")


def _preferences(
    rows: Iterator[Row], columns: Columns, completions: list[str], models: list[str]
) -> Iterator[Candidates]:
    """Two completions and one signed strength, as in HelpSteer: below 0 the first is better, above 0 the second.

    A list of strengths, or of objects with a `score`, is a ranking each; who gave them is told by place only.
    """
    if len(completions) != 2 or columns.names("ratings") or columns.names("ranks"):
        raise columns.error(
            f"a preference orders 2 completions and `completions` names {len(completions)}",
            "write completions: [first, second] and preference: column, and no ratings or ranks",
        )
    column = columns.name("preference")
    for row in rows:
        prompt, annotator = columns.prompt(row), columns.annotator(row)
        several = isinstance(row[column], list)
        for place, item in enumerate(row[column] if several else [row[column]], 1):
            value = item.get("score") if isinstance(item, dict) else item
            strength = as_number(value, f"column {column!r}", row.where)
            scores: tuple[float | None, float | None] = (None, None)
            if strength is not None:
                scores = max(-strength, 0.0), max(strength, 0.0)
            answers = [Answer(row.text(name), score) for name, score in zip(completions, scores, strict=True)]
            for answer, model in zip(answers, models, strict=False):
                answer.model = row.text(model)
            yield Candidates(prompt, answers, row, f"{annotator}-{place}" if several else annotator)


def long(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """A row a completion. One `prompt` and `annotator`, or one value of `group`, make a ranking.

    The rows of a ranking need not be neighbours, so they wait in a temporary database.
    """
    with grouping() as groups:
        where = ""
        for row in rows:
            order, sign = columns.order(row)
            prompt, annotator = columns.prompt(row), columns.annotator(row)
            key = str(row[columns.name("group")]) if "group" in columns.given else ""
            text, score = row.text(columns.name("completion")), _signed(row.value(order), sign)
            groups.add(
                key if "group" in columns.given else f"{prompt_key(prompt)} {annotator}",
                [row.number, row.where, key, prompt, annotator, sign, text, score, columns.model(row)],
            )
            where = where or row.where
        if groups.groups and groups.largest() < 2:
            raise DataError(
                "a ranking needs at least 2 completions and every group of this table has 1",
                where=where,
                mend="give rows of one ranking the same prompt and annotator, or name their `group` column",
            )
        for group in groups:
            number, where, key, prompt, annotator, sign, *_ = group[0]
            result = Candidates(prompt, [], Row(number, {}, where), annotator, rated=sign == 1)
            for _, other, _, its_prompt, its_annotator, _, text, score, model in group:
                if (its_prompt, its_annotator) != (prompt, annotator):
                    raise DataError(
                        f"group {key!r} has another prompt or annotator than at {where}",
                        where=other,
                        mend="give each ranking a group of its own",
                    )
                result.answers.append(Answer(text, score, model))
            yield result


def pairs(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`chosen` and `rejected`: answers, or whole conversations that differ in the last message only.

    Transcripts (HH-RLHF) that differ before it are left out: published ones do, and no reader can mend them.
    """
    for row in rows:
        (before, chosen), (other, rejected) = (
            as_completion(row[columns.name(name)], f"column {columns.name(name)!r}", row.where)
            for name in ("chosen", "rejected")
        )
        if before != other and is_transcript(row[columns.name("chosen")]):
            reason = ("chosen and rejected differ before the last answer", row.number)
            yield Candidates(before, [], row, left_out=True, extra=[reason])
            continue
        if before != other:
            raise DataError(
                "chosen and rejected differ before the last answer",
                where=row.where,
                mend="remove the row: a ranking compares answers to the same conversation",
            )
        better, worse, rated = _pair_scores(row, columns)
        pair = Candidates(
            prompt=before or columns.prompt(row),
            answers=[Answer(chosen, better), Answer(rejected, worse)],
            row=row,
            annotator=columns.annotator(row),
            rated=rated,
        )
        if chosen == rejected:
            pair.left_out, pair.extra = True, [("chosen and rejected are the same", row.number)]
        yield pair


def _pair_scores(row: Row, columns: Columns) -> tuple[float, float, bool]:
    """Scores of the chosen and the rejected answer, and whether the table gives them."""
    ratings = [
        as_number(columns.optional(row, name), f"column {columns.name(name)!r}", row.where)
        for name in ("chosen_rating", "rejected_rating")
    ]
    if ratings[0] is not None and ratings[1] is not None:
        if ratings[0] < ratings[1]:
            raise DataError(
                f"the chosen answer is rated {ratings[0]:g}, below the rejected one ({ratings[1]:g})",
                where=row.where,
                mend="remove the row, or exchange the two columns",
            )
        return ratings[0], ratings[1], True
    margin = as_number(columns.optional(row, "margin"), f"column {columns.name('margin')!r}", row.where)
    if margin is not None and margin < 0:
        raise DataError(f"a margin of {margin:g}", where=row.where, mend="a margin is 0 (a tie) or above, or empty")
    return 1.0 if margin is None else margin, 0.0, margin is not None


def tree(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Conversation trees. The answers to one message, with ranks (lowest is best), make a ranking."""
    for row in rows:
        open_nodes: list[tuple[Any, list[Message]]] = [(row[columns.name("prompt")], [])]
        while open_nodes:
            value, before = open_nodes.pop()
            node = _node(value, row)
            content = node.text(columns.name("text"))
            role = ROLES.get(node.text(columns.name("role")))
            if role is None:
                raise DataError(
                    f"a message has the role {node[columns.name('role')]!r}",
                    where=row.where,
                    mend=f"use one of {', '.join(ROLES)}",
                )
            path = [*before, {"role": role, "content": content}]
            replies = node.get(columns.name("replies")) or []
            open_nodes.extend((reply, path) for reply in reversed(replies))
            if role == "user" and len(replies) > 1:
                yield _siblings(path, [_node(reply, row) for reply in replies], row, columns)


def _node(value: Any, row: Row) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"a message of the tree is not an object but {value!r:.60}",
            where=row.where,
            mend='write {"text": ..., "role": ..., "replies": [...]}',
        )
    return Row(row.number, value, row.where)


def _siblings(path: list[Message], replies: list[Row], row: Row, columns: Columns) -> Candidates:
    result = Candidates(path, [], row, rated=False)
    text, rank, model = columns.name("text"), columns.name("rank"), columns.name("model")
    for reply in replies:
        if reply.get("deleted"):
            result.extra.append(("deleted message", row.number))
            continue
        score = as_number(reply.get(rank), f"{rank!r} of a reply", row.where)
        name = as_text(reply.get(model), f"{model!r} of a reply", row.where)
        result.answers.append(Answer(reply.text(text), _signed(score, -1), name))
    return result


def scored(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`completions`: a list of `{text, score}` or `{text, rank}`; or texts, beside `ratings` or `ranks`."""
    for row in rows:
        items = _list(row, columns.name("completions"))
        if items and all(isinstance(item, dict) for item in items):
            entries = [_node(item, row) for item in items]
            order, sign = columns.order(entries[0], "score", "rank")
            text = columns.name("text")
            answers = [
                Answer(entry.text(text), _signed(entry.value(order), sign), columns.model(entry))
                for entry in entries
            ]
        else:
            order, sign = columns.order(row, "ratings", "ranks")
            values = _list(row, order) if items else []
            if len(values) != len(items):
                raise DataError(
                    f"{len(items)} completions have {len(values)} values in column {order!r}",
                    where=row.where,
                    mend="give one for each completion",
                )
            numbers = [as_number(value, f"a value of column {order!r}", row.where) for value in values]
            answers = [
                Answer(as_text(item, "a completion", row.where), _signed(number, sign))
                for item, number in zip(items, numbers, strict=True)
            ]
        yield Candidates(columns.prompt(row), answers, row, columns.annotator(row), rated=sign == 1)


def choice(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`completions`: a list of texts or of objects with a `text`, and `choice`, the place of the best, from 0."""
    for row in rows:
        items = _list(row, columns.name("completions"))
        best = as_number(row[columns.name("choice")], f"column {columns.name('choice')!r}", row.where)
        if best is not None and best not in range(len(items)):
            raise DataError(
                f"the choice is {best:g}, and there are {len(items)} completions",
                where=row.where,
                mend="a choice is the place of the best completion, counted from 0, or empty",
            )
        answers = []
        for place, item in enumerate(items):
            node = _node(item if isinstance(item, dict) else {columns.name("text"): item}, row)
            score = None if best is None else float(place == best)
            answers.append(Answer(node.text(columns.name("text")), score, columns.model(node)))
        yield Candidates(columns.prompt(row), answers, row, columns.annotator(row), rated=False)


def _list(row: Row, column: str) -> list[Any]:
    value = row[column]
    if not isinstance(value, list):
        raise DataError(
            f"column {column!r} is not a list but {value!r:.60}",
            where=row.where,
            mend="give a list in JSON, JSONL or Parquet; CSV cells hold none, use the format wide",
        )
    return value


def _signed(value: float | None, sign: int) -> float | None:
    return None if value is None else sign * value
