"""Rankings as labelling tools export them.

Argilla 2 (`RankingQuestion`): records as `dataset.records.to_datasets()`, `to_list(flatten=True)` (a column
`<question>.responses`, with `.users` and `.status`) or `to_list()`, `to_json()` (nested) write them. A response
lists the question's options, best first.

Label Studio: JSON (a task with its annotations) and JSON_MIN (an annotation a row) of projects with a `Pairwise`
or a `Ranker` control. A ranking carries the time it took and where each completion was shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.columns import ANONYMOUS, Answer, Candidates, Columns
from data.sources import Row, as_number
from pipeline.errors import DataError

# Argilla


def argilla(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Records with responses to one `RankingQuestion`.

    `completions` names the fields that were ranked, `options` what the question calls them where that differs.
    """
    fields = columns.names("completions")
    options = columns.names("options") or fields
    models = columns.names("models")
    question = columns.name("question") if "question" in columns.given else "ranking"
    if len(fields) < 2:
        raise columns.error(
            f"a ranking needs at least 2 completions and `completions` names {len(fields)} fields",
            "name the fields that were ranked, completions: [response1, response2, ...]",
        )
    for name, given in (("options", options), ("models", models or fields)):
        if len(given) != len(fields):
            raise columns.error(
                f"{len(fields)} completions have {len(given)} {name}", f"name one in {name} for each completion"
            )
    for record in rows:
        row = _flat(record, question)
        prompt = columns.prompt(row)
        values, users, status = (
            _responses(row, f"{question}.responses{part}") for part in ("", ".users", ".status")
        )
        if not values:
            yield _nothing(row, "no response")
        for i, value in enumerate(values):
            state = status[i] if i < len(status) else None
            if state not in (None, "submitted"):
                yield _nothing(row, f"{state} response")
                continue
            places = _places(value, question, options, row)
            answers = [
                Answer(row.text(field), None if option not in places else -float(places[option]))
                for field, option in zip(fields, options, strict=True)
            ]
            for answer, model in zip(answers, models, strict=False):
                answer.model = row.text(model)
            user = str(users[i]) if i < len(users) and users[i] else ANONYMOUS
            yield Candidates(prompt, answers, row, user, rated=False)


def _flat(record: Row, question: str) -> Row:
    """A nested record as the flattened ones are: fields and metadata as columns, responses as lists."""
    if not isinstance(record.get("fields"), dict):
        return record
    responses = (record.get("responses") or {}).get(question) or []
    cells = {
        **record["fields"],
        **(record.get("metadata") or {}),
        f"{question}.responses": [_entry(response, record).get("value") for response in responses],
        f"{question}.responses.users": [response.get("user_id") for response in responses],
        f"{question}.responses.status": [response.get("status") for response in responses],
    }
    return Row(record.number, cells, record.where)


def _responses(row: Row, column: str) -> Sequence[Any]:
    """A column of responses; Argilla writes none, or null, where no record, or not this one, has any."""
    return row.get(column) or []


def _places(value: Any, question: str, options: Sequence[str], row: Row) -> dict[str, int]:
    """Option -> place, 1 the best. Objects with `value` and `rank` (Argilla 1 and its server) may tie."""
    if not isinstance(value, list):
        raise DataError(
            f"a response to {question!r} is no list of options but {value!r:.60}",
            where=row.where,
            mend="name the RankingQuestion under `columns`, question: NAME",
        )
    places = {}
    for place, item in enumerate(value, 1):
        name, rank = (item.get("value"), item.get("rank")) if isinstance(item, dict) else (item, None)
        if name not in options:
            raise DataError(
                f"a response to {question!r} ranks {name!r}, which is none of {', '.join(options)}",
                where=row.where,
                mend="name the question's values under `columns`, options: [...], in the order of completions",
            )
        places[str(name)] = place if rank is None else int(rank)
    return places


# Label Studio


