"""Several annotators in one row: lists of their values, a list of their entries, or columns of their own."""

import csv
import json

import pytest

from data.tables.check import check_table
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.errors import DataError


def table(tmp_path, rows, format, annotations=None, name="t.jsonl", **columns):
    path = tmp_path / name
    if name.endswith(".csv"):
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RankingTableConfig(path=str(path), format=format, columns=columns, annotations=annotations)


def read(config, dropped=None):
    rankings = read_rankings(config, dropped if dropped is not None else Dropped())
    return {ranking.annotator: (ranking.completions, ranking.ranks) for ranking in rankings}


BY_ANA_AND_BEN = {"ana": (["x", "y"], [1, 2]), "ben": (["x", "y"], [2, 1])}

LISTS = {
    "wide": (
        {"prompt": "p", "a": "x", "b": "y", "ra": [5, 1], "rb": [2, 4], "who": ["ana", "ben"]},
        {"completions": ["a", "b"], "ratings": ["ra", "rb"], "annotator": "who"},
    ),
    "wide as text": (
        {"prompt": "p", "a": "x", "b": "y", "ra": "[5, 1]", "rb": "[2, 4]", "who": '["ana", "ben"]'},
        {"completions": ["a", "b"], "ratings": ["ra", "rb"], "annotator": "who"},
    ),
    "wide reviews": (
        {
            "prompt": "p",
            "a": "x",
            "b": "y",
            "reviews": [{"who": "ana", "a": 1, "b": 2}, {"who": "ben", "a": 2, "b": 1}],
        },
        {"completions": ["a", "b"], "ranks": ["reviews[*].a", "reviews[*].b"], "annotator": "reviews[*].who"},
    ),
    "wide by key": (
        {"prompt": "p", "a": "x", "b": "y", "ra": {"ana": 5, "ben": 1}, "rb": {"ben": 4, "ana": 2}},
        {"completions": ["a", "b"], "ratings": ["ra.*", "rb.*"]},
    ),
    "scored": (
        {"prompt": "p", "completions": ["x", "y"], "ratings": [[5, 1], [2, 4]], "annotator": ["ana", "ben"]},
        {},
    ),
    "scored objects": (
        {
            "prompt": "p",
            "completions": [
                {"text": "x", "reviews": [{"who": "ben", "s": 1}, {"who": "ana", "s": 5}]},
                {"text": "y", "reviews": [{"who": "ana", "s": 2}, {"who": "ben", "s": 4}]},
            ],
        },
        {"score": "reviews[*].s", "annotator": "completions[*].reviews[*].who"},
    ),
    "wide preference": (
        {"prompt": "p", "a": "x", "b": "y", "votes": [{"by": "ana", "v": -2}, {"by": "ben", "v": 1}]},
        {"completions": ["a", "b"], "preference": "votes[*].v", "annotator": "votes[*].by"},
    ),
    "choice": (
        {"prompt": "p", "completions": ["x", "y"], "choice": [0, 1], "annotator": ["ana", "ben"]},
        {},
    ),
    "choice by key": (
        {"prompt": "p", "completions": ["x", "y"], "votes": {"ana": 0, "ben": 1}},
        {"choice": "votes.*"},
    ),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_of_one_value_per_annotator(tmp_path, case):
    row, columns = LISTS[case]
    assert read(table(tmp_path, [row], case.partition(" ")[0], **columns)) == BY_ANA_AND_BEN


def test_lists_in_long_tables_and_pairs(tmp_path):
    rows = [
        {"prompt": "p", "completion": text, "rating": ratings, "annotator": ["ana", "ben"], "item": 7}
        for text, ratings in (("x", [5, 1]), ("y", [2, 4]))
    ]
    assert read(table(tmp_path, rows, "long")) == BY_ANA_AND_BEN
    assert read(table(tmp_path, rows, "long", group="item")) == BY_ANA_AND_BEN
    pair = {"prompt": "p", "chosen": "x", "rejected": "y", "margin": [2, 0], "annotator": ["ana", "ben"]}
    assert read(table(tmp_path, [pair], "pairs")) == {"ana": (["x", "y"], [1, 2]), "ben": (["x", "y"], [1, 1])}


def test_annotators_without_names_are_numbered(tmp_path):
    row = {"prompt": "p", "completions": ["x", "y"], "ratings": [[5, 1], [2, 4]]}
    assert list(read(table(tmp_path, [row], "scored"))) == ["unknown-1", "unknown-2"]
    assert list(read(table(tmp_path, [row | {"annotator": ["ana", None]}], "scored"))) == ["ana", "unknown-2"]


def test_values_that_an_annotator_did_not_give_are_missing_ratings(tmp_path):
    dropped = Dropped()
    row = {"prompt": "p", "a": "x", "b": "y", "ra": {"ana": 5, "ben": 1}, "rb": {"ana": 2}}
    columns = {"completions": ["a", "b"], "ratings": ["ra.*", "rb.*"]}
    assert read(table(tmp_path, [row], "wide", **columns), dropped) == {"ana": (["x", "y"], [1, 2])}
    assert dropped.rows_out == {"fewer than 2 completions left": 1}
    assert dropped.counts["missing rating"] == 1


def test_rows_that_nobody_ranked_are_counted(tmp_path):
    row = {"prompt": "p", "a": "x", "b": "y", "v": [1, -1]}
    dropped = Dropped()
    read(table(tmp_path, [row, row | {"v": []}], "wide", completions=["a", "b"], preference="v"), dropped)
    assert dropped.rows_out == {"no annotation": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rb": [1]}, "different lengths: 1, 2"),
        ({"who": ["ana"]}, "different lengths: 1, 2"),
        ({"rb": 3}, "some values of the row are lists"),
        ({"ra": 1, "rb": 2}, "column 'who' names 2 annotators, and the row holds one ranking"),
        ({"who": [["ana", "ben"], ["ana"]]}, "the annotators' lists do not fit"),
        ({"who": [["ana", "ana"], ["ana", "ben"]]}, "'ana' has two values for the same completion"),
        ({"ra": [1, "good"]}, "column 'ra' must be a number, got 'good'"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, changes, message):
    row, columns = LISTS["wide"]
    with pytest.raises(DataError, match=message) as caught:
        read(table(tmp_path, [row, row | changes], "wide", **columns))
    assert caught.value.where.endswith("t.jsonl:2")
    assert caught.value.hint


ENTRIES = {
    "scored": (
        {"prompt": "p", "texts": ["x", "y"], "reviews": [{"by": "ana", "r": [5, 2]}, {"by": "ben", "r": [1, 4]}]},
        "reviews",
        {"completions": "texts", "ratings": "r", "annotator": "by"},
    ),
    "scored entries that are lists": (
        {"prompt": "p", "completions": ["x", "y"], "ratings": {"ana": [5, 2], "ben": [1, 4]}},
        "ratings.*",
        {},
    ),
    "wide": (
        {"prompt": "p", "a": "x", "b": "y", "votes": {"ana": {"a": {"r": 1}, "b": {"r": 2}}}},
        "votes.*",
        {"completions": ["texts.a", "texts.b"], "ranks": ["a.r", "b.r"]},
    ),
    "choice": (
        {"prompt": "p", "completions": ["x", "y"], "votes": [{"choice": 0, "annotator": "ana"}]},
        "votes[*]",
        {},
    ),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_entries_of_annotators_are_read_as_rows(tmp_path, case):
    row, annotations, columns = ENTRIES[case]
    row = row | {"texts": {"a": "x", "b": "y"}} if case == "wide" else row
    expected = dict(list(BY_ANA_AND_BEN.items())[: 2 if "scored" in case else 1])
    config = table(tmp_path, [row], case.partition(" ")[0], annotations, **columns)
    assert read(config) == expected
    assert check_table("data.rankings", config).problems == []


def test_each_annotators_own_completions(tmp_path):
    rows = [{"prompt": "p", "done": [{"chosen": "x", "rejected": "y"}, {"chosen": "v", "rejected": "w"}, None]}]
    assert read(table(tmp_path, rows, "pairs", "done")) == {
        "unknown-1": (["x", "y"], [1, 2]),
        "unknown-2": (["v", "w"], [1, 2]),
    }


def test_rows_without_an_entry_are_counted(tmp_path):
    dropped = Dropped()
    row = {"prompt": "p", "done": [{"chosen": "x", "rejected": "y"}]}
    read(table(tmp_path, [row, row | {"done": []}, row | {"done": None}], "pairs", "done"), dropped)
    assert dropped.rows_out == {"no annotation": 2}


COLUMNS = {"prompt": "p", "a": "x", "b": "y", "ana_a": "5", "ana_b": "2", "ben_a": "1", "ben_b": "4"}
GROUPS = {"ana": {"ratings": ["ana_a", "ana_b"]}, "ben": {"ratings": ["ben_a", "ben_b"]}}


def test_columns_of_each_annotator(tmp_path):
    config = table(tmp_path, [COLUMNS], "wide", GROUPS, "t.csv", completions=["a", "b"])
    assert read(config) == BY_ANA_AND_BEN
    report = check_table("data.rankings", config)
    assert (report.problems, report.unused, report.annotators) == ([], [], {"ana": 1, "ben": 1})


def test_columns_of_each_annotator_in_other_formats(tmp_path):
    scored = {
        "prompt": "p",
        "completions": ["x", "y"],
        "first": [5, 2],
        "second": [1, 4],
        "id1": "ana",
        "id2": "ben",
    }
    groups = {"1": {"ratings": "first", "annotator": "id1"}, "2": {"ratings": "second", "annotator": "id2"}}
    assert read(table(tmp_path, [scored], "scored", groups)) == BY_ANA_AND_BEN
    long = [{"prompt": "p", "completion": t, "a": a, "b": b, "g": 1} for t, a, b in (("x", 5, 1), ("y", 2, 4))]
    votes = {"ana": {"rating": "a"}, "ben": {"rating": "b"}}
    assert read(table(tmp_path, long, "long", votes)) == BY_ANA_AND_BEN
    assert read(table(tmp_path, long, "long", votes, group="g")) == BY_ANA_AND_BEN
    pair = {"prompt": "p", "a": "x", "b": "y", "va": "A", "vb": "B"}
    votes = {"ana": {"preference": "va"}, "ben": {"preference": "vb"}}
    assert read(table(tmp_path, [pair], "wide", votes, completions=["a", "b"])) == BY_ANA_AND_BEN


def test_annotators_who_did_not_rank_a_row_give_no_ranking(tmp_path):
    dropped = Dropped()
    by_ana = COLUMNS | {"ben_a": "", "ben_b": "", "prompt": "q"}
    nobody = by_ana | {"ana_a": "", "ana_b": ""}
    config = table(tmp_path, [COLUMNS, by_ana, nobody], "wide", GROUPS, "t.csv", completions=["a", "b"])
    rankings = list(read_rankings(config, dropped))
    assert [r.annotator for r in rankings] == ["ana", "ben", "ana"]
    assert dropped.rows_out == {"no annotation": 1}


def test_a_wrong_cell_of_an_annotator_names_the_columns_and_the_row(tmp_path):
    config = table(tmp_path, [COLUMNS | {"ben_b": "good"}], "wide", GROUPS, "t.csv", completions=["a", "b"])
    with pytest.raises(DataError, match=r"column 'ana_b \| ben_b' must be a number, got 'good'") as caught:
        read(config)
    assert caught.value.where.endswith("t.csv:2")


def test_check_names_an_annotators_column_that_is_not_there(tmp_path):
    groups = GROUPS | {"ben": {"ratings": ["ben_a", "ben_bb"]}}
    config = table(tmp_path, [COLUMNS], "wide", groups, "t.csv", completions=["a", "b"])
    [problem] = check_table("data.rankings", config).problems
    assert problem.what == "the table has no column 'ben_bb'; did you mean 'ben_b'?"
    assert problem.key == "data.rankings.annotations.ben.ratings"
    [problem] = check_table("data.rankings", table(tmp_path, [COLUMNS], "pairs", "votes")).problems
    assert (problem.what, problem.key) == ("the table has no column 'votes'", "data.rankings.annotations")
