"""Preference labels: documented values are read; others are refused unless the recipe's `labels` define them."""

import json
import random

import pytest

from data.schema import Ranking
from data.tables.columns import key_of
from data.tables.first_wins import FirstWins
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.config.load import load_recipe
from pipeline.errors import DataError, RecipeError

COLUMNS = {"prompt": "input", "completions": ["output_1", "output_2"], "preference": "label"}


def read(tmp_path, values, labels=None, format="wide", dropped=None, **columns):
    """The ranks of a table with these labels and LLMBar's columns: input, output_1, output_2, label."""
    rows = [{"input": f"Q{i}", "output_1": "x", "output_2": "y", "label": v} for i, v in enumerate(values)]
    if format == "choice":
        rows = [{"prompt": r["input"], "completions": ["x", "y"], "choice": r["label"]} for r in rows]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = columns or (COLUMNS if format == "wide" else {})
    config = RankingTableConfig(path=str(path), format=format, columns=columns, labels=labels or {})
    return [ranking.ranks for ranking in read_rankings(config, dropped or Dropped())]


FIRST, SECOND, TIE = [1, 2], [2, 1], [1, 1]


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        (["A", "B", "tie"], [FIRST, SECOND, TIE]),
        (["model_a", "model_b", "tie", "tie (bothbad)"], [FIRST, SECOND, TIE, TIE]),
        (["output_1", "Output_2", " first ", "SECOND"], [FIRST, SECOND, FIRST, SECOND]),
        ([-3, 0, 2, "-1", "1.5"], [FIRST, TIE, SECOND, FIRST, SECOND]),
        (["left", "Right", "tie (both bad)", "bothgood", "draw"], [FIRST, SECOND, TIE, TIE, TIE]),
        (["Model A", "response-b", "Assistant_A", "option b"], [FIRST, SECOND, FIRST, SECOND]),
        (["A>B", "A>>B", "B=A", "B > A", "A < B", "a<<b"], [FIRST, FIRST, TIE, SECOND, SECOND, SECOND]),
        (
            ["[[A]]", "[[B]]", "[[C]]", "[A]", "[[A>>B]]", "[[B>A]]", "[[A=B]]"],
            [FIRST, SECOND, TIE, FIRST, FIRST, SECOND, TIE],
        ),
        (["output_1 > output_2", "output_2>>output_1"], [FIRST, SECOND]),
        (["x", "y", " x "], [FIRST, SECOND, FIRST]),  # the text of an answer
    ],
)
def test_documented_labels_are_read(tmp_path, values, ranks):
    assert read(tmp_path, values) == ranks


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 1, 1, 2, 2],  # LLMBar: which output is better
        ["1", "2", "1", "1", "2", "2"],
        [0, 1, 1, 0, 1, 0],  # SHP: 1 where the first is better
        [1, 0, 0, 0, 0, 0],
        [0.7, 0.2, 0.9, 0.5, 0.1],  # a probability
        [1, 2, 3, 4, 5, 3],  # a Likert scale
        [-1, -2, -1, -1, -3],
        [[1, 2, 1], [0, 1, 2]],  # qa_feedback: a number for each pair of four answers
    ],
)
def test_numbers_of_a_single_sign_are_refused_with_the_row(tmp_path, values):
    with pytest.raises(
        DataError, match=r"as signed strengths they never prefer the (first|second) answer"
    ) as caught:
        read(tmp_path, values)
    assert caught.value.where.endswith("t.jsonl:1")
    assert "labels: {1: first, 2: second, 0: tie}" in caught.value.hint


@pytest.mark.parametrize("value", [True, "better", "C", "1st"])
def test_other_values_are_refused_with_the_row(tmp_path, value):
    with pytest.raises(DataError, match="must be a number") as caught:
        read(tmp_path, ["A", value])
    assert caught.value.where.endswith("t.jsonl:2")
    assert "labels:" in caught.value.hint


