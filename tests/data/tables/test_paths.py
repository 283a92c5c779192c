"""Columns named by a path into a cell, in every kind of table."""

import csv
import json

import pandas
import pytest

from data.tables.check import check_table
from data.tables.corpus import documents
from data.tables.demonstrations import read_demonstrations, read_prompts
from data.tables.paths import Keyed
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped, MissingColumn, Row
from pipeline.config.data import PromptTableConfig, RankingTableConfig, TableConfig
from pipeline.errors import DataError, RecipeError


def row(**cells):
    return Row(7, cells, "t.jsonl:7")


def write(tmp_path, rows, name="t.jsonl"):
    path = tmp_path / name
    if name.endswith(".csv"):
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            cells = [
                {key: value if isinstance(value, str | int) else json.dumps(value) for key, value in each.items()}
                for each in rows
            ]
            writer.writerows(cells)
    else:
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(path)


def rank(tmp_path, rows, format, dropped=None, name="t.jsonl", more=None, **columns):
    config = RankingTableConfig(path=write(tmp_path, rows, name), format=format, columns=columns, **(more or {}))
    return list(read_rankings(config, dropped or Dropped()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("scores.relevance", 3),
        ("reviews[0].text", "good"),
        ("reviews[-1].text", "bad"),
        ("reviews[*].text", ["good", "bad"]),
        ("reviews[*].by.name", ["ana", None]),
        ("scores.*", [3, 4]),
        ("grid[1][0]", 3),
        ("grid[*][0]", [1, 3]),
        ("nothing.at.all", None),
        ("empty[0].text", None),
        ("empty[*].text", []),
        ("spelled.a[1]", 2),
        ("python.b", "x"),
        ("scores[relevance]", 3),
        ("models.gpt-4.1.text", "x"),
        ("a.b", "the column itself"),
        ("a.b.c", None),
        ("list[0]", "not the first item"),
        ("{scores.relevance} of {reviews[0].text}", "3 of good"),
        ("{nothing}!", "!"),
        ("{scores.relevance:.1f}", "3.0"),
    ],
)
def test_what_a_path_leads_to(path, value):
    cells = {
        "scores": {"relevance": 3, "style": 4},
        "reviews": [{"text": "good", "by": {"name": "ana"}}, {"text": "bad", "by": None}],
        "grid": [[1, 2], [3, 4]],
        "nothing": None,
        "empty": [],
        "spelled": '{"a": [1, 2]}',
        "python": "{'b': 'x'}",
        "models": {"gpt-4": {"1": {"text": "wrong"}}, "gpt-4.1": {"text": "x"}},
        "a": {"b": "the key"},
        "a.b": "the column itself",
        "list": ["an item"],
        "list[0]": "not the first item",
    }
    cells["a.b.c"] = None
    found = row(**cells)
    assert found.has(path)
    assert found[path] == value
    assert found.find(path) == value


def test_values_of_an_object_remember_their_keys():
    found = row(outputs={"a": {"text": "x"}, "b": None})["outputs.*.text"]
    assert isinstance(found, Keyed)
    assert (found, found.keys) == (["x", None], ["a", "b"])


@pytest.mark.parametrize(
    ("path", "what", "hint"),
    [
        ("reviews[0].txt", "'reviews[0]' has no 'txt'; did you mean 'text'?", "its keys are text, score"),
        ("reviews[*].nose", "'reviews[1]' has no 'nose'", "its keys are text"),
        ("reviews[2].text", "'reviews' has no item 2: it holds 2, counted from 0", "reviews[*]"),
        ("reviews.text", "'reviews' is a list, which has no '.text'", "write reviews[*].text for every item"),
        ("scores[*]", "'scores' has no '*'", "write scores.* for all of its values"),
        ("plain.text", "'plain' holds 'only text', which has no '.text'", "objects and lists"),
        ("number[0]", "'number' holds 3, which has no '[0]'", "objects and lists"),
    ],
)
def test_what_is_not_there_is_named(path, what, hint):
    cells = {
        "reviews": [{"text": "x", "score": 1, "nose": 1}, {"text": "y"}],
        "scores": {"a": 1},
        "plain": "only text",
        "number": 3,
    }
    with pytest.raises(DataError) as caught:
        row(**cells)[path]
    assert caught.value.what == f"{path!r}: {what}"
    assert hint in caught.value.hint
    assert caught.value.where == "t.jsonl:7"


