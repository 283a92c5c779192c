"""Labels, best and worst, weights and scales, where the table holds lists, objects by key or several annotators."""

import json

import pytest

from data.tables.check import check_table
from data.tables.first_wins import FirstWins
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.errors import DataError

BEST = {"completions": "answers[*].text", "best": "best", "worst": "worst"}
ANSWERS = [{"text": text, "by": model} for text, model in (("red", "m1"), ("green", "m2"), ("blue", "m3"))]
PAIRS = [[0, 1], [0, 2], [1, 2]]


def table(tmp_path, row, columns, format="wide", **values):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"prompt": "Q", **row}) + "\n")
    return RankingTableConfig(path=str(path), format=format, columns=columns, **values)


def read(*args, dropped=None, **values):
    return list(read_rankings(table(*args, **values), Dropped() if dropped is None else dropped))


def orders(rankings):
    return {ranking.annotator: ranking.ranks for ranking in rankings}


# Best and worst


@pytest.mark.parametrize(
    ("columns", "row", "values"),
    [
        (BEST, {"answers": ANSWERS, "best": "green", "worst": "A"}, {}),
        (BEST, {"answers": ANSWERS, "best": 2, "worst": 1}, {"index_from": 1}),
        (BEST | {"models": "answers[*].by"}, {"answers": ANSWERS, "best": "m2", "worst": "m1"}, {}),
        (
            BEST | {"best": "judged.best", "worst": "judged.worst"},
            {"answers": ANSWERS, "judged": {"best": "b", "worst": "a"}},
            {},
        ),
        (
            {"completions": [f"answers[{i}].text" for i in range(3)], "best": "best", "worst": "worst"},
            {"answers": ANSWERS, "best": "answers[1].text", "worst": "answers[0].text"},
            {},
        ),
        (
            BEST | {"completions": "by_model.*"},
            {"by_model": {"m1": "red", "m2": "green", "m3": "blue"}, "best": "m2", "worst": "M1"},
            {},
        ),
        (  # keys that look like letters name themselves
            BEST | {"completions": "by_model.*"},
            {"by_model": {"b": "red", "a": "green", "c": "blue"}, "best": "a", "worst": "b"},
            {},
        ),
    ],
)  # fmt: skip
def test_best_and_worst_of_a_list(tmp_path, columns, row, values):
    [ranking] = read(tmp_path, row, columns, **values)
    assert ranking.completions == ["red", "green", "blue"]
    assert ranking.ranks == [3, 1, 2]


def test_several_annotators_name_the_best_and_the_worst(tmp_path):
    row = {"answers": ANSWERS, "reviews": [{"who": "ana", "b": "A", "w": "C"}, {"who": "ben", "b": "B", "w": None}]}
    columns = BEST | {"best": "reviews[*].b", "worst": "reviews[*].w", "annotator": "reviews[*].who"}
    assert orders(read(tmp_path, row, columns)) == {"ana": [1, 2, 3], "ben": [2, 1, 2]}


def test_a_number_that_is_also_another_key_is_refused(tmp_path):
    row = {"by_number": {"2": "red", "1": "green"}, "choice": 1}
    with pytest.raises(DataError, match="could mean completion 1 or 2"):
        read(tmp_path, row | {"by_number": {"1": "red", "2": "green"}}, {"completions": "by_number.*"}, "choice")
    [ranking] = read(tmp_path, row, {"completions": "by_number.*"}, "choice")
    assert ranking.ranks == [2, 1]


def test_columns_keep_their_names_where_texts_are_extracted(tmp_path):
    row = {"b": "Answer: red", "a": "Answer: blue", "best": "a"}
    pattern = {"completions": "Answer: (.*)"}
    [ranking] = read(tmp_path, row, {"completions": ["b", "a"], "preference": "best"}, extract=pattern)
    assert (ranking.completions, ranking.ranks) == (["red", "blue"], [2, 1])
    [ranking] = read(tmp_path, row, {"completions": ["b", "a"], "best": "best"}, extract=pattern)
    assert (ranking.completions, ranking.ranks) == (["red", "blue"], [2, 1])


