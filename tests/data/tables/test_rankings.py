import csv
import json
from collections import Counter

import pytest
from dropped import rows_by_reason

from data.schema import Ranking
from data.tables.columns import ANONYMOUS
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.errors import DataError, RecipeError

WIDE = {"prompt": "q", "completions": ["a", "b", "c"], "ratings": ["ra", "rb", "rc"]}


def table(tmp_path, format, rows, **columns):
    if format in ("wide", "long"):
        path = tmp_path / "t.csv"
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path = tmp_path / "t.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RankingTableConfig(path=str(path), format=format, columns=columns)


def read(config, dropped=None) -> list[Ranking]:
    return list(read_rankings(config, dropped if dropped is not None else Dropped()))


def fails(config, *parts, error=DataError):
    with pytest.raises(error) as caught:
        read(config)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.where
    assert caught.value.hint
    return caught.value


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def wide_row(*ratings, texts=("x", "y", "z"), **more):
    return dict(zip(("q", "a", "b", "c", "ra", "rb", "rc"), ("hi", *texts, *ratings), strict=True)) | more


# wide


def test_wide_tables_are_read(tmp_path):
    rows = [wide_row(3, 5, 3, who="w1", s="m1", t="m2", u="m3")]
    config = table(tmp_path, "wide", rows, **WIDE, annotator="who", models=["s", "t", "u"])
    [ranking] = read(config)
    assert ranking == Ranking(
        prompt=[user("hi")],
        completions=["x", "y", "z"],
        ranks=[2, 1, 2],
        annotator="w1",
        human=True,
        ratings=[3.0, 5.0, 3.0],
        models=["m1", "m2", "m3"],
    )
    assert ranking.where.endswith("t.csv:2")


def test_wide_ranks_count_from_the_best(tmp_path):
    columns = {**WIDE, "ranks": WIDE["ratings"]}
    del columns["ratings"]
    [ranking] = read(table(tmp_path, "wide", [wide_row(0, 7, 1.5)], **columns))
    assert ranking.ranks == [1, 3, 2]
    assert ranking.ratings is None
    assert ranking.annotator == ANONYMOUS


def test_simulated_rankings_are_not_marked_human(tmp_path):
    config = table(tmp_path, "wide", [wide_row(1, 2, 3)], **WIDE)
    config = RankingTableConfig(path=config.path, format="wide", columns=config.columns, human=False)
    assert not read(config)[0].human


def test_empty_cells_drop_the_completion_and_short_rankings(tmp_path):
    rows = [
        wide_row(1, 2, 3),
        wide_row(1, "", 3),
        wide_row(1, 2, 3, texts=("x", "y", " ")),
        wide_row(1, "", 3, texts=("x", "y", "")),
        wide_row(1, 2, 3) | {"q": ""},
    ]
    dropped = Dropped()
    rankings = read(table(tmp_path, "wide", rows, **WIDE), dropped)
    assert [r.completions for r in rankings] == [["x", "y", "z"], ["x", "z"], ["x", "y"]]
    assert [r.ranks for r in rankings] == [[3, 2, 1], [2, 1], [2, 1]]
    assert rows_by_reason(dropped) == {
        "missing rating": [3, 5],
        "empty completion": [4, 5],
        "fewer than 2 completions left": [5],
        "empty prompt": [6],
    }


@pytest.mark.parametrize("rating", ["good", "4/5", "nan", "inf"])
def test_a_rating_that_is_not_a_number_is_refused_with_the_row(tmp_path, rating):
    config = table(tmp_path, "wide", [wide_row(1, 2, 3), wide_row(1, rating, 3)], **WIDE)
    assert fails(config, "'rb'", rating).where.endswith("t.csv:3")


def test_wide_needs_two_completion_columns(tmp_path):
    config = table(tmp_path, "wide", [wide_row(1, 2, 3)], prompt="q", completions=["a"], ratings=["ra"])
    fails(config, "at least 2 completions", error=RecipeError)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (WIDE | {"annotator": ["w"]}, "the name of one column"),
        (WIDE | {"prompt": ["q"]}, "the name of one column"),
        (WIDE | {"ratings": ["ra", "rb"]}, "3 completion columns have 2 ratings"),
        (WIDE | {"models": ["ra", "rb"]}, "3 completion columns have 2 models"),
        (WIDE | {"ranks": ["ra", "rb", "rc"]}, "both ratings and ranks"),
        (WIDE | {"chosen": "a"}, "has no column 'chosen'"),
        (WIDE | {"completions": ["a", "a", "b"]}, "names a column twice"),
        ({"prompt": "q"}, "the format wide needs completions"),
    ],
)
def test_columns_that_do_not_fit_the_format_are_refused(tmp_path, columns, message):
    fails(table(tmp_path, "wide", [wide_row(1, 2, 3)], **columns), message, error=RecipeError)


