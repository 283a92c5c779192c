"""Every format that people export, in its real schema: read by recipe values, and compared with a calculation in
plain pandas from the raw rows; `inspect` reads the table in the same way, or asks for what it does not say."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from data.annotators.agreement import agreement
from data.schema import Ranking
from data.tables.check import parse
from data.tables.guess.rankings import any_table
from data.tables.guess.sample import Sample
from data.tables.guess.section import config_of
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.config.load import load_recipe

Rows = list[dict[str, Any]]
Answers = list[tuple[Any, str, str, str, float | None]]
"""The ranking that an answer belongs to, its prompt's last turn, annotator, text and score (higher is better)."""

RNG = random.Random(7)
PROMPTS = [f"What is known about topic {number}?" for number in range(12)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@dataclass(frozen=True)
class Export:
    """A table as a tool or a data set has it.

    Attributes:
        rows: of the file.
        recipe: the recipe's values beside `path`.
        answers: the rows in plain Python, for the calculation.
        suffix: of the file.
        beside: another file in the same folder -> its rows.
        asked: a part of the question that `inspect` asks; empty where it guesses right.
    """

    name: str
    rows: Rows
    recipe: str
    answers: Callable[[Rows], Answers]
    suffix: str = ".jsonl"
    beside: dict[str, Rows] = field(default_factory=dict)
    asked: str = ""


def written(path: Path, rows: Rows) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# Transcripts, chosen and rejected


def hh(*turns: str) -> str:
    speakers = ("Human", "Assistant") * 4
    return "".join(f"\n\n{who}: {text}" for who, text in zip(speakers, turns, strict=False))


def pair(
    rows: Rows, prompt: Callable[[Any], str], chosen: Callable[[Any], str], rejected: Callable[[Any], str]
) -> Answers:
    return [
        (number, prompt(row), "unknown", text(row), score)
        for number, row in enumerate(rows)
        for text, score in ((chosen, 1.0), (rejected, 0.0))
    ]


HH = [
    {"chosen": hh("Hi", "Hello.", q, f"good {i}"), "rejected": hh("Hi", "Hello.", q, f"bad {i}")}
    for i, q in enumerate(PROMPTS)
]
RM_STATIC = [
    {"prompt": hh("Hi", "Hello.", q, ""), "response": f" good {i}", "chosen": f" good {i}", "rejected": f" bad {i}"}
    for i, q in enumerate(PROMPTS)
]
SHAREGPT = [
    {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello."},
            {"from": "human", "value": q},
        ],
        "chosen": {"from": "gpt", "value": f"good {i}"},
        "rejected": {"from": "gpt", "value": f"bad {i}"},
    }
    for i, q in enumerate(PROMPTS)
]
ALPACA = [
    {"instruction": q, "input": "a table" if i % 2 else "", "chosen": f"good {i}", "rejected": f"bad {i}"}
    for i, q in enumerate(PROMPTS)
]


def word(row: Any, side: str) -> str:
    cell = row[side]
    text = cell if isinstance(cell, str) else cell[-1]["content"] if isinstance(cell, list) else cell["value"]
    return text.rpartition("Assistant: ")[2].strip() if "Assistant:" in text else text


def of_pairs(prompt: Callable[[Any], str]) -> Callable[[Rows], Answers]:
    return lambda rows: pair(rows, prompt, lambda row: word(row, "chosen"), lambda row: word(row, "rejected"))


TRL = {
    "TRL explicit": (
        [{"prompt": q, "chosen": "good", "rejected": "bad"} for q in PROMPTS],
        of_pairs(lambda row: row["prompt"]),
        "{format: pairs}",
    ),
    "TRL implicit": (
        [{"chosen": f"{q} Very much.", "rejected": f"{q} Very little."} for q in PROMPTS],
        lambda rows: pair(
            rows,
            lambda row: row["chosen"].removesuffix(" much."),
            lambda row: " much.",
            lambda row: " little.",
        ),
        "{format: pairs, implicit_prompt: true}",
    ),
    "TRL explicit conversational": (
        [{"prompt": [user(q)], "chosen": [assistant("good")], "rejected": [assistant("bad")]} for q in PROMPTS],
        of_pairs(lambda row: row["prompt"][-1]["content"]),
        "{format: pairs}",
    ),
    "TRL implicit conversational": (
        [{"chosen": [user(q), assistant("good")], "rejected": [user(q), assistant("bad")]} for q in PROMPTS],
        of_pairs(lambda row: row["chosen"][0]["content"]),
        "{format: pairs}",
    ),
}

# Two answers and a label