# Comparisons


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        ({"preference": "labels"}, {"labels": ["A", "A>B", None]}),
        ({"preference": "rounds[*].label"}, {"rounds": [{"label": "first"}, {"label": "red"}, {"label": None}]}),
        ({"preference": ["l.ab", "l.ac", "l.bc"]}, {"l": {"ab": "A", "ac": "A", "bc": ""}}),
    ],
)
def test_pairs_of_the_answers_in_a_list(tmp_path, columns, labels):
    rankings = read(
        tmp_path, {"answers": ANSWERS, **labels}, {"completions": "answers[*].text", **columns}, pairs=PAIRS
    )
    assert [(ranking.completions, ranking.ranks) for ranking in rankings] == [
        (["red", "green"], [1, 2]),
        (["red", "blue"], [1, 2]),
    ]


@pytest.mark.parametrize("format", ["wide", "choice"])
def test_each_pair_may_have_a_label_per_annotator(tmp_path, format):
    column = "preference" if format == "wide" else "choice"
    row = {"answers": ["x", "y", "z"], "labels": [["A", "B"], ["A", "B"], ["A", "B"]], "who": ["ana", "ben"]}
    columns = {"completions": "answers", column: "labels", "annotator": "who"}
    rankings = read(tmp_path, row, columns, format, pairs=PAIRS, combine="net_wins")
    assert orders(rankings) == {"ana": [1, 2, 3], "ben": [3, 2, 1]}


def test_annotators_with_columns_of_their_own_may_label_pairs(tmp_path):
    row = {"q1": "x", "q2": "y", "q3": "z", "ana": ["A", "A", "A"], "ben": ["B", "B", "B"]}
    config = table(
        tmp_path,
        row,
        {"completions": ["q1", "q2", "q3"]},
        pairs=PAIRS,
        combine="net_wins",
        annotations={"ana": {"preference": "ana"}, "ben": {"preference": "ben"}},
    )
    assert orders(read_rankings(config, Dropped())) == {"ana": [1, 2, 3], "ben": [3, 2, 1]}


def test_a_letter_that_is_another_column_of_its_pair_is_refused(tmp_path):
    columns = {"completions": ["a", "b", "c"], "preference": "p"}
    row = {"a": "x", "b": "y", "c": "z"}
    with pytest.raises(DataError, match="holds 'B', which could mean either answer"):
        read(tmp_path, row | {"p": ["B", "B", "B"]}, columns, pairs=PAIRS)  # of b and c, b or the second
    rankings = read(tmp_path, row | {"p": ["B", "C", "C>B"]}, columns, pairs=PAIRS, combine="net_wins")
    assert [ranking.ranks for ranking in rankings] == [[3, 2, 1]]


def test_labels_of_pairs_by_key_have_no_order(tmp_path):
    row = {"answers": ["x", "y", "z"], "labels": {"bc": "A", "ab": "B", "ac": "A"}}
    with pytest.raises(DataError, match="holds labels by key") as caught:
        read(tmp_path, row, {"completions": "answers", "preference": "labels.*"}, pairs=PAIRS)
    assert caught.value.hint.startswith("name the label of each pair")


def test_a_preference_names_a_key(tmp_path):
    row = {"outputs": {"b": "x", "a": "y"}, "preference": "a"}
    [ranking] = read(tmp_path, row, {"completions": "outputs.*", "preference": "preference"})
    assert (ranking.ranks, ranking.models) == ([2, 1], ["b", "a"])


def test_a_preference_orders_two_answers_of_a_list(tmp_path):
    with pytest.raises(DataError, match="orders 2 completions, and the row has 3") as caught:
        read(tmp_path, {"answers": ["x", "y", "z"], "p": "A"}, {"completions": "answers", "preference": "p"})
    assert "pairs" in caught.value.hint


# Ratings and ranks


