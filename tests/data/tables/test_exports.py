"""Every format that people export, in its real schema: read by recipe values, and compared with a calculation in
plain pandas from the raw rows; `inspect` reads the table in the same way, or asks for what it does not say."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from exports import Answers, Export, written
from exports_of_data_sets import DATA_SETS, HELPSTEER3
from exports_of_tools import TOOLS

from data.annotators.agreement import agreement
from data.schema import Ranking
from data.tables.check import parse
from data.tables.guess.rankings import any_table
from data.tables.guess.sample import Sample
from data.tables.guess.section import config_of
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.config.load import load_recipe

EXPORTS = [*DATA_SETS, *TOOLS]
RECIPE = """
name: r
base: {{pretrain: {{corpus: {{task: venues, size: 10}}}}}}
data:
  demonstrations: {{task: venues, size: 10}}
  rankings: {section}
rank: {{source: data}}
"""


def placed(export: Export, folder: Path) -> str:
    """Writes the table and the files beside it; returns its path."""
    for name, rows in export.beside.items():
        written(folder / name, rows)
    written(folder / f"t{export.suffix}", export.rows)
    return str(folder / f"t{export.suffix}")


def by_recipe(export: Export, folder: Path) -> list[Ranking]:
    path = placed(export, folder)
    section = yaml.safe_load(export.recipe.replace("FOLDER", str(folder)).replace(" on:", ' "on":')) | {
        "path": path
    }
    (folder / "recipe.yaml").write_text(RECIPE.format(section=json.dumps(section)))
    table = load_recipe(folder / "recipe.yaml").recipe.data.rankings
    assert isinstance(table, RankingTableConfig)
    return [item for item in parse("data.rankings", table, Dropped()) if isinstance(item, Ranking)]


def compared(answers: Answers) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The answers, and the pairs of answers of each ranking with the sign of their difference."""
    frame = pd.DataFrame(answers, columns=["ranking", "prompt", "annotator", "text", "score"])
    rows = [
        (ranking, group["prompt"].iloc[0], group["annotator"].iloc[0], *sorted((a.text, b.text)),
         (1 if a.text < b.text else -1) * ((a.score > b.score) - (a.score < b.score)))
        for ranking, group in frame.groupby("ranking", sort=False)
        for a, b in combinations(group.itertuples(), 2)
    ]  # fmt: skip
    return frame, pd.DataFrame(rows, columns=["ranking", "prompt", "annotator", "one", "other", "sign"])


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.name)
def test_an_export_is_read_as_pandas_counts_it(export: Export, tmp_path: Path) -> None:
    rankings = by_recipe(export, tmp_path)
    frame, pairs = compared(export.answers(export.rows))
    by_ranking = frame.groupby("ranking")
    assert len(rankings) == by_ranking.ngroups
    assert sorted(len(ranking.completions) for ranking in rankings) == sorted(by_ranking.size())
    counted = [
        (ranking.prompt[-1]["content"], ranking.annotator, *sorted((one, other)),
         (1 if one < other else -1) * ((rank < place) - (rank > place)))
        for ranking in rankings
        for (one, rank), (other, place) in combinations(zip(ranking.completions, ranking.ranks, strict=True), 2)
    ]  # fmt: skip
    assert sorted(counted) == sorted(pairs.drop(columns="ranking").itertuples(index=False, name=None))
    both = pairs.merge(pairs, on=["prompt", "one", "other"])
    both = both[(both.annotator_x < both.annotator_y) & (both.sign_x != 0) & (both.sign_y != 0)]
    measured = agreement(rankings).pairwise
    assert measured.pairs == len(both)
    assert measured.value == (pytest.approx((both.sign_x == both.sign_y).mean()) if len(both) else None)


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.name)
def test_inspect_reads_an_export_alike_or_asks(export: Export, tmp_path: Path) -> None:
    path = placed(export, tmp_path)
    guess = any_table(Sample.of(TableConfig(path=path)))
    if export.asked:
        assert [item.line for item in guess.open] == [export.asked]
        return
    assert guess.open == []
    read = list(parse(guess.table, config_of(guess, path), Dropped()))
    assert read == by_recipe(export, tmp_path)


def test_the_annotators_of_helpsteer3(tmp_path: Path) -> None:
    written(tmp_path / "t.jsonl", HELPSTEER3)
    columns: dict[str, Any] = {
        "prompt": "context",
        "completions": ["response1", "response2"],
        "preference": "individual_preference",
    }
    table = RankingTableConfig(path=str(tmp_path / "t.jsonl"), format="wide", columns=columns)
    measured = agreement(
        item for item in parse("data.rankings", table, Dropped()) if isinstance(item, Ranking)
    ).pairwise
    signs = pd.DataFrame([[(entry["score"] > 0) - (entry["score"] < 0) for entry in row["individual_preference"]]
                          for row in HELPSTEER3])  # fmt: skip
    both = [(a, b) for _, row in signs.iterrows() for a, b in combinations(row, 2) if a and b]
    assert (measured.pairs, measured.value) == (
        len(both),
        pytest.approx(pd.Series([a == b for a, b in both]).mean()),
    )