def test_a_path_from_no_column_is_a_missing_column():
    with pytest.raises(MissingColumn, match=r"there is no column 'revews\[0\]'"):
        row(reviews=[1])["revews[0]"]
    assert not row(reviews=[1]).has("revews[0]")
    assert row(reviews=[1]).find("revews[0]") is None


@pytest.mark.parametrize("template", ["{", "{}", "{scores.a:.1q}"])
def test_a_template_that_cannot_be_filled_is_the_recipes_fault(template):
    with pytest.raises(RecipeError, match=r"the template .* cannot be filled"):
        row(scores={"a": "x"})[template]


ITEM = {
    "info": {"q": "hi"},
    "completions": [{"text": "x", "score": {"v": 2}, "by": "m1"}, {"text": "y", "score": {"v": 5}, "by": "m2"}],
    "best": {"place": 1},
    "who": {"id": "w1"},
}
SAME = {"prompt": "info.q", "annotator": "who.id"}
LISTS = SAME | {"completions": "completions[*].text", "models": "completions[*].by"}


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
@pytest.mark.parametrize(
    ("format", "columns"),
    [
        ("scored", LISTS | {"ratings": "completions[*].score.v"}),
        ("scored", SAME | {"completions": "completions", "text": "text", "score": "score.v", "model": "by"}),
        ("wide", LISTS | {"ratings": "completions[*].score.v"}),
        (
            "wide",
            SAME
            | {
                "completions": ["completions[0].text", "completions[1].text"],
                "ratings": "completions[*].score.v",
                "models": ["completions[0].by", "completions[1].by"],
            },
        ),
    ],
)
def test_one_row_of_nested_cells_is_read_by_paths(tmp_path, name, format, columns):
    [ranking] = rank(tmp_path, [ITEM], format, name=name, **columns)
    assert ranking.prompt == [{"role": "user", "content": "hi"}]
    assert (ranking.completions, ranking.ranks, ranking.ratings) == (["x", "y"], [2, 1], [2.0, 5.0])
    assert (ranking.models, ranking.annotator) == (["m1", "m2"], "w1")


def test_paths_in_the_other_formats(tmp_path):
    columns = SAME | {"completions": "completions[*].text", "choice": "best.place"}
    [choice] = rank(tmp_path, [ITEM], "choice", **columns)
    assert (choice.completions, choice.ranks) == (["x", "y"], [2, 1])
    pair = SAME | {"chosen": "completions[1].text", "rejected": "completions[0].text", "margin": "best.place"}
    [pairs] = rank(tmp_path, [ITEM], "pairs", **pair)
    assert (pairs.completions, pairs.ratings) == (["y", "x"], [1.0, 0.0])
    rows = [{"a": {"t": text, "s": score}, "info": {"q": "hi"}} for text, score in (("x", 1), ("y", 2))]
    [long] = rank(tmp_path, rows, "long", prompt="info.q", completion="a.t", rating="a.s")
    assert (long.completions, long.ranks) == (["x", "y"], [2, 1])
    two = SAME | {"completions": ["completions[0].text", "completions[1].text"], "preference": "best.place"}
    [preferred] = rank(tmp_path, [ITEM], "wide", more={"labels": {"1": "second"}}, **two)
    assert preferred.ranks == [2, 1]