def label_studio(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Tasks with annotations (JSON), or an annotation a row (JSON_MIN).

    `completions: [answer1, answer2]` are the two columns of a `Pairwise` control, the left one first;
    `completions: items` is the column with the list of a `Ranker`, each item with an `id` and a `text` (`body`
    unless named). `question` is the control's name, needed where a task has several.
    """
    compared = columns.given.get("completions")
    pairwise = isinstance(compared, list)
    if isinstance(compared, list) and len(compared) != 2:
        raise columns.error(
            f"a Pairwise control compares 2 completions and `completions` names {len(compared)}",
            "name two columns, the left one first, or the one column with the items of a Ranker",
        )
    kind = "selected" if pairwise else "ranker"
    for row in rows:
        if "data" in row and ("annotations" in row or "completions" in row):
            task = Row(row.number, _entry(row["data"], row), row.where)
            annotations = row.get("annotations") or row.get("completions") or []
            if not annotations:
                yield _nothing(row, "no annotation")
            for given in annotations:
                annotation = _entry(given, row)
                if annotation.get("was_cancelled") or annotation.get("skipped"):
                    yield _nothing(row, "cancelled annotation")
                    continue
                results = [
                    (str(result.get("from_name")), result.get("value"))
                    for result in (_entry(item, row) for item in annotation.get("result") or [])
                ]
                who = annotation.get("completed_by")
                yield _annotated(task, results, who, annotation, kind, columns)
        else:
            results = [(name, item) for name, cell in row.items() if isinstance(cell, list) for item in cell]
            yield _annotated(row, results, row.get("annotator"), row, kind, columns)


def _annotated(
    task: Row,
    results: Sequence[tuple[str, Any]],
    who: Any,
    annotation: Mapping[str, Any],
    kind: str,
    columns: Columns,
) -> Candidates:
    """One annotation of a task; `results` are (control, value)."""
    found = {name: value[kind] for name, value in results if isinstance(value, dict) and kind in value}
    question = columns.name("question") if "question" in columns.given else None
    if question is not None:
        found = {name: value for name, value in found.items() if name == question}
    if not found:
        return _nothing(task, "no ranking in the annotation")
    if len(found) > 1:
        raise DataError(
            f"the annotation answers {len(found)} controls: {', '.join(found)}",
            where=task.where,
            mend="name the one that ranks under `columns`, question: NAME",
        )
    value = next(iter(found.values()))
    answers = _of_pair(task, value, columns) if kind == "selected" else _of_list(task, value, columns)
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    metadata: dict[str, Any] = {"shown": list(range(len(answers)))}
    seconds = as_number(annotation.get("lead_time"), "'lead_time'", task.where)
    if seconds is not None:
        metadata["seconds"] = seconds
    annotator = str(who) if who not in (None, "", {}) else ANONYMOUS
    return Candidates(columns.prompt(task), answers, task, annotator, rated=False, metadata=metadata)


def _of_pair(task: Row, selected: Any, columns: Columns) -> list[Answer]:
    if selected not in ("left", "right"):
        raise DataError(
            f"a Pairwise control selected {selected!r:.60}", where=task.where, mend="it can be left or right"
        )
    texts = [task.text(column) for column in columns.names("completions")]
    models = [task.text(column) or None for column in columns.names("models")] or [None, None]
    return [
        Answer(text, float(side == selected), model)
        for text, side, model in zip(texts, ("left", "right"), models, strict=True)
    ]


def _of_list(task: Row, ranker: Any, columns: Columns) -> list[Answer]:
    """The items of the list, scored by their place in the one column, or by the bucket that they were put into."""
    buckets = columns.names("buckets")
    if not isinstance(ranker, dict) or not all(isinstance(ids, list) for ids in ranker.values()):
        raise DataError(
            f"a Ranker's value is not {{column: [ids]}} but {ranker!r:.60}",
            where=task.where,
            mend="export the project as JSON or JSON_MIN",
        )
    scores: dict[str, float] = {}
    if buckets:
        for place, bucket in enumerate(buckets):
            scores |= {str(item): -float(place) for item in ranker.get(bucket, [])}
    elif len(ranker) == 1:
        scores = {str(item): -float(place) for place, item in enumerate(next(iter(ranker.values())))}
    else:
        raise DataError(
            f"the Ranker has {len(ranker)} buckets: {', '.join(ranker)}",
            where=task.where,
            mend="name them from best to worst under `columns`, buckets: [...]; others are left out",
        )
    column = columns.name("completions")
    items = task[column]
    if not isinstance(items, list):
        raise DataError(
            f"column {column!r} is not a list of items but {items!r:.60}",
            where=task.where,
            mend="name the column with the List's items under `columns`, completions: NAME",
        )
    text = columns.name("text") if "text" in columns.given else "body"
    answers = []
    for item in items:
        entry = Row(task.number, _entry(item, task), task.where)
        name = entry.text(columns.name("model")) if "model" in columns.given else None
        answers.append(Answer(entry.text(text), scores.get(str(entry["id"])), name))
    return answers


def _entry(value: Any, row: Row) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"the export holds {value!r:.60} where an object belongs",
            where=row.where,
            mend="export the data set again, and check `format` in the recipe",
        )
    return value


def _nothing(row: Row, reason: str) -> Candidates:
    """A record that makes no ranking, for a reason of its own."""
    return Candidates([], [], row, extra=[(reason, row.number)], left_out=True)
