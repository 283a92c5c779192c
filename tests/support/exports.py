"""Tables as people export them (`exports_of_data_sets`, `exports_of_tools`), with plain readers of their rows."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
Answers = list[tuple[Any, str, str, str, float | None]]
"""The ranking that an answer belongs to, its prompt's last turn, annotator, text and score (higher is better)."""

RNG = random.Random(7)
PROMPTS = [f"What is known about topic {number}?" for number in range(12)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@dataclass(frozen=True)
class Export:
    """A table as a tool or a data set has it.

    Attributes:
        rows: of the file.
        recipe: the recipe's values beside `path`.
        answers: the rows in plain Python, for the calculation.
        suffix: of the file.
        beside: another file in the same folder -> its rows.
        asked: a part of the question that `inspect` asks; empty where it guesses right.
    """

    name: str
    rows: Rows
    recipe: str
    answers: Callable[[Rows], Answers]
    suffix: str = ".jsonl"
    beside: dict[str, Rows] = field(default_factory=dict)
    asked: str = ""


def written(path: Path, rows: Rows) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pair(
    rows: Rows, prompt: Callable[[Any], str], chosen: Callable[[Any], str], rejected: Callable[[Any], str]
) -> Answers:
    return [
        (number, prompt(row), "unknown", text(row), score)
        for number, row in enumerate(rows)
        for text, score in ((chosen, 1.0), (rejected, 0.0))
    ]


def two(
    rows: Rows,
    prompt: Callable[[Any], str],
    texts: Callable[[Any], tuple[str, str]],
    verdict: Callable[[Any], float | None],
    annotator: Callable[[Any], str] = lambda row: "unknown",
) -> Answers:
    """`verdict`: by how much the second answer is better."""
    answers: Answers = []
    for number, row in enumerate(rows):
        better = verdict(row)
        for text, sign in zip(texts(row), (-1, 1), strict=True):
            score = None if better is None else sign * better
            answers.append((number, prompt(row), annotator(row), text, score))
    return answers


def each(read: Callable[[Any], tuple[str, str, list[tuple[str, float | None]]]]) -> Callable[[Rows], Answers]:
    """`read`: the prompt, annotator and scored answers of a row."""

    def of(rows: Rows) -> Answers:
        return [
            (number, prompt, who, text, score)
            for number, (prompt, who, answers) in enumerate(map(read, rows))
            for text, score in answers
        ]

    return of


def grouped(prompt: str, answer: str, score: str, who: str = "") -> Callable[[Rows], Answers]:
    """Of a table with an answer per row."""

    def of(rows: Rows) -> Answers:
        names = [row[who] if who else "unknown" for row in rows]
        return [
            ((row[prompt], name), row[prompt], name, row[answer], float(row[score]))
            for row, name in zip(rows, names, strict=True)
        ]

    return of
