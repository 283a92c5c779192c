"""Reading an artifact's files as dataclasses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.engine.stage import Artifact, parse
from pipeline.errors import StageError


@dataclass(frozen=True, kw_only=True)
class Part:
    value: float


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    parts: dict[str, Part]
    count: int | None = None


def test_nested_values_become_dataclasses_and_unknown_keys_are_ignored() -> None:
    content = {"name": "x", "parts": {"a": {"value": 1, "new": 2}}, "later": []}
    assert parse(Whole, content, "x.json") == Whole(name="x", parts={"a": Part(value=1.0)})


@pytest.mark.parametrize(
    ("content", "path"),
    [({"name": "x"}, "parts"), ({"name": "x", "parts": {"a": {"value": "much"}}}, "parts.a.value")],
)
def test_a_missing_or_wrong_value_is_named_with_its_file(content: dict[str, object], path: str) -> None:
    with pytest.raises(StageError) as error:
        parse(Whole, content, "runs/eval/out/eval.json")
    assert error.value.what.startswith(f"{path}: ")
    assert error.value.where == "runs/eval/out/eval.json"


def test_the_lines_of_a_file_are_read_one_by_one(tmp_path: Path) -> None:
    lines = [{"value": 0.5}, {"value": 2}]
    (tmp_path / "parts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = Artifact("eval", tmp_path, "0" * 64).rows("parts.jsonl", Part)
    assert next(rows) == Part(value=0.5)
    assert list(rows) == [Part(value=2.0)]
