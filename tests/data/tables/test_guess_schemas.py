"""Tables in the schemas of public data sets and tools are recognised, and read as people ordered their answers.

Each fixture has the columns that the data set publishes, and its rows the forms of values that occur in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data.tables.check import parse
from data.tables.guess.guess import RANKINGS, Guess
from data.tables.guess.rankings import any_table
from data.tables.guess.sample import Sample
from data.tables.guess.schemas import SCHEMAS
from data.tables.guess.section import config_of, section
from data.tables.sources import Dropped
from pipeline.config.data import TableConfig
from pipeline.config.load import load_recipe
from pipeline.errors import DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@dataclass(frozen=True)
class Case:
    """A table: its rows, and of each ranking the prompt's last turn and the answers in groups, the best first."""

    name: str
    format: str
    rows: list[dict[str, Any]]
    orders: list[tuple[str, list[set[str]]]]
    human: bool = True
    annotators: set[str] = field(default_factory=lambda: {"unknown"})


TALK = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: More\n\nAssistant:"


def completion(model: str, score: float) -> dict[str, Any]:
    aspect = {"Rating": "4", "Rationale": "..."}
    return {
        "annotations": {"helpfulness": aspect, "honesty": aspect},
        "custom_system_prompt": "...",
        "model": model,
        "principle": "helpfulness",
        "response": f"by {model}",
        "critique": "...",
        "fine-grained_score": 4.5,
        "overall_score": score,
    }


def attributes(prompt: str, response: str, helpfulness: int) -> dict[str, Any]:
    rest = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **rest}


def arena(winner: str, judge: str = "arena_user_1") -> dict[str, Any]:
    return {
        "question_id": "58210e39b3fd4441a2bd4a518bb44c2d",
        "model_a": "chatglm-6b",
        "model_b": "koala-13b",
        "winner": winner,
        "judge": judge,
        "conversation_a": [user("Hi"), assistant("x")],
        "conversation_b": [user("Hi"), assistant("y")],
        "turn": 1,
        "anony": True,
        "language": "English",
        "tstamp": 1682351591.1322,
        "toxic_chat_tag": {"roberta-large": {"flagged": False, "probability": 0.01}},
    }


def message(role: str, text: str, rank: int | None = None, replies: Any = ()) -> dict[str, Any]:
    return {
        "message_id": text,
        "text": text,
        "role": role,
        "lang": "en",
        "review_count": 3,
        "deleted": False,
        "rank": rank,
        "replies": list(replies),
    }


def shp(labels: int) -> dict[str, Any]:
    return {
        "post_id": "qt3nxl",
        "domain": "askculinary_train",
        "upvote_ratio": 0.98,
        "history": "How is it?",
        "c_root_id_A": "a",
        "c_root_id_B": "b",
        "score_A": 340 if labels else 3,
        "score_B": 166,
        "human_ref_A": "x",
        "human_ref_B": "y",
        "labels": labels,
        "seconds_difference": 2000.0,
        "score_ratio": 2.0,
    }


def webgpt(first: float) -> dict[str, Any]:
    quotes = {"title": ["t"], "extract": ["e"]}
    return {
        "question": {"dataset": "triviaqa", "id": "1", "full_text": "Who?"},
        "quotes_0": quotes,
        "answer_0": "x",
        "tokens_0": {"prefix": [1], "completion": [2]},
        "score_0": first,
        "quotes_1": quotes,
        "answer_1": "y",
        "tokens_1": {"prefix": [1], "completion": [2]},
        "score_1": -first,
    }


def tldr(choice: int, worker: str) -> dict[str, Any]:
    info = {"id": "t3_1", "post": "A post", "title": "T", "subreddit": "r", "site": None, "article": None}
    summaries = [{"text": " x", "policy": "sup1", "note": "ok"}, {"text": " y", "policy": "ref", "note": None}]
    return {
        "info": info,
        "summaries": summaries,
        "choice": choice,
        "worker": worker,
        "batch": "3",
        "split": "train",
        "extra": {"confidence": None},
    }


def safe(better: int, safer: int) -> dict[str, Any]:
    return {
        "prompt": "p",
        "response_0": "x",
        "response_1": "y",
        "prompt_source": "s",
        "response_0_source": "Alpaca-7B",
        "response_1_source": "Alpaca2-7B",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "response_0_severity_level": 1,
        "better_response_id": better,
        "safer_response_id": safer,
        "response_0_sha256": "a",
    }