def two(
    rows: Rows,
    prompt: Callable[[Any], str],
    texts: Callable[[Any], tuple[str, str]],
    verdict: Callable[[Any], float | None],
    annotator: Callable[[Any], str] = lambda row: "unknown",
) -> Answers:
    """`verdict`: by how much the second answer is better."""
    answers: Answers = []
    for number, row in enumerate(rows):
        better = verdict(row)
        for text, sign in zip(texts(row), (-1, 1), strict=True):
            score = None if better is None else sign * better
            answers.append((number, prompt(row), annotator(row), text, score))
    return answers


STRENGTH = [
    {
        "split": "train",
        "prompt": q,
        "response_1": f"x{i}",
        "response_2": f"y{i}",
        "preference_strength": i % 7 - 3,
        "preference_statement": "...",
    }
    for i, q in enumerate(PROMPTS)
]
HELPSTEER3 = [
    {
        "domain": "general",
        "language": "english",
        "context": [user("Hi"), assistant("Hello."), user(q)],
        "response1": f"x{i}",
        "response2": f"y{i}",
        "overall_preference": i % 7 - 3,
        "individual_preference": [
            {"score": RNG.choice([-2, -1, 0, 1, 2]), "reasoning": "...", "feedback1": "...", "feedback2": "..."}
            for _ in range(3)
        ],
    }
    for i, q in enumerate(PROMPTS)
]


def arena(labels: list[str], **more: Any) -> Rows:
    rows = []
    for i, q in enumerate(PROMPTS):
        for who in ("u1", "u2"):
            before = [user("Hi"), assistant("Hello.")] if i == 3 else []
            differ = [user("Hi"), assistant("Hi!")] if i == 3 else []
            rows.append(
                {
                    "question_id": f"{i}{who}",
                    "model_a": "vicuna-13b",
                    "model_b": "koala-13b",
                    "winner": RNG.choice(labels),
                    "judge": who,
                    "conversation_a": [*before, user(q), assistant(f"x{i}")],
                    "conversation_b": [*differ, user(q), assistant(f"y{i}")],
                    "turn": 1 + len(before) // 2,
                    "anony": True,
                    "language": "English",
                    "tstamp": 1682351591.1,
                    **more,
                }
            )
    return rows


ARENA_LABELS = {"model_a": -1.0, "model_b": 1.0}


def of_arena(rows: Rows) -> Answers:
    kept = [row for row in rows if row["turn"] == 1]  # the others' conversations differ before the last answer
    return two(
        kept,
        lambda row: row["conversation_a"][-2]["content"],
        lambda row: (row["conversation_a"][-1]["content"], row["conversation_b"][-1]["content"]),
        lambda row: ARENA_LABELS.get(row["winner"], 0.0),
        lambda row: row["judge"],
    )


def parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, "image": None, "mimeType": None}]


