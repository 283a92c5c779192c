"""The columns of exports of labelling tools, Argilla and Label Studio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.tables.guess.families import COMPLETION_WORDS, families
from data.tables.guess.guess import Guess, Open, choose_prompt, no_column
from data.tables.guess.sample import Sample, as_finite
from data.tables.suggest import words_of

SUFFIX = ".responses"


def argilla(sample: Sample) -> Guess | None:
    """Records of Argilla 1 and 2 with a `RankingQuestion`; None for other tables."""
    values = _argilla_values(sample)
    if not values:
        return None
    fields = _fields(sample)
    ranked = {name: options for name, options in values.items() if len(options) > 1}
    guess = Guess("argilla", why={"format": "records with responses to a question"})
    if len(ranked) != 1:
        names = list(ranked or values)
        guess.leave_open("question", names, f"the records answer {len(names)} questions: {', '.join(names)}")
        return guess
    [(question, options)] = ranked.items()
    if question != "ranking":
        guess.columns["question"] = question
    if set(options) <= set(fields.columns):
        order = [column for column in fields.columns if column in options]
        guess.columns["completions"] = order
    else:
        groups = [family for family in families(fields.columns) if len(family.members) == len(options)]
        known = [family for family in groups if family.is_called(COMPLETION_WORDS)] or groups
        if len(known) != 1:
            guess.open.append(
                Open(
                    f"completions: [the {len(options)} fields that were ranked]",
                    f"the question's values {', '.join(sorted(options))} are not names of fields",
                )
            )
            return guess
        guess.columns["completions"] = known[0].columns
        guess.columns["options"] = sorted(options)
        guess.why["options"] = "the question's values, in the order of the fields"
    choose_prompt(guess, fields, fields.columns)
    return guess


def _fields(sample: Sample) -> Sample:
    """The records' fields as columns, without responses, suggestions and what the tool adds."""
    rows = [row.get("fields") if isinstance(row.get("fields"), dict) else row for row in sample.rows]
    columns = dict.fromkeys(name for row in rows if row for name in row)
    kept = [
        name for name in columns if "." not in name and not name.startswith("_") and name not in ("id", "status")
    ]
    inner = [type(row)(row.number, cells or {}, row.where) for row, cells in zip(sample.rows, rows, strict=True)]
    return Sample(sample.path, inner, [name for name in kept if not name.endswith("-suggestion")])


def _argilla_values(sample: Sample) -> dict[str, set[str]]:
    """Question -> the options that its responses rank; empty for a table that is not Argilla's."""
    options: dict[str, set[str]] = {}
    for row in sample.rows:
        for question, responses in _argilla_responses(row):
            for value in responses:
                options.setdefault(question, set()).update(_ranked(value))
    return options