def strength(value: int) -> dict[str, Any]:
    return {
        "split": "train",
        "prompt": "p",
        "response_1": "x",
        "response_2": "y",
        "preference_strength": value,
        "preference_statement": "...",
        "preference_elaboration": "...",
    }


def helpsteer3(value: int) -> dict[str, Any]:
    return {
        "domain": "general",
        "language": "english",
        "context": [user("p"), assistant("a"), user("q")],
        "response1": "x",
        "response2": "y",
        "overall_preference": value,
        "individual_preference": [{"score": value, "reasoning": "...", "feedback1": "...", "feedback2": "..."}],
    }


MT_BENCH = ("question_id", "model_a", "model_b", "winner", "judge", "conversation_a", "conversation_b")
X_Y, Y_X, TIE = [{"x"}, {"y"}], [{"y"}, {"x"}], [{"x", "y"}]

REPLIES = [message("assistant", "y", 1), message("assistant", "x", 0)]
TLDR = "SUBREDDIT: r/r\n\nTITLE: T\n\nPOST: A post\n\nTL;DR:"

CASES = [
    Case("HH-RLHF", "pairs", [{"chosen": f"{TALK} x", "rejected": f"{TALK} y"}], [("More", X_Y)]),
    Case(
        "rm-static",
        "pairs",
        [{"prompt": TALK, "response": " x", "chosen": " x", "rejected": " y"}],
        [("More", X_Y)],
    ),
    Case(
        "UltraFeedback",
        "scored",
        [
            {
                "source": "sharegpt",
                "instruction": "p",
                "models": ["a", "b", "c"],
                "completions": [completion("a", 6.5), completion("b", 8.0), completion("c", 6.5)],
                "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            }
        ],
        [("p", [{"by b"}, {"by a", "by c"}])],
        human=False,
    ),
    Case("HelpSteer2", "long", [attributes("p", "x", 3), attributes("p", "y", 4)], [("p", Y_X)]),
    Case("HelpSteer2 preference", "wide", [strength(-3), strength(2), strength(0)],
         [("p", X_Y), ("p", Y_X), ("p", TIE)]),
    Case("HelpSteer2 preference of one sign", "wide", [strength(2)], [("p", Y_X)]),
    Case("HelpSteer3", "wide", [helpsteer3(-2), helpsteer3(1)], [("q", X_Y), ("q", Y_X)]),
    Case(
        "Chatbot Arena",
        "wide",
        [arena("model_a"), arena("model_b", "expert_1"), arena("tie"), arena("tie (bothbad)")],
        [("Hi", X_Y), ("Hi", Y_X), ("Hi", TIE), ("Hi", TIE)],
        annotators={"arena_user_1", "expert_1"},
    ),
    Case(
        "LMSYS on Kaggle",
        "wide",
        [
            {
                "id": 1,
                "model_a": "m",
                "model_b": "n",
                "prompt": '["p"]',
                "response_a": '["x"]',
                "response_b": '["y"]',
                "winner_model_a": int(winner == 0),
                "winner_model_b": int(winner == 1),
                "winner_tie": int(winner == 2),
            }
            for winner in (0, 1, 2)
        ],
        [("p", X_Y), ("p", Y_X), ("p", TIE)],
    ),
    Case(
        "OASST trees",
        "tree",
        [
            {
                "message_tree_id": "1",
                "tree_state": "ready_for_export",
                "prompt": message("prompter", "p", None, REPLIES),
            }
        ],
        [("p", X_Y)],
    ),
    Case("SHP", "wide", [shp(1), shp(0)], [("How is it?", X_Y), ("How is it?", Y_X)]),
    Case("WebGPT comparisons", "wide", [webgpt(0.5), webgpt(-1.0), webgpt(0.0)],
         [("Who?", X_Y), ("Who?", Y_X), ("Who?", TIE)]),
    Case(
        "TL;DR comparisons",
        "choice",
        [tldr(0, "w1"), tldr(1, "w2")],
        [(TLDR, [{" x"}, {" y"}]), (TLDR, [{" y"}, {" x"}])],
        annotators={"w1", "w2"},
    ),
    Case("PKU-SafeRLHF", "wide", [safe(0, 1), safe(1, 1)], [("p", X_Y), ("p", Y_X)]),
    Case(
        "Nectar",
        "scored",
        [
            {
                "prompt": "\n\nHuman: p\n\nAssistant: ",
                "answers": [{"answer": f"a{k}", "model": f"m{k}", "rank": float(k)} for k in (7, 1, 3, 2, 5, 4, 6)],
                "turns": 1,
                "num_responses": 7,
                "source": ["sharegpt"],
                "good_natured": True,
            }
        ],
        [("p", [{f"a{k}"} for k in range(1, 8)])],
        human=False,
    ),
    Case(
        "LLaMA-Factory alpaca",
        "pairs",
        [{"instruction": "Sum", "input": "1 2", "chosen": "x", "rejected": "y", "system": "Be brief.",
          "history": [["Hi", "Hello."]]}],
        [("Sum\n1 2", X_Y)],
    ),
    Case(
        "LLaMA-Factory alpaca without inputs",
        "pairs",
        [{"instruction": "Sum", "input": "", "chosen": "x", "rejected": "y"}],
        [("Sum", X_Y)],
    ),
    Case(
        "LLaMA-Factory sharegpt",
        "pairs",
        [
            {
                "conversations": [
                    {"from": "human", "value": "p"},
                    {"from": "gpt", "value": "a"},
                    {"from": "human", "value": "q"},
                ],
                "chosen": {"from": "gpt", "value": "x"},
                "rejected": {"from": "gpt", "value": "y"},
            }
        ],
        [("q", X_Y)],
    ),
    Case(
        "LLaMA-Factory openai",
        "pairs",
        [{"messages": [user("p")], "chosen": assistant("x"), "rejected": assistant("y")}],
        [("p", X_Y)],
    ),
    Case(
        "MT-bench human judgments",
        "wide",
        [
            {name: value for name, value in arena(winner).items() if name in MT_BENCH} | {"turn": turn}
            for winner, turn in (("model_a", 1), ("model_b", 2), ("tie", 1))
        ],
        [("Hi", X_Y), ("Hi", TIE)],
        annotators={"arena_user_1"},
    ),
    Case("TRL implicit", "pairs", [{"chosen": "The sky is blue.", "rejected": "The sky is green."}],
         [("The sky is", [{" blue."}, {" green."}])]),
    Case("TRL explicit", "pairs", [{"prompt": "p", "chosen": "x", "rejected": "y"}], [("p", X_Y)]),
    Case(
        "TRL explicit conversational",
        "pairs",
        [{"prompt": [user("p")], "chosen": [assistant("x")], "rejected": [assistant("y")]}],
        [("p", X_Y)],
    ),
    Case(
        "TRL implicit conversational",
        "pairs",
        [{"chosen": [user("p"), assistant("x")], "rejected": [user("p"), assistant("y")]}],
        [("p", X_Y)],
    ),
    Case(
        "a spreadsheet with ratings",
        "wide",
        [
            {"Question": f"q{i}", "Answer A": "x", "Answer B": "y", "Score A": 5, "Score B": 1 + i, "Rater": rater}
            for i in range(2)
            for rater in ("ana", "ben")
        ],
        [(f"q{i}", X_Y) for i in (0, 0, 1, 1)],
        annotators={"ana", "ben"},
    ),
    Case(
        "a long spreadsheet",
        "long",
        [
            {"question": "q", "rater": rater, "answer": text, "stars": stars}
            for rater in ("ana", "ben")
            for text, stars in (("x", 5), ("y", 2))
        ],
        [("q", X_Y), ("q", X_Y)],
        annotators={"ana", "ben"},
    ),
]  # fmt: skip


def table(folder: Path, rows: list[dict[str, Any]]) -> TableConfig:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TableConfig(path=str(path))


def guessed(folder: Path, rows: list[dict[str, Any]]) -> Guess:
    return any_table(Sample.of(table(folder, rows)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_public_schema_is_recognised_and_read(case: Case, tmp_path: Path) -> None:
    guess = guessed(tmp_path, case.rows)
    assert (guess.kind, guess.format, guess.human, guess.open) == ("rankings", case.format, case.human, [])
    rankings: list[Any] = list(parse(guess.table, config_of(guess, str(tmp_path / "t.jsonl")), Dropped()))
    orders = []
    for ranking in rankings:
        levels: dict[int, set[str]] = {}
        for text, rank in zip(ranking.completions, ranking.ranks, strict=True):
            levels.setdefault(rank, set()).add(text)
        orders.append((ranking.prompt[-1]["content"], [levels[rank] for rank in sorted(levels)]))
        assert ranking.human is case.human
    assert orders == case.orders
    assert {ranking.annotator for ranking in rankings} == case.annotators


RECIPE = """
name: r
base: {{pretrain: {{corpus: {{task: venues, size: 10}}}}}}
{section}
  demonstrations: {{task: venues, size: 10}}
rank: {{source: data}}
"""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_printed_section_is_a_recipe_that_reads_the_same(case: Case, tmp_path: Path) -> None:
    guess = guessed(tmp_path, case.rows)
    path = str(tmp_path / "t.jsonl")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(section="\n".join(section(guess, path))))
    loaded = load_recipe(recipe).recipe.data.rankings
    assert loaded is not None
    read = [list(parse(guess.table, config, Dropped())) for config in (loaded, config_of(guess, path))]
    assert read[0] == read[1] != []


def test_each_known_schema_of_rankings_has_a_case() -> None:
    readable = {schema.name for schema in SCHEMAS if not schema.hint and schema.table == RANKINGS}
    names = {case.name for case in CASES}
    assert {name.removesuffix(" rankings") for name in readable} <= names


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        ([message("prompter", "p") | {"message_tree_id": "1", "parent_id": None}], "trees.jsonl.gz"),
        ([{"prompt": "p", "completion": c, "label": good} for c, good in (("x", True), ("y", False))], "pairs"),
        ([{"chosen": "The sky is blue.", "rejected": "Grass is green."}], "prompt"),
        ([{"alpha": 1, "beta": 2}], "its columns are alpha, beta"),
    ],
)
def test_a_table_that_cannot_be_read_says_what_to_do(rows: list[dict[str, Any]], hint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        guessed(tmp_path, rows)
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    ("values", "choices"),
    [
        ((1, 2), ("labels: {1: first, 2: second}", "labels: {1: second, 2: first}")),
        (
            (0, 1, 2),
            (
                "labels: {0: tie, 1: first, 2: second}",
                "labels: {0: first, 1: second, 2: tie}",
                "labels: {0: first, 1: tie, 2: second}",
            ),
        ),
    ],
)
def test_labels_whose_meaning_is_not_known_are_asked_about(
    values: tuple[int, ...], choices: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [
        {"input": f"Q {i}", "output_1": "x", "output_2": "y", "label": values[i % len(values)]} for i in range(6)
    ]
    [question] = guessed(tmp_path, rows).open
    assert question.choices == choices


def test_each_answer_to_a_question_is_a_recipe_that_reads_the_table(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{i}", "response": text, "helpfulness": h, "clarity": c}
        for i in range(3)
        for text, h, c in (("x", 1, 3), ("y", 2, 1 + i))
    ]
    [question] = guessed(tmp_path, rows).open
    assert question.choices == ("rating: helpfulness", "rating: clarity")


@pytest.mark.parametrize(
    ("rows", "kind", "columns"),
    [
        ([{"instruction": "p", "output": "c"}], "demonstrations",
         {"prompt": "instruction", "completion": "output"}),
        ([{"messages": [user("p"), assistant("c")]}], "demonstrations", {"messages": "messages"}),
        ([{"prompt": "p", "completion": c} for c in "xy"], "demonstrations",
         {"prompt": "prompt", "completion": "completion"}),
        ([{"question": "p", "id": 1}], "prompts", {"prompt": "question"}),
        ([{"text": "A document."}], "texts", {"text": "text"}),
    ],
)  # fmt: skip
def test_other_tables_are_recognised(
    rows: list[dict[str, Any]], kind: str, columns: dict[str, str], tmp_path: Path
) -> None:
    guess = guessed(tmp_path, rows)
    assert (guess.kind, guess.columns, guess.open) == (kind, columns, [])


def test_one_column_of_text_is_asked_about(tmp_path: Path) -> None:
    [question] = guessed(tmp_path, [{"foo": "Some text."}]).open
    assert [choice.partition(":")[0] for choice in question.choices] == ["data.prompts", "eval.text"]