def test_a_missing_column_is_an_error(tmp_path):
    config = table(tmp_path, "wide", [wide_row(1, 2, 3)], **(WIDE | {"completions": ["a", "b", "cc"]}))
    fails(config, "no column 'cc'", "the columns are q, a, b, c, ra, rb, rc")


def test_a_table_without_usable_rankings_is_an_error(tmp_path):
    fails(table(tmp_path, "wide", [wide_row("", "", 1)] * 2, **WIDE), "no ranking is left", "4 x missing rating")


def test_limit_is_respected(tmp_path):
    config = table(tmp_path, "wide", [wide_row(1, 2, 3)] * 5, **WIDE)
    assert len(read(RankingTableConfig(path=config.path, format="wide", columns=WIDE, limit=2))) == 2


# long


def long_rows(*cells):
    return [dict(zip(("prompt", "annotator", "completion", "rating"), row, strict=True)) for row in cells]


def test_long_groups_by_prompt_and_annotator(tmp_path):
    rows = long_rows(
        ("p", "ann", "x", 1), ("p", "bob", "x", 5), ("q", "ann", "z", 4), ("p", "ann", "y", 2),
        ("p", "bob", "y", 5), ("q", "ann", "w", 3),
    )  # fmt: skip
    rankings = read(table(tmp_path, "long", rows))
    assert [(r.prompt[0]["content"], r.annotator, r.completions, r.ranks) for r in rankings] == [
        ("p", "ann", ["x", "y"], [2, 1]),
        ("p", "bob", ["x", "y"], [1, 1]),
        ("q", "ann", ["z", "w"], [1, 2]),
    ]


def test_long_order_of_rows_does_not_matter(tmp_path):
    rows = long_rows(*((f"p{i % 3}", f"a{i % 2}", f"text {i}", i % 5) for i in range(30)))

    def ranks(rows):
        return {
            (r.prompt[0]["content"], r.annotator): dict(zip(r.completions, r.ranks, strict=True))
            for r in read(table(tmp_path, "long", rows))
        }

    expected = ranks(rows)
    assert len(expected) == 6
    assert ranks(rows[::-1]) == expected


def test_long_tables_with_a_group_column_and_ranks(tmp_path):
    rows = [
        {"g": g, "prompt": "p", "completion": text, "rank": rank, "model": model}
        for g, text, rank, model in [(1, "x", 1, "m"), (1, "y", 2, "n"), (2, "x", 2, "m"), (2, "y", 1, "")]
    ]
    first, second = read(table(tmp_path, "long", rows, group="g"))
    assert (first.ranks, second.ranks) == ([1, 2], [2, 1])
    assert (first.models, second.models) == (["m", "n"], ["m", ""])


def test_a_long_group_with_two_prompts_is_refused(tmp_path):
    rows = [{"g": 1, "prompt": p, "completion": "x", "rating": 1} for p in ("p", "q")]
    fails(table(tmp_path, "long", rows, group="g"), "group '1'", "t.csv:3", "t.csv:2")


def test_long_needs_groups_of_two_completions(tmp_path):
    rows = long_rows(("p", "ann", "x", 1), ("q", "ann", "y", 2))
    fails(table(tmp_path, "long", rows), "at least 2 completions", "every group of this table has 1")


def test_a_long_group_of_a_single_completion_is_dropped(tmp_path):
    dropped = Dropped()
    rows = long_rows(("p", "ann", "x", 1), ("p", "ann", "y", 2), ("q", "ann", "y", 2))
    assert len(read(table(tmp_path, "long", rows), dropped)) == 1
    assert rows_by_reason(dropped) == {"fewer than 2 completions left": [4]}


# pairs


def test_pairs_of_texts_are_read(tmp_path):
    [ranking] = read(table(tmp_path, "pairs", [{"prompt": "p", "chosen": "x", "rejected": "y"}]))
    assert (ranking.prompt, ranking.completions, ranking.ranks) == ([user("p")], ["x", "y"], [1, 2])
    assert ranking.ratings is None


