"""Rows of tables as prompts and completions, and the columns that are added."""

import json

import pytest
import tiny

from data.tables.sources import Row
from pipeline.errors import DataError
from stages.score.model import Scores
from stages.score.rows import Layout


def row(**cells):
    return Row(7, cells, "t.jsonl:7")


def layout(first, prompt="", completions=(), prefix=""):
    return Layout.of(first, prompt, completions, prefix)


SINGLE = Scores([0.5], [1], None)
PAIR = Scores([0.5, 1.5], [2, 1], [0.1, 0.2])


def test_a_list_of_completions_gets_lists_of_scores_ranks_and_stds() -> None:
    table = row(prompt="q", completions=["a", "b"], source="x")
    read = layout(table)
    answers = read.answers(table)
    assert (answers.prompt, answers.completions) == (tiny.user("q"), ["a", "b"])
    assert read.scored(table, PAIR) == {
        **table, "scores": [0.5, 1.5], "ranks": [2, 1], "score_stds": [0.1, 0.2],
    }  # fmt: skip


def test_one_completion_gets_a_score_and_no_std_without_an_ensemble() -> None:
    table = row(prompt="q", completion="a")
    read = layout(table)
    assert read.answers(table).completions == ["a"]
    assert read.scored(table, SINGLE) == {**table, "score": 0.5}
    assert read.scored(table, Scores([0.5], [1], [0.25])) == {**table, "score": 0.5, "score_std": 0.25}


def test_several_columns_get_one_column_of_each_kind() -> None:
    table = row(prompt="q", chosen="a", rejected="b")
    assert layout(table).scored(table, PAIR) == {
        **table,
        "score_chosen": 0.5,
        "score_rejected": 1.5,
        "rank_chosen": 2,
        "rank_rejected": 1,
        "score_std_chosen": 0.1,
        "score_std_rejected": 0.2,
    }
    named = layout(row(frage="q", a="x", b="y"), "frage", ("a", "b"), "rm_")
    assert named.added(ensemble=False) == ["rm_score_a", "rm_score_b", "rm_rank_a", "rm_rank_b"]


def test_conversations_are_read_from_messages_and_from_whole_completions() -> None:
    talk = [*tiny.user("q"), {"role": "assistant", "content": "a"}]
    for table in (row(messages=talk), row(prompt=tiny.user("q"), completion=talk[-1:]), row(completions=[talk])):
        answers = layout(table).answers(table)
        assert (list(answers.prompt), answers.completions) == (tiny.user("q"), ["a"])


def test_in_csv_a_list_is_spelled_as_json_in_a_column_of_lists_only() -> None:
    cell = json.dumps(["a", "b, c"])
    table = row(prompt="q", completions=cell)
    assert layout(table).answers(table).completions == ["a", "b, c"]
    table = row(prompt="q", completion=cell)
    assert layout(table).answers(table).completions == [cell]


@pytest.mark.parametrize(
    ("table", "options", "problem"),
    [
        (row(prompt="q", text="a"), {}, "no column holds completions"),
        (row(prompt="q", completion="a"), {"prompt": "question"}, "no column 'question'"),
        (row(prompt="q", completion="a"), {"completions": ("answer",)}, "no column 'answer'"),
        (row(prompt="q", completion="a", score=1), {}, "already has a column 'score'"),
        (row(prompt="q", completion=" "), {}, "column 'completion' is empty"),
        (row(prompt="q", completions=["a", ""]), {}, "column 'completions', item 2 is empty"),
        (row(prompt="q", completions=["a", None]), {}, "item 2 is empty"),
        (row(prompt="q", completions=[]), {}, "the list in column 'completions' is empty"),
        (row(prompt="", completion="a"), {}, "the prompt is empty"),
        (row(prompt="q", chosen=["a"], rejected="b"), {}, "holds a list of completions where one is expected"),
        (row(prompt="q", completion=7), {}, "must be text or a list of messages"),
    ],
)  # fmt: skip
def test_mistakes_name_the_column_and_the_row(table, options, problem) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        layout(table, **options).answers(table)
    assert "t.jsonl:7" in caught.value.where
    assert caught.value.hint


def test_a_row_without_a_list_where_others_have_one_is_refused() -> None:
    read = layout(row(prompt="q", completions=["a", "b"]))
    with pytest.raises(DataError, match="holds a list of completions in the first row, and here 'a'"):
        read.answers(row(prompt="q", completions="a"))
