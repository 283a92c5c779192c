"""Exports of annotation tools in their real schemas, and tables of people's own making."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exports import PROMPTS, RNG, Answers, Export, Rows, each


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
        "data": {"prompt": q,
                 "items": [{"id": f"l{k}", "title": f"LLM {k}", "body": f"a{i}{k}"} for k in range(4)]},
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
    {"instance_id": row["instance_id"], "user_id": row["user_id"],
     "labels": {"better": {"selection": row["better.selection"]}}, "spans": {}, "links": {}}
    for row in POTATO
]  # fmt: skip
FOUR = [{"id": f"i{i}", "question": q, "drafts": [f"{t}{i} text" for t in "wxyz"]} for i, q in enumerate(PROMPTS)]
POTATO_RANKS = [
    {"instance_id": item["id"], "user_id": who,
     "quality.rank_order": RNG.choice(["{},{},{},{}", "{},{}={},{}", "{}={},{},{}"]).format(*RNG.sample("ABCD", 4))}
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

TOOLS = [
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
           "{format: wide, columns: {prompt: question, completions: responses, "
           "preference: labels.better.selection, annotator: user_id}, "
           "join: {path: FOLDER/items.jsonl, on: {instance_id: id}}}",
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
