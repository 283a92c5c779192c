"""`order`: one cell names the completions from best to worst."""

import json

import pytest

from data.tables.guess.rankings import any_table
from data.tables.guess.sample import Sample
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.errors import DataError, RecipeError

COLUMNS = {"completions": ["a1", "a2", "a3", "a4"], "order": "order"}
ROW = {"prompt": "Q", "a1": "red", "a2": "green", "a3": "blue", "a4": "pink", "annotator": "ana"}


def read(tmp_path, rows, columns=COLUMNS, dropped=None, **values):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RankingTableConfig(path=str(path), format="wide", columns=columns, **values)
    return list(read_rankings(config, Dropped() if dropped is None else dropped))


@pytest.mark.parametrize(
    ("order", "ranks"),
    [
        ("B > D = A > C", [2, 1, 3, 2]),
        ("B,D=A,C", [2, 1, 3, 2]),
        ("b; d ~ a; c", [2, 1, 3, 2]),
        ("a2|a4|a1|a3", [3, 1, 4, 2]),
        ("green>>pink>red>blue", [3, 1, 4, 2]),
        (["B", ["D", "A"], "C"], [2, 1, 3, 2]),
        ('["B", "D", "A", "C"]', [3, 1, 4, 2]),
        ("['B' , 'D', 'A', 'C']", [3, 1, 4, 2]),
        ("A = B = C = D", [1, 1, 1, 1]),
    ],
)
def test_an_order_is_read(tmp_path, order, ranks):
    [ranking] = read(tmp_path, [ROW | {"order": order}])
    assert (ranking.ranks, ranking.ratings, ranking.annotator) == (ranks, None, "ana")


def test_completions_may_be_a_list(tmp_path):
    row = {"prompt": "Q", "texts": ["x", "y", "z"], "order": "C,A,B"}
    [ranking] = read(tmp_path, [row], {"completions": "texts", "order": "order"})
    assert ranking.ranks == [2, 3, 1]


def test_numbers_need_their_start(tmp_path):
    with pytest.raises(DataError, match="tables count completions from 0 or 1"):
        read(tmp_path, [ROW | {"order": "2,4,1,3"}])
    [ranking] = read(tmp_path, [ROW | {"order": "2,4,1,3"}], index_from=1)
    assert ranking.ranks == [3, 1, 4, 2]


def test_completions_that_are_not_named_are_unranked(tmp_path):
    rows = [ROW | {"order": "B > D"}, ROW | {"order": ""}]
    dropped = Dropped()
    [ranking] = read(tmp_path, rows, dropped=dropped)
    assert (ranking.completions, ranking.ranks) == (["green", "pink"], [1, 2])
    assert dropped.rows_out == {"fewer than 2 completions left": 1}
    assert dropped.completions_out == {"missing rating": 2}
    [ranking] = read(tmp_path, rows[:1], unranked="last")
    assert ranking.ranks == [3, 1, 3, 2]


@pytest.mark.parametrize(
    ("order", "what"),
    [
        ("B > D > B", "names 'B' twice"),
        ("B > > D", "has an empty place"),
        ("B,,D", "has an empty place"),
        ("B > E", "'E', which names none of the 4 completions"),
        ("BDAC", "'BDAC', which names none of the 4 completions"),
        ([["B", "D"], ["D", "B"]], "names 'D' twice"),
    ],
)
def test_what_is_no_order_is_refused_with_the_row(tmp_path, order, what):
    with pytest.raises(DataError, match=what) as caught:
        read(tmp_path, [ROW | {"order": "A,B,C,D"}, ROW | {"order": order}])
    assert caught.value.where.endswith("t.jsonl:2")


def test_an_order_stands_alone(tmp_path):
    with pytest.raises(RecipeError, match="both ranks and order are given"):
        read(tmp_path, [ROW], COLUMNS | {"ranks": ["r1", "r2", "r3", "r4"]})


def test_several_annotators_have_an_entry_each(tmp_path):
    row = {**ROW, "reviews": [{"by": "ana", "order": "A,B"}, {"by": "ben", "order": "B,A"}]}
    columns = {"completions": ["a1", "a2"], "order": "order", "annotator": "by"}
    read_from = read(tmp_path, [row], columns, annotations="reviews")
    assert [(ranking.annotator, ranking.ranks) for ranking in read_from] == [("ana", [1, 2]), ("ben", [2, 1])]


COLUMNS_OF_RANKS = {"completions": ["a1", "a2", "a3", "a4"], "ranks": "places"}


@pytest.mark.parametrize("cell", ["2|1|3|3", "2; 1; 3; 3", "2,1,3,3", "2 1 3 3", "[2, 1, 3, 3]"])
def test_ranks_may_stand_in_one_cell(tmp_path, cell):
    [ranking] = read(tmp_path, [ROW | {"places": cell}], COLUMNS_OF_RANKS)
    assert ranking.ranks == [2, 1, 3, 3]


@pytest.mark.parametrize(
    ("name", "cells", "asked"),
    [
        ("rank_string", ("2|1|3", "3|1|2"), True),
        ("ranking", ("1,0,2", "2,0,1"), True),
        ("ranking", ("[2, 1, 3]", "[3, 1, 2]"), True),
        ("order", ("2|1|3", "3|1|2"), False),
        ("ranking", ("2>1>3", "3>1>2"), False),
        ("ranking", ("B,A,C", "C,A,B"), False),
    ],
)
def test_numbers_that_may_be_ranks_are_asked_about(tmp_path, name, cells, asked):
    path = tmp_path / "t.csv"
    rows = "".join(f'what is {n}?,red {n},green {n},blue {n},"{cell}"\n' for n, cell in enumerate(cells * 3))
    path.write_text(f"prompt,a1,a2,a3,{name}\n{rows}")
    guess = any_table(Sample.of(TableConfig(path=str(path))))
    assert [question.choices for question in guess.open] == [(f"order: {name}", f"ranks: {name}")] * asked
    assert guess.columns.get("order") == (None if asked else name)
