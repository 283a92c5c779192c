"""Rankings as labelling tools export them.

Argilla 2 (`RankingQuestion`): records as `dataset.records.to_datasets()`, `to_list(flatten=True)` (a column
`<question>.responses`, with `.users` and `.status`) or `to_list()`, `to_json()` (nested) write them. A response
lists the question's options, best first. Argilla 1 (`FeedbackDataset`): as `format_as("datasets")` writes them (a
column named as the question, with users, values and statuses) or as its records are (`responses`, a list).

Label Studio: JSON (a task with its annotations) and JSON_MIN (an annotation a row) of projects with a `Pairwise`
or a `Ranker` control. A ranking carries the time it took and where each completion was shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from data.schema import Message
from data.tables.columns import ANONYMOUS, Candidates, Columns, Completion, each, nothing
from data.tables.sources import Row, as_number
from pipeline.errors import DataError

# Argilla


def argilla(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Records with responses to one `RankingQuestion`.

    `completions` names the fields that were ranked, `options` what the question calls them where that differs.
    """
    fields = columns.names("completions")
    options = columns.names("options") or fields
    models = columns.names("models")
    question = columns.name("question") if "question" in columns.named else "ranking"
    if len(fields) < 2:
        raise columns.error(
            f"a ranking needs at least 2 completions and `completions` names {len(fields)} fields",
            "name the fields that were ranked, completions: [response1, response2, ...]",
        )
    for name, values in (("options", options), ("models", models or fields)):
        if len(values) != len(fields):
            raise columns.error(
                f"{len(fields)} completions have {len(values)} {name}", f"name one in {name} for each completion"
            )

    def read(record: Row) -> Iterator[Candidates]:
        row, responses = _responses(record, question, columns)
        if not responses:
            yield nothing(row, "no response")
        for value, user, status in responses:
            if status not in (None, "submitted"):
                yield nothing(row, f"{status} response")
                continue
            if value is None:
                yield nothing(row, "response without a ranking")
                continue
            places = _places(value, question, options, row)
            prompt, texts = columns.exchange(row, columns.cells(row, fields))
            answers = [
                Completion(text, None if option not in places else -float(places[option]))
                for text, option in zip(texts, options, strict=True)
            ]
            for answer, model in zip(answers, models, strict=False):
                answer.model = row.text(model)
            yield Candidates(prompt, answers, row, str(user) if user else ANONYMOUS, rated=False)

    yield from each(rows, read)


Response = tuple[Any, Any, Any]
"""The value, the user and the status of a response to the question; user and status may be None."""


def _responses(record: Row, question: str, columns: Columns) -> tuple[Row, list[Response]]:
    """A record with its fields and metadata as columns, and its responses to the question, from any of the five
    layouts that Argilla writes. Questions with answers are added to `columns.questions`."""
    row, responses = record, record.get("responses")
    if isinstance(record.get("fields"), dict):
        metadata = record.get("metadata")
        row = Row(
            record.number, {**record["fields"], **(metadata if isinstance(metadata, dict) else {})}, record.where
        )
        if isinstance(responses, list):  # Argilla 1: a response has the answers to all questions
            entries = [_entry(response, record) for response in responses]
            columns.questions.update(name for entry in entries for name in entry.get("values") or {})
            return row, [
                ((entry.get("values") or {})[question].get("value"), entry.get("user_id"), entry.get("status"))
                for entry in entries
                if question in (entry.get("values") or {})
            ]
        by_question = _entry(responses or {}, record)
        columns.questions.update(by_question)
        return row, _of_entries(by_question.get(question), record)
    if f"{question}.responses" in record:
        values, users, status = (
            record.get(f"{question}.responses{part}") or [] for part in ("", ".users", ".status")
        )
        return record, list(zip_longest(values, users[: len(values)], status[: len(values)]))
    suffix = ".responses"
    columns.questions.update(name.removesuffix(suffix) for name in record if name.endswith(suffix))
    columns.questions.update(
        name for name, cell in record.items() if name != question and _of_argilla_1(cell) and cell is not None
    )
    return record, _of_entries(record.get(question) if _of_argilla_1(record.get(question)) else None, record)


def _of_argilla_1(cell: Any) -> bool:
    """Whether a column holds responses as Argilla 1 writes them to the Hub: a list of objects with a user and a
    value, or, as `datasets` may give it, an object of such lists."""
    first = cell[0] if isinstance(cell, list) and cell else cell
    return isinstance(first, dict) and {"user_id", "value"} <= first.keys()


def _of_entries(responses: Any, record: Row) -> list[Response]:
    """Responses as objects with a value, a user and a status, or as one object of lists of them."""
    if isinstance(responses, dict):
        values, users, status = (responses.get(name) or [] for name in ("value", "user_id", "status"))
        if isinstance(values, dict):
            values = [dict(zip(values, cells, strict=True)) for cells in zip(*values.values(), strict=False)]
        return list(zip_longest(values, users[: len(values)], status[: len(values)]))
    entries = [_entry(response, record) for response in responses or []]
    return [(entry.get("value"), entry.get("user_id"), entry.get("status")) for entry in entries]


def _places(value: Any, question: str, options: Sequence[str], row: Row) -> dict[str, int]:
    """Option -> place, 1 the best. Objects with `value` and `rank` (Argilla 1 and its server) may tie; Argilla 1
    may write one object of two lists instead."""
    if isinstance(value, dict) and all(isinstance(value.get(key), list) for key in ("value", "rank")):
        value = [{"value": name, "rank": rank} for name, rank in zip(value["value"], value["rank"], strict=False)]
    if not isinstance(value, list):
        raise DataError(
            f"a response to {question!r} must be a list of options, got {value!r:.60}",
            where=row.where,
            hint="name the RankingQuestion under `columns`, question: NAME",
        )
    places = {}
    for place, item in enumerate(value, 1):
        name, rank = (item.get("value"), item.get("rank", place)) if isinstance(item, dict) else (item, place)
        if name not in options:
            raise DataError(
                f"a response to {question!r} ranks {name!r}, which is not one of {', '.join(options)}",
                where=row.where,
                hint="name the question's values under `columns`, options: [...], in the order of completions",
            )
        number = as_number(rank, f"a rank of {question!r}", row.where)
        if number is not None:
            places[str(name)] = int(number)
    return places


