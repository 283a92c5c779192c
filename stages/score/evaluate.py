"""Evaluates a reward model on a benchmark's file: RewardBench 2, RM-Bench, or pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np

from data.bootstrap import bootstrap
from data.tables.messages import exchange
from data.tables.sources import Row, read_table
from pipeline.config.data import TableConfig
from pipeline.engine.stage import Progress
from pipeline.errors import DataError
from stages.score import benchmarks
from stages.score.model import Answers, RewardScorer
from stages.score.rows import Layout

Format = Literal["rewardbench-2", "rm-bench", "pairs"]
TIES = "ties"
ROWS = 256
"""Rows scored together."""

Opener = Callable[..., AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Line:
    """A result.

    Attributes:
        name: the subset, domain or measure.
        value: from 0 to 1.
        rows: how many rows it rests on.
        low, high: 95 % bootstrap interval over rows; None where it is not defined.
    """

    name: str
    value: float
    rows: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Item:
    """A row of a benchmark.

    Attributes:
        correct: how many of the answers, which come first, are correct.
        group: its subset or domain; "" if it has none.
        id: of RewardBench 2, "ref:12" in its Ties subset.
    """

    answers: Answers
    correct: int
    group: str = ""
    id: str = ""


@dataclass
class _Tally:
    """Results of the rows read so far, by group in the order of the file."""

    hits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ties: dict[str, list[benchmarks.TiesRow]] = field(default_factory=lambda: defaultdict(list))
    matrices: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))


def format_of(row: Row) -> Format:
    """The format of a table, by its first row. Raises `DataError` for an unknown one."""
    cells = [row.get(name) for name in ("chosen", "rejected")]
    texts = all(isinstance(cell, list) and all(isinstance(item, str) for item in cell) for cell in cells)
    if texts and "subset" in row:
        return "rewardbench-2"
    if texts and "domain" in row:
        return "rm-bench"
    if "chosen" in row and "rejected" in row and not texts:
        return "pairs"
    raise DataError(
        "the table has none of the formats that can be evaluated",
        where=row.where,
        hint="RewardBench 2 has lists chosen and rejected with a subset; RM-Bench has lists with a domain; pairs "
        "have one answer in each",
    )


def first_format(table: TableConfig) -> Format:
    return format_of(next(read_table(table)))


def evaluate(table: TableConfig, model: RewardScorer, progress: Opener, form: Format) -> list[Line]:
    """The results of a table, as the official scorers compute them. Raises `DataError` for a row that is not of the
    format, before anything is scored, and as `RewardScorer.score`."""
    with progress("reading the table") as bar:
        total = 0
        for row in read_table(table):
            total += len(_item(row, form).answers.completions)
            bar.advance()
    tally, items = _Tally(), (_item(row, form) for row in read_table(table))
    with progress("score", total=total) as bar:
        while part := list(islice(items, ROWS)):
            scored = model.score([item.answers for item in part], bar.advance)
            for item, scores in zip(part, scored, strict=True):
                _count(tally, form, item, scores.scores)
    return list(_lines(tally, form))


def _item(row: Row, form: Format) -> Item:
    if form == "pairs":
        answers = Layout("prompt" if "prompt" in row else None, ["chosen", "rejected"]).answers(row)
        return Item(answers, 1, str(row.get("subset") or ""))
    chosen, rejected = (_texts(row, name) for name in ("chosen", "rejected"))
    described = [("column 'chosen'", text) for text in chosen] + [("column 'rejected'", text) for text in rejected]
    prompt, texts = exchange(row["prompt"], described, row.where, text_lists="text", what="column 'prompt'")
    if not prompt:
        raise DataError("the prompt is empty", where=row.where, hint="fill the prompt's cell")
    answers = Answers(prompt, texts, row.where)
    if form == "rm-bench":
        if len(chosen) != len(rejected) or len(chosen) < 2:
            raise DataError(
                f"RM-Bench has as many chosen as rejected answers, one for each style; here are {len(chosen)} and "
                f"{len(rejected)}",
                where=row.where,
                hint="use the file as it was published",
            )
        return Item(answers, len(chosen), str(row["domain"]))
    correct = row.get("num_correct") or len(chosen)
    if correct != len(chosen):
        raise DataError(
            f"num_correct is {correct!r}, and there are {len(chosen)} chosen answers",
            where=row.where,
            hint="use the file as it was published",
        )
    item = Item(answers, len(chosen), str(row["subset"]), str(row.get("id", "")))
    if _is_ties(item):
        kind, _, number = item.id.partition(":")
        if kind not in ("ref", "tied") or not number.isdecimal():
            raise DataError(
                f"an id of the Ties subset is ref:N or tied:N, got {item.id!r}",
                where=row.where,
                hint="use the file as it was published",
            )
    return item


def _texts(row: Row, column: str) -> list[str]:
    cell = row[column]
    if isinstance(cell, str) or not isinstance(cell, Sequence) or not cell:
        raise DataError(
            f"column {column!r} must be a list of answers, got {cell!r:.60}",
            where=row.where,
            hint='write ["...", "..."]',
        )
    return list(cell)


def _is_ties(item: Item) -> bool:
    return item.group.lower() == TIES


def _count(tally: _Tally, form: Format, item: Item, scores: Sequence[float]) -> None:
    correct, wrong = scores[: item.correct], scores[item.correct :]
    if form == "rm-bench":
        tally.matrices[item.group].append(benchmarks.style_matrix(correct, wrong))
    elif form == "pairs":
        tally.hits[item.group].append(benchmarks.pair_accuracy(scores[0], scores[1]))
    elif _is_ties(item):
        kind, _, number = item.id.partition(":")
        tally.ties[item.group].append(benchmarks.TiesRow(kind, int(number), correct, wrong))
    else:
        tally.hits[item.group].append(benchmarks.best_of_n(scores))


def _lines(tally: _Tally, form: Format) -> Iterator[Line]:
    """The results: each group, then the whole file."""
    if form == "rm-bench":
        everything = [matrix for matrices in tally.matrices.values() for matrix in matrices]
        groups = {**(tally.matrices if len(tally.matrices) > 1 else {}), "": everything}
        for group, matrices in groups.items():
            accuracies = benchmarks.style_accuracies(np.mean(matrices, axis=0))
            named = accuracies | {"mean of the three": float(np.mean(list(accuracies.values())))}
            for name, value in named.items():
                yield Line(f"{group}: {name}" if group else name, value, len(matrices))
        return
    values = []
    groups_of_hits = tally.hits if len(tally.hits) > 1 or form == "rewardbench-2" else {}
    for group, hits in groups_of_hits.items():
        values.append(float(np.mean(hits)))
        yield Line(group, values[-1], len(hits), *bootstrap(hits))
    for group, rows in tally.ties.items():
        values.append(benchmarks.ties_score(rows))
        yield Line(group, values[-1], len(rows))
    if form == "pairs":
        hits = [hit for of_group in tally.hits.values() for hit in of_group]
        yield Line("accuracy", float(np.mean(hits)), len(hits), *bootstrap(hits))
    elif len(values) > 1:
        count = sum(map(len, tally.hits.values())) + sum(map(len, tally.ties.values()))
        yield Line("mean of the subsets", float(np.mean(values)), count)


def as_json(form: Format, model: RewardScorer, lines: Sequence[Line]) -> dict[str, Any]:
    """The results for a file."""
    return {
        "format": form,
        "reward_model": model.name,
        "results": [
            {"name": line.name, "value": line.value, "rows": line.rows, "low": line.low, "high": line.high}
            for line in lines
        ],
    }
