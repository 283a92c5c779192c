"""Numbers that are written as texts are recognised, and read as numbers by the recipe values that are printed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from data.schema import Ranking
from data.tables.guess.guess import Guess
from data.tables.guess.rankings import any_table
from data.tables.guess.sample import Sample
from data.tables.guess.section import config_of
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped, read_table
from pipeline.config.data import RankingTableConfig, TableConfig

ANSWERS = ["the first of three", "the second of three", "the third of three"]


def table(folder: Path, name: str, rows: list[list[str]], k: int = 3, delimiter: str = ",") -> str:
    """A file of prompts with `k` answers each, and the cells of `rows` in columns `name`1, `name`2, ..."""
    path = folder / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["prompt", *(f"answer{n}" for n in range(1, k + 1)), *(f"{name}{n + 1}" for n in range(k))])
        for number, cells in enumerate(rows):
            writer.writerow([f"What is {number}?", *ANSWERS[:k], *cells])
    return str(path)


def inspected(path: str) -> tuple[Guess, list[Ranking]]:
    """The guess, and what its section reads; nothing where something is open."""
    guess = any_table(Sample.of(TableConfig(path=path)))
    config = config_of(guess, path)
    if guess.open or not isinstance(config, RankingTableConfig):
        return guess, []
    return guess, list(read_rankings(config, Dropped()))


@pytest.mark.parametrize(
    ("name", "rows", "role", "ranks"),
    [
        ("score", [["4/5", "2 / 5", "5/5"], ["1/5", "3/5", "1/5"]], "ratings", [[2, 3, 1], [2, 1, 2]]),
        ("score", [["4 out of 10", "9 out of 10", "10 out of 10"]], "ratings", [[3, 2, 1]]),
        ("score", [["30 %", "9%", "100%"], ["1.5%", "3 %", "2 %"]], "ratings", [[2, 3, 1], [3, 1, 2]]),
        ("rating", [["4 stars", "1 star", "5 stars"]], "ratings", [[2, 3, 1]]),
        ("rank", [["2nd", "1st", "3rd"], ["1st", "2nd", "3rd"]], "ranks", [[2, 1, 3], [1, 2, 3]]),
    ],
)
def test_numbers_with_something_beside_them_are_extracted(
    name: str, rows: list[list[str]], role: str, ranks: list[list[int]], tmp_path: Path
) -> None:
    guess, read = inspected(table(tmp_path, name, rows))
    assert guess.columns[role] == [f"{name}1", f"{name}2", f"{name}3"]
    assert list(guess.values["extract"]) == [role]
    assert [ranking.ranks for ranking in read] == ranks


def test_scores_of_different_scales_are_not_compared(tmp_path: Path) -> None:
    guess, _ = inspected(table(tmp_path, "score", [["4/5", "2/10", "5/5"], ["4/5", "2/10", "5/5"]]))
    assert "extract" not in guess.values
    assert guess.open


def test_decimal_commas_are_read_as_decimals(tmp_path: Path) -> None:
    path = table(tmp_path, "score", [["3,5", "10,25", "4"], ["1,0", "0,5", "-1,5"]], delimiter=";")
    guess, read = inspected(path)
    assert guess.values == {"decimal": ","}
    assert [ranking.ratings for ranking in read] == [[3.5, 10.25, 4.0], [1.0, 0.5, -1.5]]


def test_cells_that_stand_for_no_number_are_read_as_empty(tmp_path: Path) -> None:
    guess, read = inspected(table(tmp_path, "score", [["3", "N/A", "5"], ["1", "2", "-"], ["2", "1", "3"]]))
    assert guess.values["na_values"] == ["-", "N/A"]
    assert [ranking.completions for ranking in read] == [[ANSWERS[0], ANSWERS[2]], ANSWERS[:2], ANSWERS]


def test_labels_are_no_numbers(tmp_path: Path) -> None:
    guess, _ = inspected(table(tmp_path, "score", [["good", "bad", "fair"], ["bad", "N/A", "good"]] * 2))
    [item] = guess.open
    assert item.line == 'scale: ["N/A", bad, fair, good]'
    assert "na_values" not in guess.values


def test_what_a_recipe_names_as_missing_is_empty_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"a": " n/a ", "b": ["x", 99, "N/A"], "c": {"d": "99", "e": 990}, "f": "N/A or not", "g": 1.5}\n'
    )
    [row] = read_table(TableConfig(path=str(path), na_values=["N/A", 99.0]))
    assert row == {"a": None, "b": ["x", None, None], "c": {"d": None, "e": 990}, "f": "N/A or not", "g": 1.5}


def test_a_decimal_comma_is_one_of_a_whole_number(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": "1,5", "b": ["-2,25", "1,2,3", "x 1,5"], "c": "3.5", "d": 2}\n')
    [row] = read_table(TableConfig(path=str(path), decimal=","))
    assert row == {"a": "1.5", "b": ["-2.25", "1,2,3", "x 1,5"], "c": "3.5", "d": 2}
    [row] = read_table(TableConfig(path=str(path)))
    assert row["a"] == "1,5"
