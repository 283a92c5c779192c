"""Public data sets of human rankings, and the files that trainers take, in their real schemas."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from exports import PROMPTS, RNG, Answers, Export, Rows, assistant, each, grouped, pair, two, user

# Transcripts, chosen and rejected


def hh(*turns: str) -> str:
    speakers = ("Human", "Assistant") * 4
    return "".join(f"\n\n{who}: {text}" for who, text in zip(speakers, turns, strict=False))


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
    {
        "instruction": q,
        "input": "a table" if i % 2 else "",
        "chosen": f"good {i}",
        "rejected": f"bad {i}",
        "system": "Be brief.",
        "history": [["Hi", "Hello."]] if i % 2 else [],
    }
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

DATA_SETS = [
    Export("HH-RLHF", HH, "{format: pairs}",
           of_pairs(lambda row: row["chosen"].split("Human: ")[2].split("\n")[0])),
    Export("rm-static", RM_STATIC, "{format: pairs}",
           lambda rows: pair(rows, lambda row: row["prompt"].split("Human: ")[2].split("\n")[0],
                             lambda row: row["chosen"].strip(), lambda row: row["rejected"].strip())),
    Export("LLaMA-Factory sharegpt", SHAREGPT, "{format: pairs, columns: {prompt: conversations}}",
           of_pairs(lambda row: row["conversations"][-1]["value"])),
    Export("LLaMA-Factory alpaca", ALPACA,
           '{format: pairs, columns: {prompt: "{instruction}\\n{input}", system: system, history: history}}',
           of_pairs(lambda row: "\n".join(filter(None, (row["instruction"], row["input"]))))),
    *(Export(name, rows, recipe, answers) for name, (rows, answers, recipe) in TRL.items()),
    Export("HelpSteer2 preference", STRENGTH,
           "{format: wide, columns: {completions: [response_1, response_2], preference: preference_strength}}",
           lambda rows: two(rows, lambda row: row["prompt"], lambda row: (row["response_1"], row["response_2"]),
                            lambda row: row["preference_strength"])),
    Export("HelpSteer3", HELPSTEER3,
           "{format: wide, columns: {prompt: context, completions: [response1, response2], "
           "preference: overall_preference}}",
           lambda rows: two(rows, lambda row: row["context"][-1]["content"],
                            lambda row: (row["response1"], row["response2"]),
                            lambda row: row["overall_preference"])),
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
           lambda rows: two(rows,
                            lambda row: f"SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: {row['info']['post']}\n\nTL;DR:",
                            lambda row: (row["summaries"][0]["text"], row["summaries"][1]["text"]),
                            lambda row: 2 * row["choice"] - 1, lambda row: row["worker"])),
    Export("UltraFeedback", ULTRAFEEDBACK,
           "{format: scored, human: false, columns: {prompt: instruction, text: response, score: overall_score}}",
           each(lambda row: (row["instruction"], "unknown",
                             [(c["response"], c["overall_score"]) for c in row["completions"]]))),
    Export("Nectar", NECTAR,
           "{format: scored, human: false, columns: {completions: answers, text: answer, rank: rank, "
           "model: model}}",
           each(lambda row: (row["prompt"].split(": ")[1].split("\n")[0], "unknown",
                             [(a["answer"], -a["rank"]) for a in row["answers"]]))),
    Export("HelpSteer2", HELPSTEER2, "{format: long, columns: {completion: response, rating: helpfulness}}",
           grouped("prompt", "response", "helpfulness")),
    Export("OASST", OASST, "{format: tree}",
           each(lambda row: (row["prompt"]["text"], "unknown",
                             [(reply["text"], -reply["rank"]) for reply in row["prompt"]["replies"]]))),
]  # fmt: skip
