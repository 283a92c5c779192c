"""Every dropped ranking, demonstration and prompt is counted once, with its reason."""

import random

import pytest
from dropped import rows_by_reason

from data.schema import write_jsonl
from data.tables.demonstrations import read_demonstrations
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.errors import DataError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def read(tmp_path, rows, format, **columns):
    write_jsonl(tmp_path / "t.jsonl", rows)
    dropped = Dropped()
    config = RankingTableConfig(path=str(tmp_path / "t.jsonl"), format=format, columns=columns)
    return list(read_rankings(config, dropped)), dropped


GOOD = {"prompt": "Q", "a": "x", "b": "y", "c": "z", "ra": 1, "rb": 2, "rc": 3}
SPOILED = [
    {"a": ""},
    {"a": None, "ra": None},
    {"a": "", "b": ""},
    {"ra": "", "rb": None, "rc": ""},
    {"prompt": ""},
    {"prompt": [user("Q"), assistant("A")]},
    {"prompt": None, "a": "", "b": ""},
]
TABLES = {
    "wide": (lambda row: row, {"completions": ["a", "b", "c"], "ratings": ["ra", "rb", "rc"]}),
    "scored": (
        lambda row: {
            "prompt": row["prompt"],
            "completions": [{"text": row[x], "score": row[f"r{x}"]} for x in "abc"],
        },
        {},
    ),
    "argilla": (
        lambda row: row | {"ranking.responses": [[x for x in "abc" if row[f"r{x}"] not in ("", None)]]},
        {"completions": ["a", "b", "c"]},
    ),
}


@pytest.mark.parametrize("format", TABLES)
def test_rankings_and_dropped_rows_add_up_to_all_rows(tmp_path, format):
    make, columns = TABLES[format]
    rng = random.Random(format)
    rows = [make(GOOD | rng.choice([{}, {}, *SPOILED])) for _ in range(200)]
    rankings, dropped = read(tmp_path, rows, format, **columns)
    assert len(rankings) + dropped.rows_out.total() == dropped.read == 200
    assert dropped.rows_out.total() > 50
    read_completions = sum(len(ranking.completions) for ranking in rankings)
    assert read_completions + dropped.completions_out.total() == 3 * len(rankings)


def test_null_lists_count_as_empty(tmp_path):
    rows = [
        {"prompt": "Q", "completions": ["x", "y"], "ratings": [1, 2]},
        {"prompt": "Q", "completions": None, "ratings": None},
        {"prompt": "Q", "completions": ["x", "y"], "ratings": None},
        {"prompt": "Q", "completions": [], "ratings": []},
    ]
    rankings, dropped = read(tmp_path, rows, "scored")
    assert len(rankings) == 1
    assert dropped.rows_out == {"fewer than 2 completions left": 3}
    objects = [{"text": "x", "score": 1}, None, {"text": None, "score": 2}, {"text": "y", "score": 0}]
    rankings, dropped = read(tmp_path, [{"prompt": "Q", "completions": objects}], "scored")
    assert rankings[0].completions == ["x", "y"]
    assert dropped.completions_out == {"empty completion": 2}
    rows = [
        {"prompt": "Q", "completions": ["x", None, "y"], "choice": 2},
        {"prompt": "Q", "completions": None, "choice": None},
    ]
    rankings, dropped = read(tmp_path, rows, "choice")
    assert (rankings[0].completions, rankings[0].ranks) == (["x", "y"], [2, 1])
    assert dropped.rows_out == {"fewer than 2 completions left": 1}


def test_lists_written_in_text_cells_are_read(tmp_path):
    (tmp_path / "t.csv").write_text(
        'prompt,completions,ratings\nQ,"[""x"", ""y""]","[1, 2]"\nQ,"[\'x\', \'y\']","[2, 1]"\nQ,,\n'
    )
    dropped = Dropped()
    config = RankingTableConfig(path=str(tmp_path / "t.csv"), format="scored")
    assert [r.ranks for r in read_rankings(config, dropped)] == [[2, 1], [1, 2]]
    assert dropped.rows_out == {"fewer than 2 completions left": 1}


def test_long_rows_without_a_group_are_dropped(tmp_path):
    rows = [
        {"prompt": "Q", "completion": x, "rating": i, "g": g}
        for g in (1, None, float("nan"), 2)
        for i, x in enumerate(("x", "y"))
    ]
    rankings, dropped = read(tmp_path, rows, "long", group="g")
    assert len(rankings) == 2
    assert rows_by_reason(dropped) == {"empty group": [3, 4, 5, 6]}
    with pytest.raises(DataError, match="4 x empty group") as caught:
        read(tmp_path, rows[2:6], "long", group="g")
    assert "leave `group` out" in caught.value.hint


def node(text, role, *replies, **more):
    return {"text": text, "role": role, "replies": list(replies), **more}