def test_pairs_of_conversations_are_read(tmp_path):
    before = [user("p"), assistant("what?"), user("that")]
    rows = [
        {"chosen": [*before, assistant("x")], "rejected": [*before, assistant("y")]},
        {"prompt": before, "chosen": [assistant("x")], "rejected": [assistant("y")]},
        {"prompt": "that", "chosen": [*before, assistant("x")], "rejected": [*before, assistant("y")]},
    ]
    rankings = read(table(tmp_path, "pairs", rows))
    assert len(rankings) == 3
    for ranking in rankings:
        assert (ranking.prompt, ranking.completions) == (before, ["x", "y"])


def test_margins_of_pairs_are_read(tmp_path):
    rows = [{"prompt": "p", "chosen": "x", "rejected": "y", "margin": m} for m in (2.5, None)]
    first, second = read(table(tmp_path, "pairs", rows))
    assert (first.ratings, second.ratings) == ([2.5, 0.0], None)
    fails(table(tmp_path, "pairs", [rows[0] | {"margin": -1}]), "the margin must be at least 0, got -1")


def test_pairs_whose_prompts_differ_are_refused(tmp_path):
    rows = [{"chosen": [user("p"), assistant("x")], "rejected": [user("q"), assistant("y")]}]
    fails(table(tmp_path, "pairs", rows), "differ before the last answer")


def test_equal_pairs_are_dropped(tmp_path):
    rows = [{"prompt": "p", "chosen": "x", "rejected": r} for r in ("y", "x")]
    dropped = Dropped()
    assert len(read(table(tmp_path, "pairs", rows), dropped)) == 1
    assert rows_by_reason(dropped)["chosen and rejected are the same"] == [2]


# tree


def node(text, role, *replies, **more):
    return {"text": text, "role": role, "replies": list(replies), **more}


def test_trees_are_read(tmp_path):
    tree = node(
        "hi",
        "prompter",
        node("worse", "assistant", rank=1),
        node(
            "best",
            "assistant",
            node(
                "and?",
                "prompter",
                node("b", "assistant", rank=2),
                node("a", "assistant", rank=0),
                node("c", "assistant"),
                node("d", "assistant", rank=1, deleted=True),
            ),
            node("bye", "prompter", node("only one", "assistant", rank=0)),
            rank=0,
        ),
    )
    dropped = Dropped()
    first, second = read(table(tmp_path, "tree", [{"prompt": tree}]), dropped)
    assert (first.prompt, first.completions, first.ranks) == ([user("hi")], ["worse", "best"], [2, 1])
    assert second.prompt == [user("hi"), assistant("best"), user("and?")]
    assert (second.completions, second.ranks) == (["b", "a"], [2, 1])
    assert rows_by_reason(dropped) == {"missing rating": [1], "deleted message": [1]}


def test_deep_trees_are_read(tmp_path):
    tree = node("end", "prompter", node("x", "assistant", rank=0), node("y", "assistant", rank=1))
    for i in range(200):
        tree = node(f"q{i}", "prompter", node(f"a{i}", "assistant", tree, rank=0))
    [ranking] = read(table(tmp_path, "tree", [{"prompt": tree}]))
    assert len(ranking.prompt) == 401


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (node("hi", "robot"), "the role 'robot'"),
        ("hi", "must be an object"),
        (node("hi", "prompter", "x", "y"), "must be an object"),
        (
            node("hi", "prompter", node("x", "assistant", rank="best"), node("y", "assistant", rank=1)),
            "must be a number",
        ),
        ({"role": "prompter"}, "no column 'text'"),
    ],
)
def test_malformed_trees_are_refused(tmp_path, tree, message):
    assert fails(table(tmp_path, "tree", [{"prompt": tree}]), message).where.endswith("t.jsonl:1")


# scored


def test_scored_objects_are_read(tmp_path):
    answers = [{"text": "x", "score": 1, "by": "m"}, {"text": "y", "score": 4.5, "by": "n"}]
    rows = [{"prompt": "p", "completions": answers, "annotator": "judge"}]
    [ranking] = read(table(tmp_path, "scored", rows, model="by"))
    assert (ranking.completions, ranking.ranks, ranking.ratings) == (["x", "y"], [2, 1], [1.0, 4.5])
    assert (ranking.models, ranking.annotator) == (["m", "n"], "judge")
    rows = [{"instruction": "p", "answers": [{"response": "x", "place": 2}, {"response": "y", "place": 1}]}]
    columns = {"prompt": "instruction", "completions": "answers", "text": "response", "rank": "place"}
    [ranking] = read(table(tmp_path, "scored", rows, **columns))
    assert (ranking.completions, ranking.ranks, ranking.ratings) == (["x", "y"], [2, 1], None)


