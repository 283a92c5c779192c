"""Before the `reward` stage runs, `plan` and `check` say what its max_length will leave out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from data.schema import Ranking, write_jsonl
from pipeline.config.data import DataConfig
from pipeline.config.reward import RewardConfig
from pipeline.engine.stage import Artifact
from stages import check
from stages.reward import forecast

LONG = "b" * 30


def ranking(completions: list[str], prompt: str, split: Any = "train") -> Ranking:
    ranks = list(range(1, len(completions) + 1))
    return Ranking(tiny.user(prompt), completions, ranks, "ann", human=False, split=split)


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, Artifact]:
    """A base, and 12 training and 3 held-out rankings, of which 3 and 0 have an answer that is too long."""
    (tmp_path / "rank").mkdir()
    rows = [ranking(["a", LONG + "c" * i if i < 3 else "b"], f"p{i}") for i in range(12)]
    rows += [ranking(["a", "b"], f"e{i}", "eval") for i in range(3)]
    write_jsonl(tmp_path / "rank" / "rankings.jsonl", rows)
    return {"base": tiny.base_artifact(tmp_path / "base"), "rank": Artifact("rank", tmp_path / "rank", "x")}


def test_the_line_is_the_one_that_the_stage_prints(artifacts: dict[str, Artifact]) -> None:
    [line] = forecast.lines(RewardConfig(max_length=12), artifacts["base"], [artifacts["rank"]])
    assert line.startswith(
        "reward: 3 of 12 training rankings left out: prompt and answer longer than reward.max_length = 12 tokens"
    )
    limit = int(line.partition("). ")[2].partition(" keeps all")[0])
    assert line.endswith(f"{limit} keeps all; 25.0 % are lost.")
    assert list(forecast.lines(RewardConfig(max_length=limit), artifacts["base"], [artifacts["rank"]])) == []


def test_a_large_table_is_measured_on_its_first_rankings(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "MOST", 6)
    [line] = forecast.lines(RewardConfig(max_length=12), artifacts["base"], [artifacts["rank"]])
    assert "3 of 6 training rankings" in line
    assert line.endswith("(Of the first 6.)")


@dataclass
class Step:
    """What `plan` knows of a step."""

    spec: Any
    finished: Any = None


def steps(artifacts: dict[str, Artifact], *unfinished: str) -> list[Any]:
    return [
        Step(
            SimpleNamespace(name=name),
            None if name in unfinished else SimpleNamespace(artifact=artifacts.get(name)),
        )
        for name in ("base", "rank", "reward")
    ]


def loaded(**values: Any) -> Any:
    config = RewardConfig(max_length=12, **values)
    rank = SimpleNamespace(source="app")
    return SimpleNamespace(recipe=SimpleNamespace(reward=config, rank=rank, data=DataConfig()))


@pytest.mark.parametrize(
    ("unfinished", "told"),
    [(("reward",), 1), ((), 0), (("base", "reward"), 0), (("rank", "reward"), 0)],
    ids=["ready", "trained", "no tokenizer", "no rankings"],
)
def test_it_is_said_once_base_and_rankings_are_there_and_the_model_is_not(
    artifacts: dict[str, Artifact], unfinished: tuple[str, ...], told: int
) -> None:
    assert len(check.too_long_to_rank(loaded(), steps(artifacts, *unfinished))) == told
