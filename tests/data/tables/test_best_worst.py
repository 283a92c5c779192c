"""Best-worst scaling, labels per answer, partial ranks: what each cell means, and what is refused."""

import json

import pytest

from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.config.load import load_recipe
from pipeline.errors import DataError, RecipeError

NAMES = ["answer_1", "answer_2", "answer_3", "answer_4"]
ROW = {"prompt": "Q", **dict(zip(NAMES, ["red", "green", "blue", "B"], strict=True))}
MAXDIFF = {"completions": NAMES, "best": "best", "worst": "worst"}


def read(tmp_path, rows, columns, format="wide", dropped=None, **values):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RankingTableConfig(path=str(path), format=format, columns=columns, **values)
    return list(read_rankings(config, Dropped() if dropped is None else dropped))


@pytest.mark.parametrize(
    ("best", "worst", "ranks"),
    [
        ("answer_2", "answer_4", [2, 1, 2, 3]),
        ("Answer_1", "answer_2", [1, 3, 2, 2]),
        ("green", "red", [3, 1, 2, 2]),
        ("C", "a", [3, 2, 1, 2]),
        ("blue", None, [2, 2, 1, 2]),
        ("", "blue", [1, 1, 2, 1]),
    ],
)
def test_the_best_is_above_the_rest_and_the_worst_below(tmp_path, best, worst, ranks):
    [ranking] = read(tmp_path, [ROW | {"best": best, "worst": worst}], MAXDIFF)
    assert ranking.ranks == ranks
    assert ranking.ratings is None


@pytest.mark.parametrize(("start", "best", "worst"), [(0, 1, 3), (1, 2, "4"), (1, "2.0", 4)])
def test_numbers_are_read_where_their_start_is_known(tmp_path, start, best, worst):
    [ranking] = read(tmp_path, [ROW | {"best": best, "worst": worst}], MAXDIFF, index_from=start)
    assert ranking.ranks == [2, 1, 2, 3]


@pytest.mark.parametrize(
    ("best", "worst", "values", "what"),
    [
        (1, 2, {}, "the number 1, and tables count completions from 0 or 1"),
        ("1", "2", {}, "the number 1, and tables"),
        (4, 0, {"index_from": 0}, "holds 4, and the 4 completions are counted from 0"),
        (0, 1, {"index_from": 1}, "holds 0, and the 4 completions are counted from 1"),
        (1.5, 1, {"index_from": 1}, "holds 1.5"),
        ("B", "red", {}, "'B', which could mean completion 2 or 4"),  # a letter, and an answer's text
        ("yellow", "red", {}, "'yellow', which names none of the 4"),
        (True, "red", {}, "True, which names none"),
        (["red"], "blue", {}, "which names none"),
        ("red", "answer_1", {}, "name the same completion as best and as worst"),
    ],
)
def test_what_is_ambiguous_is_refused_with_the_row(tmp_path, best, worst, values, what):
    rows = [ROW | {"best": "red", "worst": "blue"}, ROW | {"best": best, "worst": worst}]
    with pytest.raises(DataError, match=what) as caught:
        read(tmp_path, rows, MAXDIFF, **values)
    assert caught.value.where.endswith("t.jsonl:2")


def test_models_name_the_best_and_the_worst(tmp_path):
    row = ROW | {f"m{i}": name for i, name in enumerate(["gpt", "llama", "qwen", "phi"])}
    columns = MAXDIFF | {"models": ["m0", "m1", "m2", "m3"]}
    [ranking] = read(tmp_path, [row | {"best": "qwen", "worst": "gpt"}], columns)
    assert (ranking.ranks, ranking.models) == ([3, 2, 1, 2], ["gpt", "llama", "qwen", "phi"])
    with pytest.raises(DataError, match="could mean completion 1 or 2"):
        read(tmp_path, [row | {"m1": "gpt", "best": "gpt", "worst": ""}], columns)


def test_a_row_without_best_and_worst_is_left_out(tmp_path):
    dropped = Dropped()
    rows = [ROW | {"best": "red", "worst": "blue"}, ROW | {"best": None, "worst": ""}]
    assert len(read(tmp_path, rows, MAXDIFF, dropped=dropped)) == 1
    assert dropped.rows_out == {"fewer than 2 completions left": 1}


