"""A recipe's `format` and `columns` are checked against the registered formats when the recipe is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data.tables.formats import FORMATS
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config import formats
from pipeline.config.data import RankingTableConfig
from pipeline.config.formats import Column, TableFormat
from pipeline.config.load import LoadedRecipe, load_recipe
from pipeline.errors import RecipeError

Load = Callable[..., LoadedRecipe]


def table(format: str, columns: str = "{}", more: str = "") -> str:
    return f"data.rankings={{path: x.csv, format: {format}, columns: {columns}{more}}}"


def test_an_unknown_format_is_refused_with_its_line_and_the_nearest_name(recipe_file: Path) -> None:
    recipe_file.write_text(
        recipe_file.read_text().replace("size: 10}}\nrank", "size: 10}, rankings: {path: x, format: wid}}\nrank")
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe("small.yaml")
    assert caught.value.what == (
        'data.rankings.format: must be a format of rankings, got "wid"; did you mean wide?'
    )
    assert caught.value.where == "small.yaml:4"


def test_a_format_like_no_other_is_refused_with_all_names(load: Load) -> None:
    with pytest.raises(RecipeError, match=f"valid values are {', '.join(sorted(FORMATS))}"):
        load(table("xyzzy"))


@pytest.mark.parametrize(
    ("format", "columns", "message"),
    [
        ("wide", "{complitions: [a, b]}", "data.rankings.columns.complitions"),
        ("wide", "{completions: a, prompt: [b]}", "prompt must be the name of one column, got ['b']"),
        ("argilla", "{completions: a}", "completions must be a list of column names, got 'a'"),
        ("wide", "{completions: [a, a]}", "completions names a column twice: a, a"),
        ("wide", "{prompt: p}", "the format wide needs completions"),
        ("wide", "{completions: [a, b], ratings: [c, d], preference: e}", "both ratings and preference are given"),
        ("long", "{rating: a, rank: b}", "both rating and rank are given"),
        ("pairs", "{chosen: [a]}", "chosen must be the name of one column, got ['a']"),
        ("native", "{prompt: p}", "leave `columns` out"),
    ],
)
def test_columns_that_do_not_fit_are_refused(load: Load, format: str, columns: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(table(format, columns))
    assert message in str(caught.value)
    assert "--set #1" in str(caught.value), "the place where the columns are given"


def test_labels_need_a_column_that_they_explain(load: Load) -> None:
    labels = ", labels: {1: first}"
    load(table("choice", more=labels))
    load(table("wide", "{completions: [a, b], preference: c}", labels))
    with pytest.raises(RecipeError, match=r"data\.rankings\.labels"):
        load(table("wide", "{completions: [a, b], ratings: [c, d]}", labels))


def test_a_registered_format_is_a_valid_name(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = TableFormat("mine", "one of my own", (Column("prompt"),))
    monkeypatch.setattr(formats, "_sources", [*formats._sources, lambda: {"mine": mine}])
    assert load(table("mine", "{prompt: p}")).recipe.data.rankings
    with pytest.raises(RecipeError, match="the format mine has no column 'text'"):
        load(table("mine", "{text: t}"))


def test_without_formats_reading_checks_the_name(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_sources", [])
    assert load(table("wid")).recipe.data.rankings
    with pytest.raises(RecipeError, match="'wid' is no format of rankings"):
        next(read_rankings(RankingTableConfig(path="x", format="wid"), Dropped()))


def test_every_format_is_registered_under_its_name() -> None:
    assert formats.known_formats() == FORMATS
    assert [format.name for format in FORMATS.values()] == list(FORMATS)


@pytest.mark.parametrize(
    ("source", "columns", "message"),
    [
        (
            "data.demonstrations",
            "{promt: question}",
            "data.demonstrations.columns.promt: a table of demonstrations",
        ),
        (
            "data.demonstrations",
            "{promt: question}",
            "did you mean prompt? The names are prompt, completion, messages",
        ),
        ("data.demonstrations", "{question: prompt}", "our name comes first: write {prompt: question}"),
        ("data.demonstrations", "{annotator: who}", "a table of demonstrations has no column 'annotator'"),
        ("data.prompts", "{Prompt: q}", "did you mean prompt?"),
        ("data.prompts", "{completion: c}", "a table of prompts has no column 'completion'"),
        ("eval.text", "{txt: t}", "did you mean text?"),
        ("base.pretrain.corpus", "{completions: t}", "did you mean completion?"),
    ],
)
def test_column_names_of_tables_of_text(load: Load, source: str, columns: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(f"{source}={{path: t.csv, columns: {columns}}}", "rank.source=app", "rank.app.annotators=[ana, ben]")
    assert message in caught.value.what
    assert caught.value.where == "--set #1"


@pytest.mark.parametrize(
    ("columns", "nearest"),
    [("{anotator: r}", "annotator"), ("{rater: r}", "annotator"), ("{score: [r]}", "ratings")],
)
def test_the_name_that_is_probably_meant(load: Load, columns: str, nearest: str) -> None:
    columns = columns.replace("{", "{completions: [a, b], ")
    with pytest.raises(RecipeError, match=f"did you mean {nearest}") as caught:
        load(table("wide", columns))
    assert "--set #1" in str(caught.value)