ARENA_PARTS = [
    {
        "id": f"{i}",
        "model_a": "m",
        "model_b": "n",
        "winner": ("model_a", "model_b", "tie", "both_bad")[i % 4],
        "evaluation_session_id": f"s{i}",
        "evaluation_order": 1,
        "conversation_a": [{"role": "user", "content": parts(q)}, {"role": "assistant", "content": parts(f"x{i}")}],
        "conversation_b": [{"role": "user", "content": parts(q)}, {"role": "assistant", "content": parts(f"y{i}")}],
        "is_code": False,
    }
    for i, q in enumerate(PROMPTS)
]
LMSYS = [
    {
        "id": i,
        "model_a": "m",
        "model_b": "n",
        "prompt": json.dumps([q]),
        "response_a": json.dumps([f"x{i}"]),
        "response_b": json.dumps([f"y{i}"]),
        "winner_model_a": int(i % 3 == 0),
        "winner_model_b": int(i % 3 == 1),
        "winner_tie": int(i % 3 == 2),
    }
    for i, q in enumerate(PROMPTS)
]
SHP = [
    {
        "post_id": f"p{i}",
        "domain": "askculinary_train",
        "history": q,
        "human_ref_A": f"x{i}",
        "human_ref_B": f"y{i}",
        "labels": i % 2,
        "score_A": 10 * (i % 2) + 3,
        "score_B": 8,
        "seconds_difference": 20.0,
        "score_ratio": 2.0,
    }
    for i, q in enumerate(PROMPTS)
]
WEBGPT = [
    {
        "question": {"dataset": "eli5", "id": f"{i}", "full_text": q},
        "quotes_0": {"title": ["t"], "extract": ["e"]},
        "answer_0": f"x{i}",
        "score_0": (i % 5 - 2) / 2,
        "quotes_1": {"title": ["t"], "extract": ["e"]},
        "answer_1": f"y{i}",
        "score_1": -(i % 5 - 2) / 2,
    }
    for i, q in enumerate(PROMPTS)
]
SAFE = [
    {
        "prompt": q,
        "response_0": f"x{i}",
        "response_1": f"y{i}",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": i % 2,
        "safer_response_id": (i // 2) % 2,
    }
    for i, q in enumerate(PROMPTS)
]
TLDR = [
    {
        "info": {"id": f"t3_{i}", "post": q, "title": "T", "subreddit": "tifu", "site": None, "article": None},
        "split": "train",
        "summaries": [
            {"text": f" x{i}", "policy": "sup1", "note": None},
            {"text": f" y{i}", "policy": "ref", "note": None},
        ],
        "choice": RNG.randint(0, 1),
        "worker": who,
        "batch": "batch3",
        "extra": {"confidence": None},
    }
    for i, q in enumerate(PROMPTS)
    for who in ("w1", "w2", "w3")
]

# K answers


def scored(row: Any, number: int, prompt: str, who: str, answers: list[tuple[str, float | None]]) -> Answers:
    return [(number, prompt, who, text, score) for text, score in answers]


def each(read: Callable[[Any], tuple[str, str, list[tuple[str, float | None]]]]) -> Callable[[Rows], Answers]:
    """`read`: the prompt, annotator and scored answers of a row."""

    def of(rows: Rows) -> Answers:
        return [
            (number, prompt, who, text, score)
            for number, (prompt, who, answers) in enumerate(map(read, rows))
            for text, score in answers
        ]

    return of


ULTRAFEEDBACK = [
    {
        "source": "sharegpt",
        "instruction": q,
        "models": ["a", "b", "c", "d"],
        "completions": [
            {
                "annotations": {"helpfulness": {"Rating": "4", "Rationale": "..."}},
                "custom_system_prompt": "...",
                "model": model,
                "principle": "helpfulness",
                "response": f"{model} {i}",
                "critique": "...",
                "fine-grained_score": 4.5,
                "overall_score": RNG.choice([5.0, 6.5, 8.0]),
            }
            for model in "abcd"
        ],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }
    for i, q in enumerate(PROMPTS)
]
NECTAR = [
    {
        "prompt": f"\n\nHuman: {q}\n\nAssistant: ",
        "answers": [
            {"answer": f"a{i} {rank}", "model": f"m{rank}", "rank": float(rank)}
            for rank in RNG.sample(range(1, 8), 7)
        ],
        "turns": 1,
        "num_responses": 7,
        "source": ["sharegpt"],
        "good_natured": True,
    }
    for i, q in enumerate(PROMPTS)
]
HELPSTEER2 = [
    {"prompt": q, "response": f"{text}{i}", "helpfulness": RNG.randint(0, 4), "correctness": 4, "coherence": 4,
     "complexity": 1, "verbosity": 2}
    for i, q in enumerate(PROMPTS)
    for text in "xy"
]  # fmt: skip


def grouped(prompt: str, answer: str, score: str, who: str = "") -> Callable[[Rows], Answers]:
    """Of a table with an answer per row."""

    def of(rows: Rows) -> Answers:
        names = [row[who] if who else "unknown" for row in rows]
        return [
            ((row[prompt], name), row[prompt], name, row[answer], float(row[score]))
            for row, name in zip(rows, names, strict=True)
        ]

    return of


OASST = [
    {
        "message_tree_id": f"{i}",
        "tree_state": "ready_for_export",
        "prompt": {
            "message_id": f"{i}", "text": q, "role": "prompter", "lang": "en", "rank": None, "deleted": False,
            "replies": [
                {"message_id": f"{i}{rank}", "text": f"r{i}{rank}", "role": "assistant", "lang": "en", "rank": rank,
                 "deleted": False, "replies": []}
                for rank in RNG.sample(range(3), 3)
            ],
        },
    }
    for i, q in enumerate(PROMPTS)
]  # fmt: skip


def options() -> list[str]:
    return RNG.sample(["response1", "response2", "response3"], 3)


def fields(i: int, q: str) -> dict[str, str]:
    return {"instruction": q, **{f"response{k}": f"a{i}{k}" for k in (1, 2, 3)}}


ARGILLA_2 = [
    fields(i, q)
    | {
        "id": f"{i}",
        "_server_id": f"s{i}",
        "status": "completed",
        "ranking.responses": [options(), options()],
        "ranking.responses.users": ["u1", "u2"],
        "ranking.responses.status": ["submitted", "submitted"],
    }
    for i, q in enumerate(PROMPTS)
]
ARGILLA_1 = [
    fields(i, q)
    | {
        "ranking": [
            {"user_id": who, "status": "submitted",
             "value": [{"value": name, "rank": rank} for rank, name in enumerate(options(), 1)]}
            for who in ("u1", "u2")
        ],
        "metadata": "{}",
    }
    for i, q in enumerate(PROMPTS)
]  # fmt: skip


def of_argilla_2(rows: Rows) -> Answers:
    return [
        ((number, who), row["instruction"], who, row[name], -place)
        for number, row in enumerate(rows)
        for who, order in zip(row["ranking.responses.users"], row["ranking.responses"], strict=True)
        for place, name in enumerate(order)
    ]


def of_argilla_1(rows: Rows) -> Answers:
    return [
        ((number, entry["user_id"]), row["instruction"], entry["user_id"], row[item["value"]], -item["rank"])
        for number, row in enumerate(rows)
        for entry in row["ranking"]
        for item in entry["value"]
    ]


LABEL_STUDIO = [
    {
        "id": i,
        "data": {"prompt": q, "answer1": f"x{i}", "answer2": f"y{i}"},
        "annotations": [
            {"completed_by": who, "lead_time": 3.5, "result": [
                {"from_name": "pw", "to_name": "a,b", "type": "pairwise",
                 "value": {"selected": RNG.choice(["left", "right"])}}]}
            for who in (1, 2)
        ],
    }
    for i, q in enumerate(PROMPTS)
]  # fmt: skip
RANKER = [
    {
        "id": i,
        "data": {"prompt": q, "items": [{"id": f"l{k}", "title": f"LLM {k}", "body": f"a{i}{k}"} for k in range(4)]},
        "annotations": [
            {"completed_by": who, "result": [
                {"from_name": "rank", "to_name": "list", "type": "ranker",
                 "value": {"ranker": {"rank": RNG.sample([f"l{k}" for k in range(4)], 4)}}}]}
            for who in (1, 2)
        ],
    }
    for i, q in enumerate(PROMPTS)
]  # fmt: skip


def of_label_studio(rows: Rows) -> Answers:
    return [
        ((row["id"], made["completed_by"]), row["data"]["prompt"], str(made["completed_by"]), row["data"][name],
         float(made["result"][0]["value"]["selected"] == side))
        for row in rows
        for made in row["annotations"]
        for name, side in (("answer1", "left"), ("answer2", "right"))
    ]  # fmt: skip


def of_ranker(rows: Rows) -> Answers:
    return [
        ((row["id"], made["completed_by"]), row["data"]["prompt"], str(made["completed_by"]), item["body"],
         -made["result"][0]["value"]["ranker"]["rank"].index(item["id"]))
        for row in rows
        for made in row["annotations"]
        for item in row["data"]["items"]
    ]  # fmt: skip


# Potato: an annotation per row, and the items in the file that the project was set up with

ITEMS = [{"id": f"i{i}", "question": q, "responses": [f"x{i} text", f"y{i} text"]} for i, q in enumerate(PROMPTS)]
POTATO = [
    {"instance_id": item["id"], "user_id": who, "better.selection": RNG.choice(["A", "B", "tie"])}
    for item in ITEMS
    for who in ("ann1", "ann2")
]
POTATO_SCALE = [
    {"instance_id": item["id"], "user_id": who, "preference.scale_value": str(RNG.randint(-3, 3))}
    for item in ITEMS
    for who in ("ann1", "ann2")
]
POTATO_JSONL = [
    {"instance_id": row["instance_id"], "user_id": row["user_id"], "labels": {"better": {"selection": row["better.selection"]}},
     "spans": {}, "links": {}}
    for row in POTATO
]  # fmt: skip
FOUR = [{"id": f"i{i}", "question": q, "drafts": [f"{t}{i} text" for t in "wxyz"]} for i, q in enumerate(PROMPTS)]
POTATO_RANKS = [
    {"instance_id": item["id"], "user_id": who, "quality.rank_order": RNG.choice([",", "=", ","]).join(RNG.sample("ABCD", 4))}
    for item in FOUR
    for who in ("ann1", "ann2")
]  # fmt: skip
POTATO_BWS = [
    {"instance_id": item["id"], "user_id": who, "bws.best": best, "bws.worst": worst}
    for item in FOUR
    for who in ("ann1", "ann2")
    for best, worst in [RNG.sample("ABCD", 2)]
]


def of_items(rows: Rows, items: Rows, texts: str, score: Callable[[Any, int], float]) -> Answers:
    by_id = {item["id"]: item for item in items}
    return [
        (number, by_id[row["instance_id"]]["question"], row["user_id"], text, score(row, place))
        for number, row in enumerate(rows)
        for place, text in enumerate(by_id[row["instance_id"]][texts])
    ]


def of_order(row: Any, place: int) -> float:
    levels = [level.split("=") for level in row["quality.rank_order"].split(",")]
    return -next(float(number) for number, level in enumerate(levels) if "ABCD"[place] in level)


def of_best_worst(row: Any, place: int) -> float:
    letter = "ABCD"[place]
    return float(letter == row["bws.best"]) - float(letter == row["bws.worst"])


# Generic shapes

SYSTEMS = [
    {"prompt": q, "outputs": {"gpt": f"x{i}", "llama": f"y{i}", "mpt": f"z{i}"},
     "scores": {"llama": RNG.randint(0, 4), "gpt": RNG.randint(0, 4), "mpt": RNG.randint(0, 4)}}
    for i, q in enumerate(PROMPTS)
]  # fmt: skip
SYSTEMS = [row | {"scores": {name: row["scores"][name] for name in row["outputs"]}} for row in SYSTEMS]
VOTES = [
    {"item": f"i{i}", "system": system, "worker": who, "rating": RNG.randint(1, 5)}
    for i in range(12)
    for system in "ABC"
    for who in ("w1", "w2")
]
TEXTS = [
    {"item": f"i{i}", "system": system, "source": q, "text": f"{system} says {i}"}
    for i, q in enumerate(PROMPTS)
    for system in "ABC"
]


def of_votes(rows: Rows) -> Answers:
    texts = {(row["item"], row["system"]): row for row in TEXTS}
    answers: Answers = []
    for row in rows:
        text = texts[row["item"], row["system"]]
        answers.append(
            ((row["item"], row["worker"]), text["source"], row["worker"], text["text"], float(row["rating"]))
        )
    return answers


LIKERT = [
    {"prompt": q, "answer_a": f"x{i}", "answer_b": f"y{i}", "answer_c": f"z{i}", "annotator": who,
     **{f"rating_{letter}": RNG.choice(["bad", "fair", "good"]) for letter in "abc"}}
    for i, q in enumerate(PROMPTS)
    for who in ("w1", "w2")
]  # fmt: skip
MAXDIFF = [
    {"prompt": q, **{f"item{k}": f"t{i}{k}" for k in range(1, 5)}, "best": f"item{best}", "worst": f"item{worst}",
     "annotator": who}
    for i, q in enumerate(PROMPTS)
    for who in ("w1", "w2")
    for best, worst in [RNG.sample(range(1, 5), 2)]
]  # fmt: skip
REVIEWS = [
    {"prompt": q, "a": f"x{i}", "b": f"y{i}",
     "reviews": [{"by": who, "a": RNG.randint(0, 9), "b": RNG.randint(0, 9)} for who in ("ana", "ben", "eve")]}
    for i, q in enumerate(PROMPTS)
]  # fmt: skip
NESTED = [
    {"task": {"question": q}, "rater": {"name": who},
     "candidates": [{"output": {"text": f"{t}{i}"}, "eval": {"score": RNG.randint(0, 4)}} for t in "xyz"]}
    for i, q in enumerate(PROMPTS)
    for who in ("ana", "ben")
]  # fmt: skip
LETTERS = {"bad": 1.0, "fair": 2.0, "good": 3.0}

EXPORTS = [
    Export("HH-RLHF", HH, "{format: pairs}", of_pairs(lambda row: row["chosen"].split("Human: ")[2].split("\n")[0])),
    Export("rm-static", RM_STATIC, "{format: pairs}",
           lambda rows: pair(rows, lambda row: row["prompt"].split("Human: ")[2].split("\n")[0],
                             lambda row: row["chosen"].strip(), lambda row: row["rejected"].strip())),
    Export("LLaMA-Factory sharegpt", SHAREGPT, "{format: pairs, columns: {prompt: conversations}}",
           of_pairs(lambda row: row["conversations"][-1]["value"])),
    Export("LLaMA-Factory alpaca", ALPACA, '{format: pairs, columns: {prompt: "{instruction}\\n{input}"}}',
           of_pairs(lambda row: "\n".join(filter(None, (row["instruction"], row["input"]))))),
    *(Export(name, rows, recipe, answers) for name, (rows, answers, recipe) in TRL.items()),
    Export("HelpSteer2 preference", STRENGTH,
           "{format: wide, columns: {completions: [response_1, response_2], preference: preference_strength}}",
           lambda rows: two(rows, lambda row: row["prompt"], lambda row: (row["response_1"], row["response_2"]),
                            lambda row: row["preference_strength"])),
    Export("HelpSteer3", HELPSTEER3,
           "{format: wide, columns: {prompt: context, completions: [response1, response2], preference: overall_preference}}",
           lambda rows: two(rows, lambda row: row["context"][-1]["content"],
                            lambda row: (row["response1"], row["response2"]), lambda row: row["overall_preference"])),
    Export("Chatbot Arena", arena(["model_a", "model_b", "tie", "tie (bothbad)"]),
           "{format: wide, columns: {completions: [conversation_a, conversation_b], models: [model_a, model_b], "
           "preference: winner, annotator: judge}}", of_arena),
    Export("Chatbot Arena with parts", ARENA_PARTS,
           "{format: wide, columns: {completions: [conversation_a, conversation_b], models: [model_a, model_b], "
           "preference: winner}}",
           lambda rows: two(rows, lambda row: row["conversation_a"][0]["content"][0]["text"],
                            lambda row: (row["conversation_a"][1]["content"][0]["text"],
                                         row["conversation_b"][1]["content"][0]["text"]),
                            lambda row: ARENA_LABELS.get(row["winner"], 0.0))),
    Export("LMSYS on Kaggle", LMSYS,
           "{format: wide, text_lists: unwrap, columns: {completions: [response_a, response_b], "
           "ratings: [winner_model_a, winner_model_b], models: [model_a, model_b]}}",
           lambda rows: two(rows, lambda row: json.loads(row["prompt"])[0],
                            lambda row: (json.loads(row["response_a"])[0], json.loads(row["response_b"])[0]),
                            lambda row: row["winner_model_b"] - row["winner_model_a"]), ".csv"),
    Export("SHP", SHP,
           "{format: wide, labels: {1: first, 0: second}, columns: {prompt: history, "
           "completions: [human_ref_A, human_ref_B], preference: labels}}",
           lambda rows: two(rows, lambda row: row["history"], lambda row: (row["human_ref_A"], row["human_ref_B"]),
                            lambda row: 1 - 2 * row["labels"])),
    Export("WebGPT", WEBGPT,
           "{format: wide, columns: {prompt: question.full_text, completions: [answer_0, answer_1], "
           "ratings: [score_0, score_1]}}",
           lambda rows: two(rows, lambda row: row["question"]["full_text"],
                            lambda row: (row["answer_0"], row["answer_1"]), lambda row: row["score_1"])),
    Export("PKU-SafeRLHF", SAFE,
           "{format: wide, labels: {0: first, 1: second}, columns: {completions: [response_0, response_1], "
           "preference: better_response_id}}",
           lambda rows: two(rows, lambda row: row["prompt"], lambda row: (row["response_0"], row["response_1"]),
                            lambda row: 2 * row["better_response_id"] - 1)),
    Export("TL;DR comparisons", TLDR,
           '{format: choice, columns: {prompt: "SUBREDDIT: r/{info.subreddit}\\n\\nTITLE: {info.title}\\n\\nPOST: '
           '{info.post}\\n\\nTL;DR:", completions: summaries, model: policy, annotator: worker}}',
           lambda rows: two(rows, lambda row: f"SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: {row['info']['post']}\n\nTL;DR:",
                            lambda row: (row["summaries"][0]["text"], row["summaries"][1]["text"]),
                            lambda row: 2 * row["choice"] - 1, lambda row: row["worker"])),
    Export("UltraFeedback", ULTRAFEEDBACK,
           "{format: scored, human: false, columns: {prompt: instruction, text: response, score: overall_score}}",
           each(lambda row: (row["instruction"], "unknown",
                             [(c["response"], c["overall_score"]) for c in row["completions"]]))),
    Export("Nectar", NECTAR,
           "{format: scored, human: false, columns: {completions: answers, text: answer, rank: rank, model: model}}",
           each(lambda row: (row["prompt"].split(": ")[1].split("\n")[0], "unknown",
                             [(a["answer"], -a["rank"]) for a in row["answers"]]))),
    Export("HelpSteer2", HELPSTEER2, "{format: long, columns: {completion: response, rating: helpfulness}}",
           grouped("prompt", "response", "helpfulness")),
    Export("OASST", OASST, "{format: tree}",
           each(lambda row: (row["prompt"]["text"], "unknown",
                             [(reply["text"], -reply["rank"]) for reply in row["prompt"]["replies"]]))),
    Export("Argilla 2", ARGILLA_2,
           "{format: argilla, columns: {prompt: instruction, completions: [response1, response2, response3]}}",
           of_argilla_2),
    Export("Argilla 1", ARGILLA_1,
           "{format: argilla, columns: {prompt: instruction, completions: [response1, response2, response3]}}",
           of_argilla_1),
    Export("Label Studio", LABEL_STUDIO, "{format: label_studio, columns: {completions: [answer1, answer2]}}",
           of_label_studio),
    Export("Label Studio, Ranker", RANKER,
           "{format: label_studio, columns: {completions: items, text: body, model: title}}", of_ranker),
    Export("Potato", POTATO,
           "{format: wide, columns: {prompt: question, completions: responses, preference: better.selection, "
           "annotator: user_id}, join: {path: FOLDER/items.jsonl, on: {instance_id: id}}}",
           lambda rows: of_items(rows, ITEMS, "responses",
                                 lambda row, place: float(row["better.selection"] == "AB"[place])),
           ".csv", {"items.jsonl": ITEMS}),
    Export("Potato, scale", POTATO_SCALE,
           "{format: wide, columns: {prompt: question, completions: responses, preference: preference.scale_value, "
           "annotator: user_id}, join: {path: FOLDER/items.jsonl, on: {instance_id: id}}}",
           lambda rows: of_items(rows, ITEMS, "responses",
                                 lambda row, place: (2 * place - 1) * float(row["preference.scale_value"])),
           ".csv", {"items.jsonl": ITEMS}),
    Export("Potato, JSONL", POTATO_JSONL,
           "{format: wide, columns: {prompt: question, completions: responses, preference: labels.better.selection, "
           "annotator: user_id}, join: {path: FOLDER/items.jsonl, on: {instance_id: id}}}",
           lambda rows: of_items(rows, ITEMS, "responses",
                                 lambda row, place: float(row["labels"]["better"]["selection"] == "AB"[place])),
           beside={"items.jsonl": ITEMS}),
    Export("Potato, ranking", POTATO_RANKS,
           "{format: wide, columns: {prompt: question, completions: drafts, order: quality.rank_order, "
           "annotator: user_id}, join: {path: FOLDER/items.jsonl, on: {instance_id: id}}}",
           lambda rows: of_items(rows, FOUR, "drafts", of_order), ".csv", {"items.jsonl": FOUR}),
    Export("Potato, best and worst", POTATO_BWS,
           "{format: wide, columns: {prompt: question, completions: drafts, best: bws.best, worst: bws.worst, "
           "annotator: user_id}, join: {path: FOLDER/items.jsonl, on: {instance_id: id}}}",
           lambda rows: of_items(rows, FOUR, "drafts", of_best_worst), ".csv", {"items.jsonl": FOUR}),
    Export("objects by system", SYSTEMS, '{format: wide, columns: {completions: "outputs.*", ratings: "scores.*"}}',
           each(lambda row: (row["prompt"], "unknown",
                             [(text, row["scores"][name]) for name, text in row["outputs"].items()]))),
    Export("votes and texts", VOTES,
           "{format: long, columns: {prompt: source, completion: text, rating: rating, model: system, "
           "annotator: worker}, join: {path: FOLDER/texts.jsonl, on: [item, system]}}",
           of_votes, ".csv", {"texts.jsonl": TEXTS}),
    Export("Likert per answer", LIKERT,
           "{format: wide, scale: [bad, fair, good], columns: {completions: [answer_a, answer_b, answer_c], "
           "ratings: [rating_a, rating_b, rating_c]}}",
           each(lambda row: (row["prompt"], row["annotator"],
                             [(row[f"answer_{k}"], LETTERS[row[f"rating_{k}"]]) for k in "abc"])),
           ".csv", asked="scale: [bad, fair, good]"),
    Export("best-worst", MAXDIFF,
           "{format: wide, columns: {completions: [item1, item2, item3, item4], best: best, worst: worst}}",
           each(lambda row: (row["prompt"], row["annotator"],
                             [(row[name], float(name == row["best"]) - float(name == row["worst"]))
                              for name in ("item1", "item2", "item3", "item4")])), ".csv"),
    Export("reviews in a row", REVIEWS,
           '{format: wide, columns: {completions: [a, b], ratings: ["reviews[*].a", "reviews[*].b"], '
           'annotator: "reviews[*].by"}}',
           lambda rows: [((number, review["by"]), row["prompt"], review["by"], row[name], review[name])
                         for number, row in enumerate(rows) for review in row["reviews"] for name in "ab"]),
    Export("paths into cells", NESTED,
           "{format: scored, columns: {prompt: task.question, completions: candidates, text: output.text, "
           "score: eval.score, annotator: rater.name}}",
           each(lambda row: (row["task"]["question"], row["rater"]["name"],
                             [(c["output"]["text"], c["eval"]["score"]) for c in row["candidates"]]))),
]  # fmt: skip
RECIPE = """
name: r
base: {{pretrain: {{corpus: {{task: venues, size: 10}}}}}}
data:
  demonstrations: {{task: venues, size: 10}}
  rankings: {section}
rank: {{source: data}}
"""


def placed(export: Export, folder: Path) -> str:
    """Writes the table and the files beside it; returns its path."""
    for name, rows in export.beside.items():
        written(folder / name, rows)
    written(folder / f"t{export.suffix}", export.rows)
    return str(folder / f"t{export.suffix}")


def by_recipe(export: Export, folder: Path) -> list[Ranking]:
    path = placed(export, folder)
    section = yaml.safe_load(export.recipe.replace("FOLDER", str(folder)).replace(" on:", ' "on":')) | {
        "path": path
    }
    (folder / "recipe.yaml").write_text(RECIPE.format(section=json.dumps(section)))
    table = load_recipe(folder / "recipe.yaml").recipe.data.rankings
    assert isinstance(table, RankingTableConfig)
    return [item for item in parse("data.rankings", table, Dropped()) if isinstance(item, Ranking)]


def compared(answers: Answers) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The answers, and the pairs of answers of each ranking with the sign of their difference."""
    frame = pd.DataFrame(answers, columns=["ranking", "prompt", "annotator", "text", "score"])
    rows = [
        (ranking, group["prompt"].iloc[0], group["annotator"].iloc[0], *sorted((a.text, b.text)),
         (1 if a.text < b.text else -1) * ((a.score > b.score) - (a.score < b.score)))
        for ranking, group in frame.groupby("ranking", sort=False)
        for a, b in combinations(group.itertuples(), 2)
    ]  # fmt: skip
    return frame, pd.DataFrame(rows, columns=["ranking", "prompt", "annotator", "one", "other", "sign"])


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.name)
def test_an_export_is_read_as_pandas_counts_it(export: Export, tmp_path: Path) -> None:
    rankings = by_recipe(export, tmp_path)
    frame, pairs = compared(export.answers(export.rows))
    by_ranking = frame.groupby("ranking")
    assert len(rankings) == by_ranking.ngroups
    assert sorted(len(ranking.completions) for ranking in rankings) == sorted(by_ranking.size())
    counted = [
        (ranking.prompt[-1]["content"], ranking.annotator, *sorted((ranking.completions[i], ranking.completions[j])),
         (1 if ranking.completions[i] < ranking.completions[j] else -1)
         * ((ranking.ranks[i] < ranking.ranks[j]) - (ranking.ranks[i] > ranking.ranks[j])))
        for ranking in rankings
        for i, j in combinations(range(len(ranking.ranks)), 2)
    ]  # fmt: skip
    assert sorted(counted) == sorted(pairs.drop(columns="ranking").itertuples(index=False, name=None))
    both = pairs.merge(pairs, on=["prompt", "one", "other"])
    both = both[(both.annotator_x < both.annotator_y) & (both.sign_x != 0) & (both.sign_y != 0)]
    measured = agreement(rankings).pairwise
    assert measured.pairs == len(both)
    assert measured.value == (pytest.approx((both.sign_x == both.sign_y).mean()) if len(both) else None)


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.name)
def test_inspect_reads_an_export_alike_or_asks(export: Export, tmp_path: Path) -> None:
    path = placed(export, tmp_path)
    guess = any_table(Sample.of(TableConfig(path=path)))
    if export.asked:
        assert [item.line for item in guess.open] == [export.asked]
        return
    assert guess.open == []
    read = list(parse(guess.table, config_of(guess, path), Dropped()))
    assert read == by_recipe(export, tmp_path)


def test_the_annotators_of_helpsteer3(tmp_path: Path) -> None:
    written(tmp_path / "t.jsonl", HELPSTEER3)
    columns: dict[str, Any] = {
        "prompt": "context",
        "completions": ["response1", "response2"],
        "preference": "individual_preference",
    }
    table = RankingTableConfig(path=str(tmp_path / "t.jsonl"), format="wide", columns=columns)
    measured = agreement(
        item for item in parse("data.rankings", table, Dropped()) if isinstance(item, Ranking)
    ).pairwise
    signs = pd.DataFrame([[(entry["score"] > 0) - (entry["score"] < 0) for entry in row["individual_preference"]]
                          for row in HELPSTEER3])  # fmt: skip
    both = [(a, b) for _, row in signs.iterrows() for a, b in combinations(row, 2) if a and b]
    assert (measured.pairs, measured.value) == (
        len(both),
        pytest.approx(pd.Series([a == b for a, b in both]).mean()),
    )