def test_labels_define_the_meaning_of_values(tmp_path):
    llmbar = {"1": "first", "2": "second"}
    assert read(tmp_path, [1, 2, 1, 1, 1, 1], llmbar) == [FIRST, SECOND, *[FIRST] * 4]
    assert read(tmp_path, ["1", 2.0, " 1 "], llmbar) == [FIRST, SECOND, FIRST]
    assert read(tmp_path, [True, False], {"true": "first", "false": "second"}) == [FIRST, SECOND]
    assert read(tmp_path, ["Good", "bad"], {"good": "first", "Bad": "tie"}) == [FIRST, TIE]
    assert read(tmp_path, [1, 2, 2], llmbar, "choice") == [FIRST, SECOND, SECOND]
    dropped = Dropped()
    assert read(tmp_path, [1, None, "", 2], llmbar, dropped=dropped) == [FIRST, SECOND]
    assert dropped.rows_out == {"fewer than 2 completions left": 2}
    with pytest.raises(DataError, match="holds 3, which `labels` does not name") as caught:
        read(tmp_path, [1, 2, 3], llmbar)
    assert caught.value.where.endswith("t.jsonl:3")


@pytest.mark.parametrize(
    ("labels", "values", "ranks"),
    [
        ({"1": "first", "2": "second", "0": "tie"}, ["1", 2, 0, "0.0"], [FIRST, SECOND, TIE, TIE]),
        ({"0": "first", "1": "second"}, [0, 1, 1, "1", 0, 1], [FIRST, SECOND, SECOND, SECOND, FIRST, SECOND]),
        ({"true": "first", "false": "second"}, [True, "False", "TRUE"], [FIRST, SECOND, FIRST]),
        ({"chosen=1": "first", "chosen=2": "second"}, ["chosen=2", "Chosen=1"], [SECOND, FIRST]),
        ({"A wins": "first", "B wins": "second", "none": "tie"}, ["b wins", "none"], [SECOND, TIE]),
    ],
)
def test_values_of_published_tables_are_mapped(tmp_path, labels, values, ranks):
    assert read(tmp_path, values, labels) == ranks


def readings(tmp_path, rows, **changes):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "input", "completions": ["a1", "a2"], "preference": "winner"} | changes.pop("columns", {})
    config = RankingTableConfig(path=str(path), format="wide", columns=columns, **changes)
    return list(read_rankings(config, Dropped()))


def test_labels_may_be_strengths(tmp_path):
    labels = {"A is much better": -2, "A is better": -1, "same": 0, "B is better": 1, "B is much better": 2.0}
    rows = [{"input": f"Q{i}", "a1": "x", "a2": "y", "winner": label} for i, label in enumerate(labels)]
    rankings = readings(tmp_path, rows, labels=labels)
    assert [r.ranks for r in rankings] == [FIRST, FIRST, TIE, SECOND, SECOND]
    assert [r.ratings for r in rankings] == [[2, 0], [1, 0], [0, 0], [0, 1], [0, 2]]


def test_comparison_signs_are_strengths(tmp_path):
    rows = [{"input": f"Q{i}", "a1": "x", "a2": "y", "winner": w} for i, w in enumerate(["A>B", "B>>A", "A=B"])]
    assert [r.ratings for r in readings(tmp_path, rows)] == [[1, 0], [0, 2], [0, 0]]


def test_a_winner_may_be_a_model_or_a_text(tmp_path):
    models = {"columns": {"models": ["m1", "m2"]}}
    row = {"input": "Q", "a1": "x", "a2": "y", "m1": "gpt", "m2": "llama"}
    for winner, ranks in (("gpt", FIRST), ("llama", SECOND), ("y", SECOND), ("a1", FIRST), ("tie", TIE)):
        [ranking] = readings(tmp_path, [row | {"winner": winner}], **models)
        assert (ranking.ranks, ranking.models) == (ranks, ["gpt", "llama"])


@pytest.mark.parametrize(
    "row",
    [
        {"a1": "B", "a2": "A", "winner": "A"},  # a letter, and the text of the other answer
        {"a1": "4", "a2": "5", "winner": "5"},  # a text, and a strength
        {"a1": "gpt", "a2": "y", "winner": "gpt"},  # a text, and the model of the other answer
    ],
)
def test_a_value_that_could_mean_either_answer_is_refused(tmp_path, row):
    row = {"input": "Q", "m1": "llama", "m2": "gpt", **row}
    with pytest.raises(DataError, match="could mean either answer") as caught:
        readings(tmp_path, [row], columns={"models": ["m1", "m2"]})
    assert caught.value.where.endswith("t.jsonl:1")
    assert "labels:" in caught.value.hint


