"""System messages and earlier turns in columns of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.schema import write_jsonl
from data.tables.check import check_table
from data.tables.demonstrations import read_demonstrations, read_prompts
from data.tables.earlier import history_of
from data.tables.guess.rankings import any_table
from data.tables.guess.sample import Sample
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import PromptTableConfig, RankingTableConfig, TableConfig
from pipeline.errors import DataError, RecipeError

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
PAIR = [["Hi", "Hello."]]
QUESTION = {"role": "user", "content": "Why?"}
WHOLE = [SYSTEM, *TURNS, QUESTION]
COLUMNS = {"system": "system", "history": "history"}
ANSWERS = {"chosen": "good", "rejected": "bad"}


def table(folder: Path, rows: list[dict[str, Any]]) -> str:
    write_jsonl(folder / "t.jsonl", rows)
    return str(folder / "t.jsonl")


def prompts_of_pairs(
    folder: Path, rows: list[dict[str, Any]], dropped: Dropped | None = None, **columns: str
) -> list:
    config = RankingTableConfig(path=table(folder, rows), format="pairs", columns={**COLUMNS, **columns})
    return [ranking.prompt for ranking in read_rankings(config, dropped or Dropped())]


@pytest.mark.parametrize(
    "history",
    [PAIR, TURNS, json.dumps(PAIR), json.dumps(TURNS), repr(PAIR), "Human: Hi\n\nAssistant: Hello.",
     [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]],
)  # fmt: skip
@pytest.mark.parametrize("prompt", ["Why?", [QUESTION], [SYSTEM, QUESTION], "Human: Why?\n\nAssistant:"])
def test_rankings_begin_with_the_system_message_and_earlier_turns(
    tmp_path: Path, history: Any, prompt: Any
) -> None:
    rows = [{"prompt": prompt, "system": "Be brief.", "history": history, **ANSWERS}]
    assert prompts_of_pairs(tmp_path, rows) == [WHOLE]


@pytest.mark.parametrize("empty", [None, "", " ", []])
def test_empty_cells_add_nothing(tmp_path: Path, empty: Any) -> None:
    system = None if empty == [] else empty
    rows = [{"prompt": "Why?", "system": system, "history": empty, **ANSWERS}]
    assert prompts_of_pairs(tmp_path, rows) == [[QUESTION]]


def test_the_conversation_may_be_in_the_answers(tmp_path: Path) -> None:
    answers = {name: [QUESTION, {"role": "assistant", "content": text}] for name, text in ANSWERS.items()}
    row = {"system": "Be brief.", "history": PAIR, **answers}
    assert prompts_of_pairs(tmp_path, [row]) == [WHOLE]
    assert prompts_of_pairs(tmp_path, [{**row, "prompt": "ignored"}], prompt="") == [WHOLE]
    assert prompts_of_pairs(tmp_path, [{**row, "system": "", "history": None}], prompt="") == [[QUESTION]]


def test_templates_are_prompts_too(tmp_path: Path) -> None:
    row = {"instruction": "Add", "input": "1 2", "system": "Be brief.", "history": PAIR, **ANSWERS}
    (prompt,) = prompts_of_pairs(tmp_path, [row], prompt="{instruction}\n{input}")
    assert prompt == [*WHOLE[:-1], {"role": "user", "content": "Add\n1 2"}]


def test_answers_to_different_histories_are_different_rankings(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?", "history": [["Hi", said]], "completion": text, "rating": rating}
        for said in ("Hello.", "Yes?")
        for text, rating in (("x", 1), ("y", 2))
    ]
    config = RankingTableConfig(path=table(tmp_path, rows), format="long", columns={"history": "history"})
    assert [ranking.prompt[1]["content"] for ranking in read_rankings(config, Dropped())] == ["Hello.", "Yes?"]


def test_demonstrations_and_prompts_have_them_too(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "completion": "So.", "system": "Be brief.", "history": PAIR}
    config = TableConfig(path=table(tmp_path, [row]), columns=COLUMNS)
    (read,) = read_demonstrations(config, 0.0, Dropped())
    assert (read.prompt, read.completion) == (WHOLE, "So.")
    (prompt,) = read_prompts(PromptTableConfig(path=config.path, columns=COLUMNS), 0.0, Dropped())
    assert prompt.prompt == WHOLE

    talk = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    for name in ("messages", "conversations"):
        path = table(tmp_path, [{name: talk, "system": "Be brief.", "history": PAIR}])
        config = TableConfig(path=path, columns={"messages": name, **COLUMNS})
        (read,) = read_demonstrations(config, 0.0, Dropped())
        assert (read.prompt, read.completion) == (WHOLE, "So.")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"prompt": [{"role": "system", "content": "Be long."}, QUESTION]}, "two system messages"),
        ({"history": [SYSTEM, *TURNS], "system": "Be long."}, "two system messages"),
        ({"history": [*PAIR, ["Hi"]]}, "holds no earlier turns"),
        ({"history": [["Hi", ""]]}, "holds no earlier turns"),
        ({"history": "Hi"}, "holds no earlier turns"),
        ({"history": 3}, "must be text or a list of messages"),
        ({"history": [QUESTION]}, "ends with the turn of the user"),
        ({"prompt": [TURNS[1], QUESTION]}, "the history ends with the assistant's turn"),
        ({"system": 3}, "must be text"),
    ],
)
def test_what_contradicts_is_refused_with_the_row(tmp_path: Path, cells: dict[str, Any], message: str) -> None:
    good = {"prompt": "Why?", "system": "Be brief.", "history": PAIR, **ANSWERS}
    with pytest.raises(DataError, match=message) as caught:
        prompts_of_pairs(tmp_path, [good, {**good, **cells}])
    assert caught.value.where.endswith("t.jsonl:2")


def test_tool_turns_are_left_out_and_counted(tmp_path: Path) -> None:
    good = {"prompt": "Why?", "system": "", "history": PAIR, **ANSWERS}
    tools = [*TURNS, {"role": "tool", "content": "3"}]
    dropped = Dropped()
    assert len(prompts_of_pairs(tmp_path, [good, {**good, "history": tools}], dropped)) == 1
    assert dropped.counts == {"tool calls or turns": 1}


def test_an_implicit_prompt_has_nothing_before_it(tmp_path: Path) -> None:
    rows = [{"system": "Be brief.", "chosen": "The sky is blue", "rejected": "The sky is green"}]
    columns = {"system": "system"}
    config = RankingTableConfig(path=table(tmp_path, rows), format="pairs", columns=columns, implicit_prompt=True)
    with pytest.raises(RecipeError, match="implicit_prompt"):
        list(read_rankings(config, Dropped()))


def test_unused_columns_are_asked_about(tmp_path: Path) -> None:
    rows = [{"prompt": f"Why {i}?", "system": "Be brief.", "history": PAIR, **ANSWERS} for i in range(3)]
    path = table(tmp_path, rows)

    def lines(columns: dict[str, str | list[str]]) -> str:
        config = RankingTableConfig(path=path, format="pairs", columns=columns)
        return "\n".join(check_table("data.rankings", config).lines)

    assert "If it holds the system message, set data.rankings.columns: {system: system}" in lines({})
    assert "If it holds earlier turns of the conversation, set data.rankings.columns: {history: history}" in lines(
        {}
    )
    assert "not used" not in lines({"system": "system", "history": "history"})
    models = [{**row, "system": ("tgen", "slug")[i % 2], "history": None} for i, row in enumerate(rows)]
    table(tmp_path, models)
    assert "the system message" not in lines({})


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"instruction": "Add", "input": "1 2", **ANSWERS}, {"prompt": "{instruction}\n{input}"}),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, {"prompt": "{instruction}\n{input}"}),
        ({"conversations": [QUESTION], **ANSWERS}, {"prompt": "conversations"}),
        ({"messages": [QUESTION, {"role": "assistant", "content": "So."}]}, {"messages": "messages"}),
        ({"prompt": "Why is it so?", "a": "x x", "b": "y y", "rating_a": 1, "rating_b": 2}, {"prompt": "prompt"}),
    ],
)
def test_inspect_names_what_comes_before(tmp_path: Path, row: dict[str, Any], columns: dict[str, str]) -> None:
    path = table(tmp_path, [{**row, "system": "Be brief.", "history": PAIR}] * 3)
    guess = any_table(Sample.of(TableConfig(path=path)))
    assert guess.columns.items() >= {**columns, **COLUMNS}.items()
    assert not guess.unused

    path = table(tmp_path, [{**row, "system": "tgen", "history": None}] * 3)
    guess = any_table(Sample.of(TableConfig(path=path)))
    assert not {"system", "history"} & guess.columns.keys()


def test_what_a_history_is_not() -> None:
    assert history_of(float("nan"), "h", "t:1") == []
    with pytest.raises(DataError, match="no earlier turns"):
        history_of([["a", "b", "c"]], "h", "t:1")
