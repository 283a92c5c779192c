"""What a recipe may say about one table, and which local files enter a stage's key."""

import json
from pathlib import Path

import pytest

import stages.registry  # noqa: F401
from pipeline.config.data import JoinConfig
from pipeline.config.load import load_recipe
from pipeline.engine import registry
from pipeline.errors import RecipeError

WIDE = {"path": "v.csv", "format": "wide", "columns": {"completions": ["a", "b"], "ratings": ["ra", "rb"]}}
GROUPS = {"ana": {"ratings": ["ra", "rb"]}, "ben": {"ratings": ["rc", "rd"]}}
BY_PEOPLE = {"path": "v.csv", "format": "wide", "columns": {"completions": ["a", "b"]}, "annotations": GROUPS}


def load(tmp_path, rankings, **data):
    path = tmp_path / "recipe.yaml"
    recipe = {"extends": "quickstart", "data": {"rankings": rankings, **data}, "rank": {"source": "data"}}
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return load_recipe(path)


@pytest.mark.parametrize(
    "rankings",
    [
        WIDE,
        BY_PEOPLE,
        WIDE | {"path": ["v.csv", "w.csv"]},
        WIDE | {"join": {"path": "t.csv", "on": "id"}},
        WIDE
        | {"join": [{"path": "t.csv", "on": {"a": "b"}, "columns": {"x": "y"}}, {"path": "u.csv", "on": ["a"]}]},
        WIDE | {"extract": {"prompt": "Q: (.*)", "completions": "A: (?P<completions>.*)"}},
        {"path": "v.csv", "format": "wide", "columns": {"completions": "o.*", "ratings": "s.*", "models": "m[*]"}},
        {"path": "v.csv", "format": "pairs", "annotations": "votes[*]"},
        {
            "path": "v.csv",
            "format": "wide",
            "columns": {"completions": ["a", "b"]},
            "annotations": {"ana": {"preference": "x"}, "ben": {"preference": "y"}},
            "labels": {"1": "first", "2": "second"},
        },
        {
            "path": "v.csv",
            "format": "wide",
            "columns": {"completions": ["a", "b", "c"]},
            "annotations": {"ana": {"preference": ["x", "y"]}, "ben": {"preference": ["z", "w"]}},
            "pairs": [[0, 1], [1, 2]],
        },
        {"path": "v.csv", "format": "choice", "pairs": [[0, 1], [1, 2]], "combine": "net_wins"},
        {
            "path": "v.csv",
            "format": "wide",
            "columns": {"completions": "answers[*].text", "best": "most", "worst": "least", "weight": "who.trust"},
            "index_from": 1,
        },
    ],
)
def test_what_a_table_may_say(tmp_path, rankings):
    assert load(tmp_path, rankings).recipe.data.rankings is not None