def _argilla_responses(row: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Each question of a record, and the values of its responses, in all layouts that Argilla writes."""
    responses = row.get("responses")
    if isinstance(row.get("fields"), dict) and isinstance(responses, list):
        for response in responses:
            for question, answer in (response.get("values") or {}).items():
                yield question, [answer.get("value")]
    elif isinstance(row.get("fields"), dict) and isinstance(responses, dict):
        for question, entries in responses.items():
            yield question, [entry.get("value") for entry in entries or [] if isinstance(entry, dict)]
    else:
        for name, cell in row.items():
            first = cell[0] if isinstance(cell, list) and cell else cell
            if name.endswith(SUFFIX) and isinstance(cell, list):
                yield name.removesuffix(SUFFIX), cell
            elif isinstance(first, dict) and {"user_id", "value"} <= first.keys():
                cells = cell if isinstance(cell, list) else [{"value": value} for value in _each(cell["value"])]
                yield name, [entry.get("value") for entry in cells]


def _each(values: Any) -> list[Any]:
    if isinstance(values, dict):
        return [dict(zip(values, cells, strict=True)) for cells in zip(*values.values(), strict=False)]
    return list(values or [])


def _ranked(value: Any) -> set[str]:
    """The options in one response to a `RankingQuestion`; empty for another question's."""
    if isinstance(value, dict) and isinstance(value.get("value"), list):
        value = value["value"]
    if not isinstance(value, list):
        return set()
    return {str(item["value"] if isinstance(item, dict) and "value" in item else item) for item in value}


def label_studio(sample: Sample) -> Guess | None:
    """Tasks with a `Pairwise` or a `Ranker` control, as JSON or JSON_MIN; None for other tables."""
    results = [result for row in sample.rows for result in _results(row)]
    kinds = {kind for _, value in results for kind in ("selected", "ranker") if kind in value}
    if not kinds:
        return None
    tasks = [row.get("data") if isinstance(row.get("data"), dict) else row for row in sample.rows]
    columns = list(dict.fromkeys(name for task in tasks if task for name in task))
    inner = [type(row)(row.number, task or {}, row.where) for row, task in zip(sample.rows, tasks, strict=True)]
    data = Sample(sample.path, inner, columns)
    guess = Guess("label_studio", why={"format": f"annotations of a {' and a '.join(sorted(kinds))} control"})
    controls = list(dict.fromkeys(name for name, value in results if "selected" in value or "ranker" in value))
    if len(controls) > 1:
        guess.leave_open("question", controls, f"the tasks have {len(controls)} controls that rank")
    if "selected" in kinds:
        _pairwise(guess, data)
    else:
        _ranker(guess, data, [value["ranker"] for _, value in results if "ranker" in value])
    choose_prompt(guess, data, columns, optional=False)
    return guess


def _results(row: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Control and value of each result of a task."""
    if isinstance(row.get("data"), dict):
        for annotation in row.get("annotations") or row.get("completions") or []:
            for result in annotation.get("result") or [] if isinstance(annotation, dict) else []:
                if isinstance(result, dict) and isinstance(result.get("value"), dict):
                    yield str(result.get("from_name")), result["value"]
        return
    for name, cell in row.items():
        for item in cell if isinstance(cell, list) else []:
            if isinstance(item, dict) and (
                isinstance(item.get("ranker"), dict) or item.get("selected") in ("left", "right")
            ):
                yield name, item


def _pairwise(guess: Guess, data: Sample) -> None:
    texts = [
        family for family in families(data.columns) if len(family.members) == 2 and data.are_texts(family.columns)
    ]
    known = [family for family in texts if family.is_called(COMPLETION_WORDS)] or texts
    if len(known) == 1:
        guess.columns["completions"] = known[0].columns
        guess.why["completions"] = "the first is taken as the left one"
    else:
        guess.open.append(
            Open("completions: [left, right]", "which two columns the control compares is not in the export")
        )


def _ranker(guess: Guess, data: Sample, values: Sequence[Mapping[str, Any]]) -> None:
    lists = [
        column
        for column in data.columns
        if any(isinstance(item, dict) and "id" in item for items in data.lists(column) for item in items)
        and not any("ranker" in item for items in data.lists(column) for item in items)
    ]
    if len(lists) != 1:
        raise no_column(data, "list of items that were ranked")
    guess.columns["completions"] = lists[0]
    keys = list(dict.fromkeys(key for items in data.lists(lists[0]) for item in items for key in item))
    texts = [key for key in ("body", "text", "content", "html") if key in keys]
    guess.choose("text", texts[:1])
    if "title" in keys and texts:
        titles = {str(item.get("title")) for items in data.lists(lists[0]) for item in items}
        if all(as_finite(title) is None and len(words_of(title)) < 6 for title in titles):
            guess.columns["model"] = "title"
            guess.why["model"] = "the items' titles"
    buckets = list(dict.fromkeys(name for value in values for name in value if name != "_"))
    if len(buckets) > 1:
        guess.open.append(
            Open(
                f"buckets: [{', '.join(buckets)}]",
                "which bucket is the best is not in the export: order them from best to worst",
            )
        )