def test_a_label_is_not_a_rating(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"input": "Q", "output_1": "x", "output_2": "y", "label": "B"}) + "\n")
    [ranking] = read_rankings(RankingTableConfig(path=str(path), format="wide", columns=COLUMNS), Dropped())
    assert ranking.ratings is None


def test_a_choice_counted_from_one_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds 2, and the 2 completions are counted from 0") as caught:
        read(tmp_path, [1, 2], format="choice")
    assert "set index_from" in caught.value.hint


def test_an_unknown_choice_is_refused_with_a_hint(tmp_path):
    assert read(tmp_path, ["A", "b", "x"], format="choice") == [FIRST, SECOND, FIRST]
    with pytest.raises(DataError, match="holds 'both', which names none of the 2 completions") as caught:
        read(tmp_path, ["A", "both"], format="choice")
    assert "labels: {1: first" in caught.value.hint
    assert caught.value.where.endswith("t.jsonl:2")


def test_a_value_per_pair_is_not_read_as_a_value_per_annotator(tmp_path):
    """As in qa_feedback: four predictions, six preferences."""
    row = {"question": "Q", **{f"prediction {i}": f"p{i}" for i in range(1, 5)}}
    path = tmp_path / "t.jsonl"
    columns = {"prompt": "question", "completions": ["prediction 1", "prediction 2"], "preference": "preference"}
    config = RankingTableConfig(path=str(path), format="wide", columns=columns)
    path.write_text(json.dumps(row | {"preference": [1, -1, 0, 1, -1, 1]}))
    with pytest.raises(DataError, match="holds 6 values, one per pair of the 4 columns") as caught:
        list(read_rankings(config, Dropped()))
    assert "pairs: [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]" in caught.value.hint
    path.write_text(json.dumps(row | {"preference": [-1, 1, 0, 2]}))
    assert [r.annotator for r in read_rankings(config, Dropped())] == [f"unknown-{i}" for i in range(1, 5)]


@pytest.mark.parametrize(
    ("value", "key"), [(1, "1"), (1.0, "1"), ("1", "1"), (" A ", "a"), (True, "true"), (0.5, "0.5")]
)
def test_label_keys_are_normalised(value, key):
    assert key_of(value) == key


RECIPE = """
name: r
base: {pretrain: {corpus: {task: venues, size: 10}}}
data:
  demonstrations: {task: venues, size: 10}
  rankings: {path: t.csv, format: FORMAT, labels: {1: first, 2: second, true: tie}, columns: {COLUMNS}}
"""


def test_labels_in_a_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("FORMAT", "wide").replace("COLUMNS", "completions: [a, b], preference: c"))
    assert load_recipe(path).recipe.data.rankings.labels == {"1": "first", "2": "second", "true": "tie"}
    path.write_text(RECIPE.replace("FORMAT", "pairs").replace("COLUMNS", ""))
    with pytest.raises(RecipeError, match=r"data\.rankings\.labels"):
        load_recipe(path)


# The share of pairs whose first answer wins


def ranking(ranks):
    return Ranking([{"role": "user", "content": "Q"}], list("xyz"[: len(ranks)]), ranks, "a", True)


def counted(rows, format="wide"):
    config = RankingTableConfig(path="t.csv", format=format)
    wins = FirstWins.of(config)
    for ranks in rows:
        wins.add(ranking(ranks))
    return wins


def test_the_share_counts_strict_pairs():
    wins = counted([FIRST, SECOND, FIRST, TIE, [3, 1, 2]])
    assert wins.metrics() == {"first_wins": pytest.approx(3 / 6), "first_wins_pairs": 6}
    assert wins.line() == "the answer listed first is better in 50.0 % of 6 strict pairs"
    assert counted([TIE]).metrics() == {}
    assert counted([FIRST] * 30, "pairs").metrics() == {}


@pytest.mark.parametrize("ranks", [FIRST, SECOND])
def test_a_nearly_constant_winner_is_a_warning(ranks):
    line = counted([ranks] * 20).line()
    assert "WARNING" in line
    line = counted([ranks] * 19).line()
    assert "WARNING" not in line
    rng = random.Random(0)
    line = counted([rng.choice([FIRST, SECOND]) for _ in range(200)]).line()
    assert "WARNING" not in line