def test_paths_in_tables_without_rankings(tmp_path):
    rows = [{"chat": [{"t": "hi", "a": "x"}], "meta": {"ref": "R"}}]
    path = write(tmp_path, rows)
    columns = {"prompt": "chat[0].t", "completion": "chat[0].a"}
    [demonstration] = read_demonstrations(TableConfig(path=path, columns=columns), 0.0, Dropped())
    assert (demonstration.prompt[0]["content"], demonstration.completion) == ("hi", "x")
    config = PromptTableConfig(path=path, columns={"prompt": "Q: {chat[0].t}"}, metadata=["meta.ref"])
    [prompt] = read_prompts(config, 0.0, Dropped())
    assert (prompt.prompt[0]["content"], prompt.metadata) == ("Q: hi", {"meta.ref": "R"})
    assert list(documents(TableConfig(path=path, columns={"text": "chat[0].a"}), 0, 0.0)) == [("x",)]
    assert list(documents(TableConfig(path=path, columns=columns), 0, 0.0)) == [("hi", "x")]


KEYED = {"prompt": "hi", "outputs": {"gpt": "x", "llama": "y"}, "scores": {"llama": 5, "gpt": 2}}


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
@pytest.mark.parametrize("format", ["wide", "scored"])
def test_objects_by_system_are_paired_by_key(tmp_path, format, name):
    [ranking] = rank(tmp_path, [KEYED], format, name=name, completions="outputs.*", ratings="scores.*")
    assert (ranking.completions, ranking.ratings, ranking.models) == (["x", "y"], [2.0, 5.0], ["gpt", "llama"])


def test_objects_by_system_hold_objects_or_ranks_or_a_choice(tmp_path):
    rows = [{"prompt": "hi", "outputs": {"gpt": {"t": "x", "s": 1}, "llama": {"t": "y", "s": 2}}, "best": "llama"}]
    [scored] = rank(tmp_path, rows, "scored", completions="outputs.*", text="t", score="s")
    assert (scored.completions, scored.ranks, scored.models) == (["x", "y"], [2, 1], ["gpt", "llama"])
    [paths] = rank(tmp_path, rows, "wide", completions="outputs.*.t", ranks="outputs.*.s")
    assert (paths.completions, paths.ranks, paths.models) == (["x", "y"], [1, 2], ["gpt", "llama"])
    [choice] = rank(tmp_path, rows, "choice", completions="outputs.*.t", choice="best")
    assert (choice.ranks, choice.models) == ([2, 1], ["gpt", "llama"])


def test_keys_that_do_not_agree_are_refused_with_the_row(tmp_path):
    rows = [KEYED, KEYED | {"scores": {"gpt": 2, "claude": 1}}]
    with pytest.raises(
        DataError, match=r"the completions and of 'scores\.\*' differ: only one .* 'claude'"
    ) as caught:
        rank(tmp_path, rows, "wide", completions="outputs.*", ratings="scores.*")
    assert caught.value.where.endswith("t.jsonl:2")
    with pytest.raises(DataError, match="cannot be paired"):
        rank(tmp_path, [KEYED | {"scores": [1, 2]}], "wide", completions="outputs.*", ratings="scores")
    with pytest.raises(DataError, match="must be a list") as caught:
        rank(tmp_path, [KEYED], "wide", completions="outputs", ratings="scores")
    assert "write outputs.* for all values of an object" in caught.value.hint


def test_a_key_without_a_value_is_an_empty_cell(tmp_path):
    dropped = Dropped()
    rows = [
        {
            "prompt": "hi",
            "outputs": {"a": "x", "b": "y", "c": None, "d": "z"},
            "scores": {"a": 1, "b": 2, "d": None, "e": None},
        }
    ]
    [ranking] = rank(tmp_path, rows, "scored", dropped, completions="outputs.*", ratings="scores.*")
    assert ranking.models == ["a", "b"]
    assert dropped.completions_out == {"empty completion": 1, "missing rating": 1}