def test_a_list_of_completions_has_a_best_and_a_worst(tmp_path):
    row = {"prompt": "Q", "completions": ["red", "green", "blue"]}
    columns = {"choice": "best", "worst": "worst"}
    rows = [row | {"best": 2, "worst": 0}, row | {"best": "green", "worst": "C"}]
    assert [r.ranks for r in read(tmp_path, rows, columns, "choice")] == [[3, 2, 1], [2, 1, 3]]
    rows = [row | {"best": 3, "worst": 1}]
    assert [r.ranks for r in read(tmp_path, rows, columns, "choice", index_from=1)] == [[3, 2, 1]]


# Labels per answer


LIKERT = {"prompt": "q", "completions": ["a", "b", "c"], "ratings": ["ra", "rb", "rc"]}


def rated(*labels):
    return {"q": "Q", "a": "x", "b": "y", "c": "z", **dict(zip(["ra", "rb", "rc"], labels, strict=True))}


def test_a_scale_gives_labels_their_numbers(tmp_path):
    scale = ["Strongly disagree", "disagree", "neither", "agree", "3 - fair"]
    rows = [rated("agree", " STRONGLY disagree", "3 - Fair"), rated("neither", "neither", "")]
    first, second = read(tmp_path, rows, LIKERT, scale=scale)
    assert (first.ratings, first.ranks) == ([4, 1, 5], [2, 3, 1])
    assert (second.completions, second.ratings) == (["x", "y"], [3, 3])


@pytest.mark.parametrize("label", ["good", 3, "3", True])
def test_a_label_outside_the_scale_is_refused_with_the_known_ones(tmp_path, label):
    rows = [rated("bad", "fair", "fair"), rated("bad", label, "fair")]
    with pytest.raises(DataError, match="which `scale` does not name") as caught:
        read(tmp_path, rows, LIKERT, scale=["bad", "fair"])
    assert caught.value.where.endswith("t.jsonl:2")
    assert "names bad, fair" in caught.value.hint


def test_a_scale_is_read_in_every_format_with_ratings(tmp_path):
    scale = {"scale": ["bad", "fair", "good"]}
    rows = [{"prompt": "Q", "completion": text, "rating": label} for text, label in (("x", "fair"), ("y", "good"))]
    assert read(tmp_path, rows, {}, "long", **scale)[0].ratings == [2, 3]
    row = {"prompt": "Q", "completions": [{"text": "x", "score": "good"}, {"text": "y", "score": "bad"}]}
    assert read(tmp_path, [row], {}, "scored", **scale)[0].ratings == [3, 1]
    row = {"prompt": "Q", "completions": ["x", "y"], "ratings": ["bad", "fair"]}
    assert read(tmp_path, [row], {}, "scored", **scale)[0].ratings == [1, 2]
    row = {"prompt": "Q", "chosen": "x", "rejected": "y", "chosen_rating": "good", "rejected_rating": "fair"}
    assert read(tmp_path, [row], {}, "pairs", **scale)[0].ratings == [3, 2]
    rows = [{"prompt": "Q", "completion": text, "rank": rank} for text, rank in (("x", 1), ("y", 2))]
    with pytest.raises(RecipeError, match="`scale` is of ratings"):
        read(tmp_path, rows, {}, "long", **scale)


# Partial ranks


TOP = {"prompt": "q", "completions": list("abcde"), "ranks": [f"r{name}" for name in "abcde"]}


def ranked(*ranks):
    return {"q": "Q", **{name: f"text {name}" for name in "abcde"}} | {
        f"r{name}": rank for name, rank in zip("abcde", ranks, strict=True)
    }


def test_unranked_answers_are_left_out_or_tied_last(tmp_path):
    rows = [ranked(None, 1, "", 2, None)]
    dropped = Dropped()
    [ranking] = read(tmp_path, rows, TOP, dropped=dropped)
    assert (ranking.completions, ranking.ranks) == (["text b", "text d"], [1, 2])
    assert dropped.completions_out == {"missing rating": 3}
    dropped = Dropped()
    [ranking] = read(tmp_path, rows, TOP, unranked="last", dropped=dropped)
    assert ranking.ranks == [3, 1, 3, 2, 3]
    assert not dropped.counts