def test_labels_of_a_scale_may_be_one_per_annotator(tmp_path):
    row = {"answers": ["x", "y"], "r": [["bad", "good"], ["good", "fair"]], "who": ["ana", "ben"]}
    columns = {"completions": "answers", "ratings": "r", "annotator": "who"}
    rankings = read(tmp_path, row, columns, scale=["bad", "fair", "good"])
    assert [ranking.ratings for ranking in rankings] == [[1, 3], [3, 2]]
    with pytest.raises(DataError, match="holds 'great', which `scale` does not name"):
        read(tmp_path, row | {"r": ["great", "bad"]}, columns | {"annotator": ""}, scale=["bad", "good"])


def test_ranks_of_two_signs_are_refused_in_lists_too(tmp_path):
    with pytest.raises(DataError, match="other ranks are above 0"):
        read(tmp_path, {"a": ["x", "y", "z"], "r": [1, 2, -1]}, {"completions": "a", "ranks": "r"})
    [ranking] = read(
        tmp_path, {"a": ["x", "y"], "r": [1, None]}, {"completions": "a", "ranks": "r"}, unranked="last"
    )
    assert ranking.ranks == [1, 2]


def test_the_annotators_of_a_row_are_merged(tmp_path):
    row = {"a": ["x", "y"], "r": [[5, 4], [1, 5]], "trust": [3, 1], "who": ["ana", "ben"]}
    columns = {"completions": "a", "ratings": "r", "annotator": "who", "weight": "trust"}
    rankings = read(tmp_path, row, columns, consensus="mean")
    assert {ranking.annotator: ranking.ratings for ranking in rankings} == {
        "ana": [5, 1],
        "ben": [4, 5],
        "consensus": [4.75, 2],
    }


# Weights


@pytest.mark.parametrize(
    ("format", "columns", "row"),
    [
        ("wide", {"completions": "a", "ratings": "r[*].stars"}, {"r": [{"stars": 2}, {"stars": 1}]}),
        ("wide", {"completions": "a", "best": "r"}, {"r": "A"}),
        ("wide", {"completions": "a", "preference": "r"}, {"r": "A"}),
        ("scored", {"completions": "a", "ratings": "r"}, {"r": [2, 1]}),
        ("pairs", {"chosen": "a[0]", "rejected": "a[1]"}, {}),
        ("choice", {"completions": "a", "choice": "r"}, {"r": 0}),
    ],
)
def test_a_weight_lies_at_a_path(tmp_path, format, columns, row):
    [ranking] = read(
        tmp_path, {"a": ["x", "y"], "meta": {"trust": 0.5}, **row}, columns | {"weight": "meta.trust"}, format
    )
    assert (ranking.ranks, ranking.weight) == ([1, 2], 0.5)


@pytest.mark.parametrize(
    ("ratings", "trust", "columns"),
    [
        ([[5, 1], [2, 4]], [0.5, 2], {"annotator": "who", "weight": "trust"}),
        ([{"ana": 5, "ben": 1}, {"ana": 2, "ben": 4}], {"ben": 2, "cas": 9, "ana": 0.5}, {"weight": "trust.*"}),
        ([[5, 1], [2, 4]], {"ben": 2, "ana": 0.5}, {"annotator": "who", "weight": "trust.*"}),
    ],
)
def test_each_annotator_of_a_row_has_a_weight(tmp_path, ratings, trust, columns):
    path = "r[*].*" if "annotator" not in columns else "r"
    row = {"a": ["x", "y"], "r": ratings, "trust": trust, "who": ["ana", "ben"]}
    rankings = read(tmp_path, row, {"completions": "a", "ratings": path, **columns})
    assert {ranking.annotator: (ranking.ranks, ranking.weight) for ranking in rankings} == {
        "ana": ([1, 2], 0.5),
        "ben": ([2, 1], 2),
    }