def test_lists_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(DataError, match="must hold 2 values, one per completion, got 1"):
        rank(tmp_path, [ITEM | {"r": [1]}], "wide", prompt="info.q", completions="completions[*].text", ratings="r")
    columns = {"completions": "completions[*].text", "ratings": ["a", "b", "c"], "prompt": "info.q"}
    with pytest.raises(DataError, match="ratings names 3 columns, and the row has 2 completions"):
        rank(tmp_path, [ITEM | {"a": 1, "b": 2, "c": 3}], "wide", **columns)


def test_agreement_with_a_plain_calculation(tmp_path):
    rows = [
        {"q": f"p{i}", "out": {"a": f"x{i}", "b": f"y{i}"}, "s": {"a": i % 5, "b": (3 * i) % 7}} for i in range(40)
    ]
    read = rank(tmp_path, rows, "wide", prompt="q", completions="out.*", ratings="s.*")
    frame = pandas.json_normalize(rows)
    assert len(read) == len(frame)
    assert sum(r.ranks[0] < r.ranks[1] for r in read) == (frame["s.a"] > frame["s.b"]).sum()
    assert sum(r.ranks[0] == r.ranks[1] for r in read) == (frame["s.a"] == frame["s.b"]).sum()


def check(tmp_path, rows, format, more=None, **columns):
    path = write(tmp_path, rows)
    return check_table(
        "data.rankings", RankingTableConfig(path=path, format=format, columns=columns, **(more or {}))
    )


def test_check_counts_the_column_of_a_path_as_used(tmp_path):
    columns = LISTS | {"ratings": "completions[*].score.v"}
    report = check(tmp_path, [ITEM | {"note": "n"}], "wide", **columns)
    assert report.problems == []
    assert report.unused == ["best", "note"]
    assert report.parsed == 1


def test_check_suggests_the_nearest_path(tmp_path):
    columns = LISTS | {"ratings": "completion[*].score.v"}
    [problem] = check(tmp_path, [ITEM], "wide", **columns).problems
    assert problem.what == (
        "the table has no column 'completion[*].score.v'; did you mean 'completions[*].score.v'?"
    )
    assert problem.key == "data.rankings.columns.ratings"
    [problem] = check(tmp_path, [ITEM], "wide", **(LISTS | {"ratings": "completions[*].scores.v"})).problems
    assert problem.what.endswith("'completions[0]' has no 'scores'; did you mean 'score'?")
    assert problem.where.endswith("t.jsonl:1")


def test_an_object_is_nobodys_name(tmp_path):
    row = {"prompt": "p", "a": "x", "b": "y", "ra": 1, "rb": 2, "annotator": {"name": "ana", "id": 3}}
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row) + "\n")
    columns = {"completions": ["a", "b"], "ratings": ["ra", "rb"]}
    with pytest.raises(DataError, match="'annotator' holds an object") as caught:
        list(read_rankings(RankingTableConfig(path=str(path), format="wide", columns=columns), Dropped()))
    assert "annotator: annotator.KEY" in caught.value.hint
    columns["annotator"] = "annotator.name"
    [ranking] = read_rankings(RankingTableConfig(path=str(path), format="wide", columns=columns), Dropped())
    assert ranking.annotator == "ana"


@pytest.mark.parametrize(
    ("cells", "prompt"),
    [
        ({"a": "Sum", "b": "1 2"}, "Sum\n1 2\n\nend"),
        ({"a": "Sum", "b": ""}, "Sum\n\nend"),
        ({"a": None, "b": "1\n2"}, "1\n2\n\nend"),
        ({"a": " ", "b": None}, "\nend"),
    ],
)
def test_a_line_of_empty_cells_is_left_out_of_a_template(cells, prompt):
    assert row(**cells)["{a}\n{b}\n\nend"] == prompt
    assert row(**cells)["TITLE: {b}"] == f"TITLE: {cells['b'] or ''}"