# Label Studio


def label_studio(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Tasks with annotations (JSON), or an annotation a row (JSON_MIN).

    `completions: [answer1, answer2]` are the two columns of a `Pairwise` control, the left one first;
    `completions: items` is the column with the list of a `Ranker`, each item with an `id` and a `text` (`body`
    unless named). `question` is the control's name, needed where a task has several.
    """
    compared = columns.named.get("completions")
    pairwise = isinstance(compared, list)
    if isinstance(compared, list) and len(compared) != 2:
        raise columns.error(
            f"a Pairwise control compares 2 completions and `completions` names {len(compared)}",
            "name two columns, the left one first, or the one column with the items of a Ranker",
        )
    kind = "selected" if pairwise else "ranker"

    def read(row: Row) -> Iterator[Candidates]:
        if not ("data" in row and ("annotations" in row or "completions" in row)):
            results = [(name, item) for name, cell in row.items() if isinstance(cell, list) for item in cell]
            yield _annotated(row, results, row.get("annotator"), row, kind, columns)
            return
        task = Row(row.number, _entry(row["data"], row), row.where)
        annotations = row.get("annotations") or row.get("completions") or []
        if not annotations:
            yield nothing(row, "no annotation")
        for annotation in (_entry(item, row) for item in annotations):
            if annotation.get("was_cancelled") or annotation.get("skipped"):
                yield nothing(row, "cancelled annotation")
                continue
            results = [
                (str(result.get("from_name")), result.get("value"))
                for result in (_entry(item, row) for item in annotation.get("result") or [])
            ]
            yield _annotated(task, results, annotation.get("completed_by"), annotation, kind, columns)

    yield from each(rows, read)


def _annotated(
    task: Row,
    results: Sequence[tuple[str, Any]],
    completed_by: Any,
    annotation: Mapping[str, Any],
    kind: str,
    columns: Columns,
) -> Candidates:
    """One annotation of a task; `results` are (control, value)."""
    orders = {name: value[kind] for name, value in results if isinstance(value, dict) and kind in value}
    question = columns.name("question") if "question" in columns.named else None
    if question is not None:
        orders = {name: value for name, value in orders.items() if name == question}
    if not orders:
        return nothing(task, "no ranking in the annotation")
    if len(orders) > 1:
        raise DataError(
            f"the annotation answers {len(orders)} controls: {', '.join(orders)}",
            where=task.where,
            hint="name the one that ranks under `columns`, question: NAME",
        )
    value = next(iter(orders.values()))
    prompt, answers = _of_pair(task, value, columns) if kind == "selected" else _of_list(task, value, columns)
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    metadata: dict[str, Any] = {"shown": list(range(len(answers)))}
    seconds = as_number(annotation.get("lead_time"), "'lead_time'", task.where)
    if seconds is not None:
        metadata["seconds"] = seconds
    annotator = str(completed_by) if completed_by not in (None, "", {}) else ANONYMOUS
    return Candidates(prompt, answers, task, annotator, rated=False, metadata=metadata)


Compared = tuple[list[Message], list[Completion]]


def _of_pair(task: Row, selected: Any, columns: Columns) -> Compared:
    if selected not in ("left", "right"):
        raise DataError(
            f"a Pairwise control must select left or right, got {selected!r:.60}",
            where=task.where,
            hint="export the project again, as JSON or JSON_MIN",
        )
    prompt, texts = columns.exchange(task, columns.cells(task, columns.names("completions")))
    models = [task.text(column) or None for column in columns.names("models")] or [None, None]
    return prompt, [
        Completion(text, float(side == selected), model)
        for text, side, model in zip(texts, ("left", "right"), models, strict=True)
    ]


def _of_list(task: Row, ranker: Any, columns: Columns) -> Compared:
    """The items of the list, scored by their place in the one column, or by the bucket that they were put into."""
    buckets = columns.names("buckets")
    if not isinstance(ranker, dict) or not all(isinstance(ids, list) for ids in ranker.values()):
        raise DataError(
            f"a Ranker's value must be {{column: [ids]}}, got {ranker!r:.60}",
            where=task.where,
            hint="export the project as JSON or JSON_MIN",
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
            hint="name them from best to worst under `columns`, buckets: [...]; others are left out",
        )
    column = columns.name("completions")
    items = task[column]
    if not isinstance(items, list):
        raise DataError(
            f"column {column!r} must be a list of items, got {items!r:.60}",
            where=task.where,
            hint="name the column with the List's items under `columns`, completions: NAME",
        )
    text = columns.name("text") if "text" in columns.named else "body"
    entries = [Row(task.number, _entry(item, task), task.where) for item in items]
    named = [(f"item {entry['id']!r}", entry[text]) for entry in entries]
    prompt, texts = columns.exchange(task, named)
    models = [entry.text(columns.name("model")) if "model" in columns.named else None for entry in entries]
    return prompt, [
        Completion(text, scores.get(str(entry["id"])), model)
        for text, entry, model in zip(texts, entries, models, strict=True)
    ]


def _entry(value: Any, row: Row) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"the export must hold an object here, got {value!r:.60}",
            where=row.where,
            hint="export the data set again, and check `format` in the recipe",
        )
    return value