def test_rows_of_one_answer_have_a_weight_per_annotator(tmp_path):
    path = tmp_path / "t.jsonl"
    for_both = {"prompt": "Q", "w": [1, 3], "who": ["ana", "ben"]}
    rows = [{"completion": "x", "r": [5, 1]}, {"completion": "y", "r": [2, 4]}]
    path.write_text("".join(json.dumps(for_both | row) + "\n" for row in rows))
    columns = {"rating": "r", "weight": "w", "annotator": "who"}
    rankings = read_rankings(RankingTableConfig(path=str(path), format="long", columns=columns), Dropped())
    assert {ranking.annotator: (ranking.ranks, ranking.weight) for ranking in rankings} == {
        "ana": ([1, 2], 1),
        "ben": ([2, 1], 3),
    }


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"trust": [1, 2, 3]}, "different lengths: 2, 3"),
        ({"trust": [1, 0]}, "must hold a weight above 0, got 0"),
        ({"trust": [1, None]}, "must hold a weight above 0, got None"),
        ({"trust": [1, 2], "r": [5, 2]}, r"column 'trust' must be a number, got \[1, 2\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, row, what):
    columns = {"completions": "a", "ratings": "r", "annotator": "who", "weight": "trust"}
    whole = {"a": ["x", "y"], "r": [[5, 1], [2, 4]], "who": ["ana", "ben"], **row}
    if row.get("r"):
        whole["who"] = "ana"
    with pytest.raises(DataError, match=what) as caught:
        read(tmp_path, whole, columns)
    assert caught.value.where.endswith("t.jsonl:1")


def test_several_weights_of_a_single_ranking_are_refused(tmp_path):
    columns = {"weight": "trust", "annotator": "who"}
    row = {"chosen": "x", "rejected": "y", "who": "ana", "trust": [1, 2]}
    with pytest.raises(DataError, match="'trust' must be a number"):
        read(tmp_path, row, columns, "pairs")
    by_name = columns | {"weight": "trust.*"}
    [ranking] = read(tmp_path, row | {"trust": {"ben": 1, "ana": 2}}, by_name, "pairs")
    assert ranking.weight == 2
    with pytest.raises(DataError, match="must hold a weight above 0, got None"):
        read(tmp_path, row | {"trust": {"ben": 1}}, by_name, "pairs")


def test_an_annotator_who_rated_nothing_needs_no_weight(tmp_path):
    row = {"a": ["x", "y"], "r": [[5, None], [2, None]], "who": ["ana", "ben"], "trust": [2, None]}
    dropped = Dropped()
    columns = {"completions": "a", "ratings": "r", "annotator": "who", "weight": "trust"}
    [ranking] = read(tmp_path, row, columns, dropped=dropped)
    assert (ranking.annotator, ranking.weight) == ("ana", 2)
    assert dropped.rows_out == {"fewer than 2 completions left": 1}


# Names and orders of annotators


def test_names_beside_values_by_name_pair_them(tmp_path):
    row = {"a": "x", "b": "y", "ra": {"ben": 1, "ana": 5}, "rb": {"ana": 2, "ben": 4}, "who": ["ana", "ben"]}
    columns = {"completions": ["a", "b"], "ratings": ["ra.*", "rb.*"], "annotator": "who"}
    assert orders(read(tmp_path, row, columns)) == {"ana": [1, 2], "ben": [2, 1]}
    with pytest.raises(DataError, match="by the annotator's name, and others are in an order"):
        read(tmp_path, row | {"who": ["ana", "cas"]}, columns)
    with pytest.raises(DataError, match="by the annotator's name, and others are in an order"):
        read(tmp_path, row | {"rb": [2, 4]}, columns | {"ratings": ["ra.*", "rb"], "annotator": ""})


# Several files


def test_a_table_of_several_files_is_shown_by_the_first(tmp_path):
    paths = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    for path in paths:
        with open(path, "w") as out:
            for number in range(15):
                out.write(json.dumps({"prompt": f"{path} {number}", "a": "x", "b": "y", "p": "A"}) + "\n")
    columns = {"completions": ["a", "b"], "preference": "p"}
    config = RankingTableConfig(path=paths, format="wide", columns=columns, combine="net_wins")
    first_wins, lines = FirstWins.of(config), []
    for ranking in read_rankings(config, Dropped(), lines.append):
        first_wins.add(ranking)
    assert f"Check a few rows of {paths[0]} and 1 more" in first_wins.line()
    assert lines[0].startswith(f"{paths[0]} and 1 more: 30 comparisons became 30 rankings")
    report = check_table("data.rankings", config)
    assert report.parsed == 30
    wrong = check_table("data.rankings", RankingTableConfig(path=paths, format="scored", columns={}))
    assert any(f"inspect {paths[0]}`" in line for line in wrong.lines)


REPLIES = {"role": "prompter", "text": "Q", "replies": [
    {"role": "assistant", "text": "x", "rank": 0, "replies": []},
    {"role": "assistant", "text": "y", "rank": 1, "replies": []},
]}  # fmt: skip
TASK = {"data": {"prompt": "Q", "a": "x", "b": "y", "trust": 0.5}, "annotations": [
    {"completed_by": 1, "result": [{"from_name": "pw", "value": {"selected": "left"}}]}]}  # fmt: skip
RECORD = {"fields": {"prompt": "Q", "a": "x", "b": "y"}, "metadata": {"trust": 0.5},
          "responses": {"ranking": [{"value": ["a", "b"], "user_id": "u1"}]}}  # fmt: skip


@pytest.mark.parametrize(
    ("format", "columns", "row"),
    [
        ("tree", {}, {"prompt": REPLIES, "trust": 0.5}),
        ("label_studio", {"completions": ["a", "b"]}, TASK),
        ("argilla", {"completions": ["a", "b"]}, RECORD),
    ],
)
def test_trees_and_tools_have_weights(tmp_path, format, columns, row):
    [ranking] = read(tmp_path, row, columns | {"weight": "trust"}, format)
    assert (ranking.ranks, ranking.weight) == ([1, 2], 0.5)
    [ranking] = read(tmp_path, row, columns, format)
    assert (ranking.ranks, ranking.weight, ranking.metadata.get("weight")) == ([1, 2], 1.0, None)
    with pytest.raises(DataError, match="trusst"):
        read(tmp_path, row, columns | {"weight": "trusst"}, format)


LISTS = ["['a', 'b']", '["b"]', "[1, 2]"]


@pytest.mark.parametrize("label", LISTS)
def test_a_label_that_spells_a_list_is_one_value(tmp_path, label):
    """The recipe's labels and scale, and the texts of the answers, come before several annotators."""
    columns = {"completions": ["a", "b"], "preference": "label"}
    row = {"prompt": "Q", "a": "x", "b": "y", "label": label}
    [ranking] = read(tmp_path, row, columns, "wide", labels={label: "second", "other": "first"})
    assert (ranking.ranks, ranking.annotator) == ([2, 1], "unknown")
    [ranking] = read(tmp_path, row | {"b": label}, columns | {"preference": "label"}, "wide", text_lists="text")
    assert (ranking.ranks, ranking.annotator) == ([2, 1], "unknown")
    rated = {"completions": ["a", "b"], "ratings": ["ra", "rb"]}
    [ranking] = read(tmp_path, row | {"ra": "low", "rb": label}, rated, "wide", scale=["low", label])
    assert (ranking.ranks, ranking.ratings) == ([2, 1], [1.0, 2.0])
    best = {"completions": ["a", "b", "c"], "best": "label"}
    [ranking] = read(tmp_path, row | {"b": "z", "c": label}, best, "wide", text_lists="text")
    assert ranking.ranks == [2, 2, 1]
    chosen = {"completions": "texts", "choice": "label"}
    [ranking] = read(
        tmp_path, row | {"texts": ["x", "y"]}, chosen, "choice", labels={label: "second", "x": "first"}
    )
    assert ranking.ranks == [2, 1]


def test_other_lists_are_several_annotators(tmp_path):
    row = {"prompt": "Q", "a": "x", "b": "y", "label": "['first', 'second']"}
    columns = {"completions": ["a", "b"], "preference": "label"}
    first, second = read(tmp_path, row, columns, "wide", labels={"first": "first", "second": "second"})
    assert [first.ranks, second.ranks] == [[1, 2], [2, 1]]