def test_replies_to_deleted_messages_are_dropped(tmp_path):
    ranked = [node("r1", "assistant", rank=0), node("r2", "assistant", rank=1)]
    trees = [
        node(
            "Q",
            "prompter",
            node("x", "assistant", node("gone", "prompter", *ranked, deleted=True), rank=0),
            node("y", "assistant", node("kept", "prompter", *ranked), rank=1),
            node("gone", "assistant", node("after", "prompter", *ranked), rank=2, deleted=True),
        ),
        node("gone", "prompter", *ranked, deleted=True),
    ]
    rankings, dropped = read(tmp_path, [{"prompt": tree} for tree in trees], "tree")
    assert [[m["content"] for m in r.prompt] for r in rankings] == [["Q"], ["Q", "y", "kept"]]
    assert [r.completions for r in rankings] == [["x", "y"], ["r1", "r2"]]
    assert rows_by_reason(dropped) == {"deleted message": [1, 1, 2]}
    write_jsonl(tmp_path / "d.jsonl", [{"prompt": tree} for tree in trees])
    dropped = Dropped()
    best_replies = list(read_demonstrations(TableConfig(path=str(tmp_path / "d.jsonl")), 0.1, dropped))
    assert [d.completion for d in best_replies] == ["x", "r1"]
    assert dropped.rows_out == {"deleted message": 1}


# ratings and ranks


def test_ratings_and_ranks_that_agree_are_read(tmp_path):
    rows = [{"prompt": "Q", "completions": ["x", "y"], "ratings": [1, 5], "ranks": [2, 1]}]
    [ranking], _ = read(tmp_path, rows, "scored")
    assert (ranking.ranks, ranking.ratings) == ([2, 1], [1.0, 5.0])


@pytest.mark.parametrize("ranks", [[1, 2], [1, 1]])
def test_ratings_and_ranks_that_contradict_each_other_are_refused(tmp_path, ranks):
    texts, ratings = ["x", "y"], [1, 5]
    lists = [{"prompt": "Q", "completions": texts, "ratings": ratings, "ranks": ranks}]
    objects = [
        {
            "prompt": "Q",
            "completions": [
                {"text": t, "score": s, "rank": r} for t, s, r in zip(texts, ratings, ranks, strict=True)
            ],
        }
    ]
    long = [
        {"prompt": "Q", "completion": t, "rating": s, "rank": r}
        for t, s, r in zip(texts, ratings, ranks, strict=True)
    ]
    tables = [("scored", lists, "ratings"), ("scored", objects, "score"), ("long", long, "rating")]
    for format, rows, name in tables:
        with pytest.raises(DataError, match="ratings and ranks contradict each other") as caught:
            read(tmp_path, rows, format)
        assert caught.value.where.endswith("t.jsonl:1")
        [ranking], _ = read(tmp_path, rows, format, **{name: name})
        assert ranking.ranks == [2, 1]


def test_a_rank_column_without_numbers_is_ignored(tmp_path):
    long = [{"prompt": "Q", "completion": x, "rating": i, "rank": "n/a"} for i, x in enumerate("xy")]
    lists = [{"prompt": "Q", "completions": ["x", "y"], "ratings": [0, 1], "ranks": "see ratings"}]
    for format, rows in (("long", long), ("scored", lists)):
        [ranking], _ = read(tmp_path, rows, format)
        assert (ranking.ranks, ranking.ratings) == ([2, 1], [0.0, 1.0])


def test_margins_and_ratings_that_contradict_each_other_are_refused(tmp_path):
    row = {"prompt": "Q", "chosen": "x", "rejected": "y", "chosen_rating": 4, "rejected_rating": 4}
    [ranking], _ = read(tmp_path, [row | {"margin": 0}], "pairs")
    assert ranking.ranks == [1, 1]
    with pytest.raises(DataError, match="the margin is 2 and the ratings are 4 and 4"):
        read(tmp_path, [row | {"margin": 2}], "pairs")


def test_rows_of_one_ranking_with_different_orders_are_refused(tmp_path):
    rows = [{"prompt": "Q", "completion": "x", "rating": 1}, {"prompt": "Q", "completion": "y", "rank": 1}]
    with pytest.raises(DataError, match="the row is ordered by 'rank', and its ranking"):
        read(tmp_path, rows, "long")


def test_native_ranks_take_precedence_over_ratings_with_a_warning(tmp_path):
    row = {"prompt": [user("Q")], "completions": ["x", "y"], "annotator": "a", "human": True, "ranks": [1, 2]}
    write_jsonl(
        tmp_path / "t.jsonl", [row | {"ratings": ratings} for ratings in ([5.0, 1.0], [1.0, 5.0], [2.0, 2.0])]
    )
    lines = []
    config = RankingTableConfig(path=str(tmp_path / "t.jsonl"), format="native")
    assert [r.ranks for r in read_rankings(config, Dropped(), lines.append)] == [[1, 2]] * 3
    assert [line for line in lines if "ratings" in line] == [
        f"{tmp_path / 't.jsonl'}: ratings contradict the ranks in 1 rankings; the ranks count"
    ]