def test_scored_parallel_lists_are_read(tmp_path):
    rows = [{"prompt": "p", "completions": ["x", "y", "z"], "ratings": [2, 2, None]}]
    dropped = Dropped()
    [ranking] = read(table(tmp_path, "scored", rows), dropped)
    assert (ranking.completions, ranking.ranks) == (["x", "y"], [1, 1])
    assert rows_by_reason(dropped) == {"missing rating": [1]}
    fails(table(tmp_path, "scored", [rows[0] | {"ratings": [1, 2]}]), "column 'ratings' must hold 3 values")


def test_scored_rows_that_are_too_short_are_dropped(tmp_path):
    """Some rows of UltraFeedback have no completions at all."""
    good = [{"text": "x", "score": 1}, {"text": "y", "score": 2}]
    rows = [{"prompt": "p", "completions": completions} for completions in (good, [], good[:1])]
    dropped = Dropped()
    assert len(read(table(tmp_path, "scored", rows), dropped)) == 1
    assert rows_by_reason(dropped) == {"fewer than 2 completions left": [2, 3]}
    fails(table(tmp_path, "scored", rows[1:]), "no ranking is left", "2 x fewer than 2 completions")


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        ("x", "must be a list"),
        ([{"text": "x", "score": "high"}, {"text": "y", "score": 1}], "must be a number"),
        ([{"text": "x", "points": 1}, {"text": "y", "points": 1}], "no column 'score'"),
        ([{"text": ["x"], "score": 1}, {"text": "y", "score": 1}], "is not text"),
        (["x", {"text": "y", "score": 1}], "must all be objects or all be texts"),
    ],
)
def test_malformed_scored_rows_are_refused(tmp_path, completions, message):
    rows = [
        {"prompt": "p", "completions": [{"text": "x", "score": 1}, {"text": "y", "score": 2}]},
        {"prompt": "p", "completions": completions},
    ]
    assert fails(table(tmp_path, "scored", rows), message).where.endswith("t.jsonl:2")


# all formats


def test_every_format_gives_the_same_ranking(tmp_path):
    scores = {"x": 2, "y": 1}
    replies = [node(text, "assistant", rank=-score) for text, score in scores.items()]
    answers = [{"text": text, "score": score} for text, score in scores.items()]
    wide = {"prompt": "p", "x": "x", "y": "y", "rx": 2, "ry": 1}
    long = [{"prompt": "p", "completion": text, "rating": score} for text, score in scores.items()]
    tables = {
        "wide": ([wide], {"completions": ["x", "y"], "ratings": ["rx", "ry"]}),
        "long": (long, {}),
        "pairs": ([{"prompt": "p", "chosen": "x", "rejected": "y"}], {}),
        "tree": ([{"prompt": node("p", "user", *replies)}], {}),
        "scored": ([{"prompt": "p", "completions": answers}], {}),
    }
    for name, (rows, columns) in tables.items():
        [ranking] = read(table(tmp_path, name, rows, **columns))
        assert ranking.prompt == [user("p")], name
        assert dict(zip(ranking.completions, ranking.ranks, strict=True)) == {"x": 1, "y": 2}, name


def test_e2e_quality_ratings_are_read(shared):
    columns = {
        "prompt": "mr",
        "completions": [f"ref{i}" for i in range(1, 6)],
        "ratings": [f"quality{i}" for i in range(1, 6)],
        "models": [f"sys{i}" for i in range(1, 6)],
        "annotator": "_worker_id",
    }
    path = shared / "e2e_rankings" / "quality.csv"
    dropped = Dropped()
    rankings = read(RankingTableConfig(path=str(path), format="wide", columns=columns), dropped)
    assert len(rankings) == 2978
    assert len({r.annotator for r in rankings}) == 112
    assert len({r.prompt[0]["content"] for r in rankings}) == 630
    same = "the same answer at two places"
    assert dropped.counts == {same: 50, "merged with an equal answer": 144, "fewer than 2 completions left": 1}
    assert rows_by_reason(dropped)["fewer than 2 completions left"][0] in rows_by_reason(dropped)[same]


def test_oasst_trees_are_read(shared):
    path = shared / "oasst_sample" / "en_100_tree.jsonl"
    rankings = read(RankingTableConfig(path=str(path), format="tree", columns={"model": "model_name"}))
    sizes = Counter(len(r.completions) for r in rankings)
    assert min(sizes) >= 2
    assert max(sizes) == 9
    assert all(sorted(r.ranks) == list(range(1, len(r.ranks) + 1)) for r in rankings)
    assert all(r.prompt[-1]["role"] == "user" for r in rankings)