def test_a_ranking_without_any_rank_says_nothing(tmp_path):
    dropped = Dropped()
    rows = [ranked(1, 2, 3, 4, 5), ranked(*[None] * 5)]
    assert len(read(tmp_path, rows, TOP, unranked="last", dropped=dropped)) == 1
    assert dropped.rows_out == {"fewer than 2 completions left": 1}


@pytest.mark.parametrize("marker", [-1, "-1", "none", "nan", True])
@pytest.mark.parametrize("unranked", ["drop", "last"])
def test_a_marker_of_unranked_answers_is_no_rank(tmp_path, marker, unranked):
    with pytest.raises(DataError, match=r"the rank -?1, and other ranks are|must be a number") as caught:
        read(tmp_path, [ranked(1, 2, 3, 4, 5), ranked(2, 1, marker, 3, 4)], TOP, unranked=unranked)
    assert caught.value.where.endswith("t.jsonl:2")


def test_unranked_answers_of_other_formats(tmp_path):
    rows = [{"prompt": "Q", "completion": text, "rank": rank} for text, rank in (("x", 1), ("y", None), ("z", ""))]
    assert read(tmp_path, rows, {}, "long", unranked="last")[0].ranks == [1, 2, 2]
    row = {"prompt": "Q", "completions": ["x", "y", "z"], "ranks": [None, 0, None]}
    assert read(tmp_path, [row], {}, "scored", unranked="last")[0].ranks == [2, 1, 2]
    rows = [{"prompt": "Q", "completion": text, "rating": rating} for text, rating in (("x", 1), ("y", None))]
    with pytest.raises(RecipeError, match="this table has ratings"):
        read(tmp_path, rows, {}, "long", unranked="last")


# Rules of a recipe


RECIPE = """
name: r
base: {pretrain: {corpus: {task: venues, size: 10}}}
data:
  demonstrations: {task: venues, size: 10}
  rankings: {path: t.csv, %s}
"""


@pytest.mark.parametrize(
    ("table", "key", "what"),
    [
        (
            "format: wide, columns: {completions: [a, b], ranks: [c, d]}, scale: [x, y]",
            "scale",
            "this table has none",
        ),
        ("format: tree, scale: [x, y]", "scale", "this table has none"),
        ("format: long, scale: [x]", "scale", "two labels or more"),
        ("format: long, scale: [x, y, ' X']", "scale", "names 'x' twice"),
        ("format: long, index_from: 1", "index_from", "there is no such column"),
        ("format: pairs, unranked: last", "unranked", "this table has none"),
        ("format: wide, columns: {completions: [a, b], ratings: [c, d]}, unranked: last", "unranked", "has none"),
        ("format: choice, columns: {worst: w}, labels: {1: first}", "labels", "leave one of them out"),
        ("format: choice, labels: {a: first, b: 2}", "labels", "mixes strengths"),
        ("format: long, pairs: [[0, 1]]", "pairs", "no such column"),
        ("format: choice, pairs: [[0, 0]]", "pairs", "with itself"),
        ("format: choice, pairs: [[0, 1], [1, 0]]", "pairs", "names a pair twice"),
        ("format: wide, columns: {completions: [a, b], preference: p}, pairs: [[0, 2]]", "pairs", "completion 2"),
        ("format: wide, columns: {completions: [a, b, c], preference: [p, q]}", "pairs", "is required"),
        ("format: wide, columns: {completions: [a, b], preference: [p, q]}, pairs: [[0, 1]]", "pairs", "2 columns"),
        ("format: wide, columns: {completions: [a, b], ranks: [c, d], best: e}", "columns.best", "both"),
        ("format: wide, columns: {completions: [a, b], preference: c, worst: e}", "columns.worst", "both"),
    ],
)
def test_values_without_effect_are_refused_when_the_recipe_is_loaded(tmp_path, table, key, what):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE % table)
    with pytest.raises(RecipeError, match=rf"data\.rankings\.{key}.*{what}") as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