@pytest.mark.parametrize(
    ("rankings", "message"),
    [
        (WIDE | {"path": ["v.csv", "v.csv"]}, r"data.rankings.path: names v.csv twice"),
        (WIDE | {"path": []}, r"data.rankings.path"),
        (WIDE | {"path": ["v.csv", "hub://a/b"]}, r"data.rankings.path: needs the commit to read"),
        (WIDE | {"join": {"path": "hub://a/b", "on": "id"}}, r"data.rankings.join.path: needs the commit"),
        (WIDE | {"join": {"path": "t.csv"}}, r"data.rankings.join"),
        (WIDE | {"join": {"path": "t.csv", "on": []}}, r"data.rankings.join"),
        (WIDE | {"join": {"path": "t.csv", "on": " "}}, r"data.rankings.join.on: names no column"),
        (
            WIDE | {"join": {"path": "t.csv", "on": "id", "columns": ["a", "a"]}},
            r"join.columns: names a column twice",
        ),
        (WIDE | {"extract": {"prompt": "Q: .*"}}, r"data.rankings.extract.prompt: has no group"),
        (WIDE | {"extract": {"prompt": "Q: (.*"}}, r"data.rankings.extract.prompt: is no regular expression"),
        (WIDE | {"extract": {"promt": "(x)"}}, r"no column 'promt' to extract in; did you mean prompt"),
        ({"path": "t.jsonl", "format": "tree", "extract": {"prompt": "(x)"}}, "nothing can be extracted from"),
        (
            {"path": "t.jsonl", "format": "scored", "extract": {"text": "(x)"}},
            r"lies inside the completions: name them by path",
        ),
        (
            {"path": "t.jsonl", "format": "tree", "annotations": "votes"},
            r"annotations: does not apply to the format",
        ),
        (BY_PEOPLE | {"annotations": {}}, r"data.rankings.annotations: is empty"),
        (WIDE | {"annotations": GROUPS}, r"columns.ratings: is also named under data.rankings.annotations"),
        (
            BY_PEOPLE | {"columns": {"completions": ["a", "b"], "annotator": "who"}},
            r"columns.annotator: is also told by",
        ),
        (
            BY_PEOPLE | {"annotations": GROUPS | {"cem": {"ratings": ["re"]}}},
            r"annotations.cem: must name the same kinds of columns as ana",
        ),
        (
            BY_PEOPLE | {"annotations": GROUPS | {"cem": {"ranks": ["re", "rf"]}}},
            r"annotations.cem: must name the same kinds of columns as ana",
        ),
        (BY_PEOPLE | {"annotations": {"ana": {"rating": "x"}}}, r"has no column 'rating'"),
        (BY_PEOPLE | {"unranked": "last"}, r"data.rankings.unranked: is about ranks, and this table has none"),
        (
            BY_PEOPLE | {"annotations": {"ana": {"preference": ["x", "y"]}}},
            r"data.rankings.pairs: is required where",
        ),
        (BY_PEOPLE | {"annotations": {"ana": {}}}, r"annotations.ana: names no column"),
    ],
)
def test_what_it_may_not_say(tmp_path, rankings, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load(tmp_path, rankings)
    assert "recipe.yaml" in str(caught.value)


def test_the_files_of_a_table_and_of_its_joins_enter_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a1.csv", "a2.csv", "t.csv"):
        Path(name).write_text("x\n1\n")
    join = {"path": "t.csv", "on": "id"}
    recipe = load(
        tmp_path,
        WIDE | {"path": ["a1.csv", "https://host/b.csv"], "join": [join, {"path": ["t.csv", "u.csv"], "on": "id"}]},
        prompts={"path": "a*.csv", "join": join},
    ).recipe
    assert registry.STAGES["data"].files(recipe) == {
        "data.rankings.path[0]": Path("a1.csv"),
        "data.rankings.join[0].path": Path("t.csv"),
        "data.rankings.join[1].path[0]": Path("t.csv"),
        "data.rankings.join[1].path[1]": Path("u.csv"),
        "data.prompts.path[0]": Path("a1.csv"),
        "data.prompts.path[1]": Path("a2.csv"),
        "data.prompts.join.path": Path("t.csv"),
    }


@pytest.mark.parametrize(
    ("exclude", "files"),
    [
        (
            {"path": ["x.csv", "y.csv"], "join": {"path": "t.csv", "on": "id"}},
            {
                "data.exclude.path[0]": Path("x.csv"),
                "data.exclude.path[1]": Path("y.csv"),
                "data.exclude.join.path": Path("t.csv"),
            },
        ),
        (
            ["x.csv", "b*.csv", "hub://a/b@c"],
            {
                "data.exclude[0]": Path("x.csv"),
                "data.exclude[1][0]": Path("b1.csv"),
                "data.exclude[1][1]": Path("b2.csv"),
            },
        ),
    ],
)
def test_the_files_of_rankings_to_evaluate_on_and_of_excluded_prompts_enter_it_too(
    tmp_path, monkeypatch, exclude, files
):
    monkeypatch.chdir(tmp_path)
    for name in ("b1.csv", "b2.csv"):
        Path(name).write_text("x\n1\n")
    evaluated = WIDE | {"path": ["e.csv", "f.csv"], "join": {"path": "t.csv", "on": "id"}}
    recipe = load(tmp_path, WIDE, eval_rankings=evaluated, exclude=exclude).recipe
    assert registry.STAGES["data"].files(recipe) == {
        "data.rankings.path": Path("v.csv"),
        "data.eval_rankings.path[0]": Path("e.csv"),
        "data.eval_rankings.path[1]": Path("f.csv"),
        "data.eval_rankings.join.path": Path("t.csv"),
        **files,
    }


def test_on_needs_no_quotes(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "extends: quickstart\nrank: {source: data}\ndata:\n  rankings:\n    path: v.csv\n    format: pairs\n"
        "    join: {path: t.csv, on: [item, system], columns: {text: body}}\n"
    )
    rankings = load_recipe(path).recipe.data.rankings
    assert rankings is not None
    assert rankings.join == JoinConfig(path="t.csv", on=["item", "system"], columns={"text": "body"})
    join = "data.rankings.join={path: u.csv, on: {a: b}}"
    assert load_recipe(path, [join]).recipe.data.rankings.join.on == {"a": "b"}


def test_values_that_a_recipe_does_not_set_leave_its_key_alone(tmp_path):
    plain = registry.STAGES["data"].keyed(load(tmp_path, WIDE).recipe)["rankings"]
    assert not {"join", "extract", "annotations"} & plain.keys()
    joined = registry.STAGES["data"].keyed(load(tmp_path, WIDE | {"join": {"path": "t.csv", "on": "id"}}).recipe)
    assert joined["rankings"]["join"] == {"path": "t.csv", "split": "train", "on": "id", "columns": []}
