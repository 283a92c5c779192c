"""`tutelage init` recognises every format, and leaves open what a table does not say.

Each guess is read by the real reader, so that it is the order of the answers that is compared.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

from data.schema import Ranking
from data.tables.demonstrations import read_demonstrations
from data.tables.guess.families import are_places, families, order_of
from data.tables.guess.guess import Guess
from data.tables.guess.rankings import any_table, rankings
from data.tables.guess.sample import Sample
from data.tables.guess.texts import demonstrations
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.errors import DataError

FORMATS = (ROOT / "docs/rankings/formats.md").read_text(encoding="utf-8")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def written(folder: Path, rows: list[dict[str, Any]], suffix: str = ".jsonl") -> TableConfig:
    path = folder / f"t{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TableConfig(path=str(path))


def guessed(folder: Path, rows: list[dict[str, Any]], suffix: str = ".jsonl") -> tuple[Guess, list[Ranking]]:
    """The guess about a table of rankings, and the rankings that it reads; none if something is open."""
    table = written(folder, rows, suffix)
    guess = rankings(Sample.of(table))
    if guess.open:
        return guess, []
    config = RankingTableConfig(
        path=table.path,
        format=guess.format,
        columns=guess.columns,
        labels=guess.labels,  # type: ignore[arg-type]
        text_lists=guess.text_lists,  # type: ignore[arg-type]
        **guess.values,
    )
    return guess, list(read_rankings(config, Dropped()))


def order(ranking: Ranking) -> list[str]:
    """The answers, best first."""
    return [text for _, text in sorted(zip(ranking.ranks, ranking.completions, strict=True))]


# The examples of the documentation: in each of them answer x is better than answer y.

EXAMPLES = {
    name: FORMATS.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
    for name in ("wide", "long", "pairs", "tree", "scored", "choice")
}


def examples(name: str) -> list[tuple[str, str]]:
    """The suffix and the text of each table in a format's section. Lines of JSON are tables of their own, as the
    section shows alternatives; a tree is spread over lines."""
    tables = []
    for kind, text in re.findall(r"```(csv|json)\n(.*?)```", EXAMPLES[name], re.DOTALL):
        if kind == "csv":
            tables.append((".csv", text))
        else:
            lines = [text.replace("\n", " ")] if name == "tree" else text.splitlines()
            tables += [(".jsonl", f"{line}\n") for line in lines]
    return tables


@pytest.mark.parametrize(
    ("name", "suffix", "text"), [(name, *table) for name in EXAMPLES for table in examples(name)]
)
def test_every_documented_example_is_recognised(name: str, suffix: str, text: str, tmp_path: Path) -> None:
    (tmp_path / f"t{suffix}").write_text(text)
    table = TableConfig(path=str(tmp_path / f"t{suffix}"))
    guess = rankings(Sample.of(table))
    assert guess.format == name
    assert not guess.open
    config = RankingTableConfig(path=table.path, format=name, columns=guess.columns)
    [ranking] = read_rankings(config, Dropped())
    assert order(ranking) == ["x", "y"]


def votes(rows: int = 12, **names: str) -> list[dict[str, Any]]:
    """Rows with four answers, their places, and who ranked. The last answer of every third row is empty."""
    answer, place = names.get("answer", "reply_{}"), names.get("place", "pos_{}")
    table = []
    for i in range(rows):
        places = (
            [(i + shift) % 4 + 1 for shift in range(4)] if i % 3 else [(i + shift) % 3 + 1 for shift in range(3)]
        )
        texts = [f"text {place} of {i}" for place in places]
        row = {"question": f"What is {i // 2}?"}
        row |= {answer.format(k): texts[k - 1] if k <= len(texts) else "" for k in range(1, 5)}
        row |= {place.format(k): str(places[k - 1]) if k <= len(texts) else "" for k in range(1, 5)}
        table.append(row | {"rater": "ana" if i % 2 else "ben"})
    return table


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("reply_{}", "pos_{}"),
        ("Answer{}", "rank{}"),
        ("response {}", "{} place"),
        ("output{}", "order_of_output{}"),
    ],
)
def test_numbered_columns_with_places(suffix: str, answer: str, place: str, tmp_path: Path) -> None:
    guess, read = guessed(tmp_path, votes(answer=answer, place=place), suffix)
    assert guess.columns == {
        "prompt": "question",
        "completions": [answer.format(k) for k in range(1, 5)],
        "ranks": [place.format(k) for k in range(1, 5)],
        "annotator": "rater",
    }
    assert "1 is best" in guess.why["ranks"]
    assert not guess.unused
    assert all(order(ranking) == sorted(ranking.completions) for ranking in read)
    assert {ranking.annotator for ranking in read} == {"ana", "ben"}


def test_lettered_columns_with_ratings(tmp_path: Path) -> None:
    rows = [
        {
            "input": f"Q {i}",
            "answer_a": "x",
            "answer_b": "y",
            "answer_c": "z",
            "score_a": 7,
            "score_b": i % 7,
            "score_c": 2,
        }
        for i in range(8)
    ]
    guess, read = guessed(tmp_path, rows)
    assert guess.columns["ratings"] == ["score_a", "score_b", "score_c"]
    assert "larger is better" in guess.why["ratings"]
    assert order(read[0]) == ["x", "z", "y"]


def test_human_evaluation_of_several_systems(tmp_path: Path) -> None:
    """The columns of the E2E ratings: no name that is known for the prompt, and columns that are not needed."""
    row = {"mr": "name[The Eagle], food[Thai]", "_unit_id": 7, "_worker_id": 31}
    row |= {f"ref{k}": f"The Eagle serves Thai food {k}." for k in range(1, 6)}
    row |= {f"sys{k}": f"s{k}" for k in range(1, 6)} | {f"quality{k}": 90 - 10 * k for k in range(1, 6)}
    row |= {f"check{k}": "ok" for k in range(1, 6)}
    guess, [ranking] = guessed(tmp_path, [row], ".csv")
    assert guess.columns["prompt"] == "mr"
    assert guess.columns["models"] == [f"sys{k}" for k in range(1, 6)]
    assert guess.columns["annotator"] == "_worker_id"
    assert "ratings" in guess.columns
    assert {"_unit_id", "check1"} <= set(guess.unused)
    assert ranking.ranks == [1, 2, 3, 4, 5]


# Public data sets, as docs/rankings/formats.md names their columns.


def test_ultrafeedback(tmp_path: Path) -> None:
    def completion(model: str, score: float) -> dict[str, Any]:
        return {"model": model, "response": f"by {model}", "fine-grained_score": 3.0, "overall_score": score}

    row = {
        "source": "sharegpt",
        "instruction": "What to do in Cairo?",
        "models": ["starchat", "gpt-4"],
        "completions": [completion("starchat", 6.5), completion("gpt-4", 8.0), completion("bard", 6.5)],
    }
    guess, [ranking] = guessed(tmp_path, [row])
    assert guess.format == "scored"
    assert guess.columns["score"] == "overall_score"
    assert (ranking.ranks, ranking.models) == ([2, 1, 2], ["starchat", "gpt-4", "bard"])


def test_ultrafeedback_binarized(tmp_path: Path) -> None:
    row = {
        "prompt": "p",
        "chosen": [user("p"), assistant("x")],
        "rejected": [user("p"), assistant("y")],
        "messages": [user("p"), assistant("x")],
        "score_chosen": 8.0,
        "score_rejected": 5.0,
    }
    guess, [ranking] = guessed(tmp_path, [row])
    assert guess.format == "pairs"
    assert ranking.ratings == [8.0, 5.0]


def test_helpsteer2_leaves_the_attribute_open(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "response": text, "helpfulness": h, "correctness": 4, "coherence": 4}
        for text, h in (("x", 3), ("y", 4))
    ]
    guess, _ = guessed(tmp_path, rows)
    assert guess.format == "long"
    assert [item.line for item in guess.open] == ["rating: helpfulness or correctness or coherence"]


def test_helpsteer2_preferences(tmp_path: Path) -> None:
    rows = [
        {"split": "train", "prompt": f"p {s}", "response_1": "x", "response_2": "y", "preference_strength": s,
         "preference_statement": "x is ..."}
        for s in (-3, 1, 0, 2)
    ]  # fmt: skip
    guess, read = guessed(tmp_path, rows)
    assert guess.columns["preference"] == "preference_strength"
    assert [ranking.ranks for ranking in read] == [[1, 2], [2, 1], [1, 1], [2, 1]]


def test_hh_rlhf(tmp_path: Path) -> None:
    talk = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: More\n\nAssistant: "
    guess, [ranking] = guessed(tmp_path, [{"chosen": talk + "x", "rejected": talk + "y"}])
    assert (guess.format, guess.columns) == ("pairs", {"chosen": "chosen", "rejected": "rejected"})
    assert order(ranking) == ["x", "y"]


def test_llmbar_leaves_its_labels_open(tmp_path: Path) -> None:
    rows = [{"input": f"Q {i}", "output_1": "x", "output_2": "y", "label": 1 + i % 2} for i in range(8)]
    guess, _ = guessed(tmp_path, rows)
    assert guess.columns["preference"] == "label"
    [item] = guess.open
    assert item.line == "labels: {1: first, second or tie, 2: first, second or tie}"
    assert not item.in_columns


def test_lmsys(tmp_path: Path) -> None:
    rows = [
        {"prompt": f'["Q {i}"]', "response_a": '["x"]', "response_b": '["y"]', "winner_model_a": i % 2,
         "winner_model_b": 1 - i % 2, "winner_tie": 0, "model_a": "gpt-4", "model_b": "llama"}
        for i in range(8)
    ]  # fmt: skip
    guess, read = guessed(tmp_path, rows, ".csv")
    assert guess.text_lists == "unwrap"
    assert guess.columns["ratings"] == ["winner_model_a", "winner_model_b"]
    assert guess.columns["models"] == ["model_a", "model_b"]
    assert [order(ranking) for ranking in read[:2]] == [["y", "x"], ["x", "y"]]


def test_summarize_from_feedback_without_a_subreddit(tmp_path: Path) -> None:
    rows = [
        {"info": {"post": "A post", "title": "T"}, "split": "train", "choice": i % 2, "worker": "w1", "batch": "3",
         "summaries": [{"text": " x", "policy": "sup1", "note": None}, {"text": " y", "policy": "ref"}]}
        for i in range(3)
    ]  # fmt: skip
    guess, _ = guessed(tmp_path, rows)
    assert guess.columns["prompt"] == "info.post"
    guess, read = guessed(tmp_path, [row | {"prompt": "Sum up."} for row in rows])
    assert (guess.format, guess.columns["model"], guess.columns["annotator"]) == ("choice", "policy", "worker")
    assert [ranking.ranks for ranking in read] == [[1, 2], [2, 1], [1, 2]]


def test_oasst_trees(tmp_path: Path) -> None:
    replies = [
        {"text": text, "role": "assistant", "rank": rank, "replies": []} for text, rank in (("y", 1), ("x", 0))
    ]
    root = {"text": "Hi", "role": "prompter", "replies": replies}
    row = {"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": root}
    guess, [ranking] = guessed(tmp_path, [row])
    assert guess.format == "tree"
    assert order(ranking) == ["x", "y"]
    read = read_demonstrations(TableConfig(path=str(tmp_path / "t.jsonl")), 0.1, Dropped())
    assert demonstrations(Sample.of(TableConfig(path=str(tmp_path / "t.jsonl")))).columns == {"prompt": "prompt"}
    assert [row.completion for row in read] == ["x"]


def test_native(tmp_path: Path) -> None:
    ranking = Ranking([user("p")], ["y", "x"], [2, 1], "ann", True)
    guess, read = guessed(tmp_path, [vars(ranking)])
    assert (guess.format, guess.columns) == ("native", {})
    assert read == [ranking]


# Labelling tools


FIELDS = {"instruction": "Say hello.", "response1": "y", "response2": "x"}
VALUE = [{"value": "response2", "rank": 1}, {"value": "response1", "rank": 2}]
RECORDS = {
    "flattened": FIELDS | {"id": "1", "ranking.responses": [["response2", "response1"]], "_server_id": "5f",
                           "ranking.responses.users": ["u1"], "ranking.responses.status": ["submitted"]},
    "nested": {"id": "1", "fields": FIELDS, "metadata": {}, "responses": {
        "ranking": [{"value": ["response2", "response1"], "user_id": "u1"}],
        "comment": [{"value": "fine", "user_id": "u1"}]}},
    "Argilla 1": FIELDS | {"ranking": [{"user_id": "u1", "value": VALUE, "status": "submitted"}]},
    "records of Argilla 1": {"fields": FIELDS, "metadata": {}, "responses": [
        {"user_id": "u1", "status": "submitted", "values": {"ranking": {"value": VALUE}, "note": {"value": ""}}}]},
}  # fmt: skip


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_argilla(record: dict[str, Any], tmp_path: Path) -> None:
    guess, [ranking] = guessed(tmp_path, [record])
    assert guess.format == "argilla"
    assert (order(ranking), ranking.annotator) == (["x", "y"], "u1")


def test_argilla_with_other_names_of_options(tmp_path: Path) -> None:
    value = [{"value": "B", "rank": 1}, {"value": "A", "rank": 2}]
    record = {"id": "1", "fields": FIELDS, "responses": {"order": [{"value": value, "user_id": "u1"}]}}
    guess, [ranking] = guessed(tmp_path, [record])
    assert (guess.columns["question"], guess.columns["options"]) == ("order", ["A", "B"])
    assert order(ranking) == ["x", "y"]


def task(value: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    result = {"type": "t", "from_name": "control", "to_name": "control", "value": value}
    note = {"type": "textarea", "from_name": "why", "to_name": "a", "value": {"text": ["because"]}}
    return {"id": 7, "data": data, "annotations": [{"completed_by": 1, "result": [result, note]}]}


PAIR = {"prompt": "Go on: the fox", "answer1": "y", "answer2": "x"}
ITEMS = {
    "prompt": "Why?",
    "items": [{"id": "l1", "title": "LLM 1", "body": "y"}, {"id": 3, "title": "LLM 2", "body": "x"}],
}


@pytest.mark.parametrize(
    "row",
    [
        task({"selected": "right"}, PAIR),
        PAIR | {"id": 7, "annotator": 1, "pw": [{"selected": "right"}], "lead_time": 3.0},
        task({"ranker": {"rank": ["3", "l1"]}}, ITEMS),
        ITEMS | {"id": 7, "annotator": 1, "rank": [{"ranker": {"rank": ["3", "l1"]}}]},
    ],
    ids=["pairwise", "pairwise, JSON_MIN", "ranker", "ranker, JSON_MIN"],
)
def test_label_studio(row: dict[str, Any], tmp_path: Path) -> None:
    guess, [ranking] = guessed(tmp_path, [row])
    assert guess.format == "label_studio"
    assert (order(ranking), ranking.annotator) == (["x", "y"], "1")


def test_the_order_of_buckets_is_left_open(tmp_path: Path) -> None:
    guess, _ = guessed(tmp_path, [task({"ranker": {"good": ["3"], "bad": ["l1"], "_": []}}, ITEMS)])
    assert [item.line for item in guess.open] == ["buckets: [good, bad]"]


# What a table does not say


def numbered(**columns: list[Any]) -> list[dict[str, Any]]:
    """Rows with two answers and further columns by name."""
    length = len(next(iter(columns.values())))
    return [
        {"prompt": f"Q {i}", "answer_1": "x", "answer_2": "y", "answer_3": "z"}
        | {name: values[i] for name, values in columns.items()}
        for i in range(length)
    ]


PLACES = {"_1": [1, 2, 3] * 3, "_2": [2, 3, 1] * 3, "_3": [3, 1, 2] * 3}


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        (numbered(**{f"score{end}": values for end, values in PLACES.items()}), "named like ratings"),
        (numbered(rank_1=[70, 10, 30], rank_2=[90, 20, 10], rank_3=[10, 20, 30]), "named like ranks"),
        (numbered(**{f"zeal{end}": [v - 1 for v in values] for end, values in PLACES.items()}),
         "nothing says whether"),
        (numbered(**{f"{name}{end}": values for end, values in PLACES.items() for name in ("rank", "quality")}),
         "may both order"),
        (numbered(other=[1, 2, 3]), "nothing orders the answers"),
    ],
)  # fmt: skip
def test_what_orders_the_answers_may_be_left_open(rows: list[dict[str, Any]], part: str, tmp_path: Path) -> None:
    guess, _ = guessed(tmp_path, rows)
    [item] = guess.open
    assert part in item.why
    assert not {"ranks", "ratings"} & guess.columns.keys()


def test_two_columns_for_one_role_are_left_open(tmp_path: Path) -> None:
    table = written(tmp_path, [{"question": "Q", "answer": "x", "response": "y"}])
    [item] = demonstrations(Sample.of(table)).open
    assert item.line == "completion: answer or response"


def test_several_unnamed_columns_of_text_are_left_open(tmp_path: Path) -> None:
    table = written(tmp_path, [{"id": 3, "mr": "Q q", "note": "x y", "answer": "x"}])
    [item] = demonstrations(Sample.of(table)).open
    assert item.line == "prompt: mr or note"
    ranked = {"mr": "Q q", "note": "x y", "ref1": "x", "ref2": "y", "rank1": 1, "rank2": 2}
    guess, _ = guessed(tmp_path, [ranked])
    assert [item.line for item in guess.open] == ["prompt: mr or note"]


def test_a_table_without_a_prompt_is_refused_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="looks like the prompt") as caught:
        demonstrations(Sample.of(written(tmp_path, [{"alpha": "Q", "beta": "x", "gamma": 3}])))
    assert "alpha, beta, gamma" in caught.value.hint


def test_a_table_of_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no format of rankings") as caught:
        guessed(tmp_path, [{"alpha": 1, "beta": 2}])
    assert "alpha, beta" in caught.value.hint


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"instruction": "Q", "output": "x"}, {"prompt": "instruction", "completion": "output"}),
        ({"Question": "Q", "Answer": "x"}, {"prompt": "Question", "completion": "Answer"}),
        ({"mr": "Q", "ref": "x"}, {"prompt": "mr", "completion": "ref"}),
        ({"topic": "Q", "answer": "x", "id": 4}, {"prompt": "topic", "completion": "answer"}),
        ({"messages": [user("Q"), assistant("x")], "source": "s"}, {"messages": "messages"}),
        ({"dialog": "Human: Q\n\nAssistant: x"}, {"messages": "dialog"}),
        ({"prompt": [user("Q")], "response": "x"}, {"prompt": "prompt", "completion": "response"}),
    ],
)
def test_columns_of_demonstrations(row: dict[str, Any], columns: dict[str, str], tmp_path: Path) -> None:
    table = written(tmp_path, [row])
    guess = demonstrations(Sample.of(table))
    assert guess.columns == columns
    [read] = read_demonstrations(TableConfig(path=table.path, columns=columns), 0.1, Dropped())
    assert (read.prompt[0]["content"], read.completion) in (("Q", "x"),)


def test_a_second_column_of_the_prompt_is_pointed_out(tmp_path: Path) -> None:
    table = written(tmp_path, [{"instruction": "Translate", "input": "Hund", "output": "dog"}])
    guess = demonstrations(Sample.of(table))
    assert guess.columns["prompt"] == "instruction"
    assert "column input has text in 1 rows" in guess.notes[0]


def test_a_column_of_names_is_only_an_annotator_if_they_repeat(tmp_path: Path) -> None:
    rows = [{"user": f"Question {i}?", "reply_1": "x", "reply_2": "y", "pos_1": 1, "pos_2": 2} for i in range(6)]
    guess, _ = guessed(tmp_path, rows)
    assert guess.columns["prompt"] == "user"
    assert "annotator" not in guess.columns


# The parts


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3], True),
        ([1, 2, 2, 3], True),
        ([1, 2, 2, 4], True),
        ([0, 1], True),
        ([1, 3], False),
        ([2, 3], False),
    ],
)
def test_places(values: list[float], expected: bool) -> None:
    assert are_places(values) is expected


def test_families_start_at_their_first_member() -> None:
    names = ["reply_2", "reply_1", "b", "a", "year_2024", "year_2023", "mix_1", "Answer A", "Answer B"]
    assert [family.columns for family in families(names)] == [
        ["reply_1", "reply_2"],
        ["a", "b"],
        ["Answer A", "Answer B"],
    ]


def test_few_rows_outweigh_no_name() -> None:
    assert order_of(["points"], [[1, 2, 3]], "points")[0] == "ratings"
    assert order_of(["zeal"], [[1, 2, 3]] * 9, "zeal")[0] == "ranks"
    assert order_of(["zeal"], [[1, 2]] * 9, "zeal")[0] is None
    assert order_of(["zeal"], [[4, 7, 7]] * 2, "zeal")[0] == "ratings"


# Names and values that may mean two things


def pair(**cells: Any) -> dict[str, Any]:
    return {"prompt": "What is it?", "answer_a": "It is this one.", "answer_b": "It is that one."} | cells


def choices(guess: Guess) -> list[str]:
    return [line for item in guess.open for line in item.choices]


def test_a_column_that_holds_a_letter_is_asked_about_unless_its_name_tells(tmp_path: Path) -> None:
    """`batch` or `arm` divide the rows; `winner` names the better answer, and so does the question `Q1`."""
    letters = ["A", "B", "A", "B"]
    for column in ("batch", "arm"):
        guess, _ = guessed(tmp_path, [pair(**{column: letter}) for letter in letters])
        assert choices(guess) == [f"preference: {column}"]
    guess, _ = guessed(tmp_path, [pair(wave="b")] * 4)
    assert choices(guess) == ["preference: wave"]
    for column in ("winner", "Q1"):
        guess, read = guessed(tmp_path, [pair(**{column: letter}) for letter in letters])
        assert [ranking.ranks for ranking in read] == [[1, 2], [2, 1], [1, 2], [2, 1]], guess


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ([-1, 0, 1], ["labels: {-1: first, 0: tie, 1: second}", "labels: {-1: second, 0: tie, 1: first}"]),
        ([-2, -1, 0, 1], ["labels: {-2: -2, -1: -1, 0: 0, 1: 1}", "labels: {-2: 2, -1: 1, 0: 0, 1: -1}"]),
    ],
)
def test_the_sign_of_a_preference_is_asked(values: list[int], lines: list[str], tmp_path: Path) -> None:
    guess, _ = guessed(tmp_path, [pair(label=value) for value in values])
    assert guess.columns["preference"] == "label"
    assert choices(guess) == lines


def test_the_sign_of_many_values_is_said(tmp_path: Path) -> None:
    guess, read = guessed(tmp_path, [pair(preference=value) for value in range(-50, 51, 7)])
    assert len(read) == 15
    [note] = guess.notes
    assert "if numbers below 0 prefer the second answer" in note
    guess, _ = guessed(tmp_path, [pair(slider=value) for value in range(-50, 51, 7)])
    assert choices(guess) == ["preference: slider"]


def test_the_best_mark_is_asked(tmp_path: Path) -> None:
    """The best Note is 1 in Germany and 20 in France."""
    rows = [pair(note_a=a, note_b=b) for a, b in ((1, 3), (2, 6), (5, 4))]
    guess, _ = guessed(tmp_path, rows)
    assert choices(guess) == ["ratings: [note_a, note_b]", "ranks: [note_a, note_b]"]
    guess, [ranking, *_] = guessed(tmp_path, [pair(note_a=12, note_b=18)] * 3)
    assert ranking.ranks == [2, 1]


LISTED = {"prompt": "What is it?", "responses": ["This one.", "That one.", "Neither."]}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("ranking", ["order: {}", "ranks: {}"]),
        ("order", []),
        ("ranks", []),
    ],
)
def test_a_list_of_places_may_be_an_order_or_ranks(name: str, lines: list[str], tmp_path: Path) -> None:
    guess, read = guessed(tmp_path, [LISTED | {name: places} for places in ([2, 0, 1], [1, 2, 0])])
    assert choices(guess) == [line.format(name) for line in lines]
    if not lines:
        expected = {"order": ("wide", [2, 3, 1]), "ranks": ("scored", [3, 1, 2])}
        assert (guess.format, read[0].ranks) == expected[name]


def test_a_list_with_ties_is_of_ranks(tmp_path: Path) -> None:
    guess, [ranking, _] = guessed(tmp_path, [LISTED | {"ranking": places} for places in ([1, 2, 2], [2, 3, 1])])
    assert (guess.columns["ranks"], ranking.ranks) == ("ranking", [1, 2, 2])


# Columns that say how they belong together


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("good_answer", "bad_answer"),
        ("response_j", "response_k"),
        ("positive", "negative"),
        ("Winning text", "Losing text"),
    ],
)
def test_names_that_are_opposites_are_pairs(better: str, worse: str, tmp_path: Path) -> None:
    guess, [ranking] = guessed(tmp_path, [{"question": "What is it?", worse: "y it is", better: "x it is"}])
    assert (guess.format, order(ranking)) == ("pairs", ["x it is", "y it is"])


def test_other_letters_are_no_opposites(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        guessed(tmp_path, [{"question": "What is it?", "j": "y it is", "k": "x it is"}])


def test_the_prompt_of_whole_conversations_is_in_them(tmp_path: Path) -> None:
    rows = [
        {
            "original_response": "It was this one.",
            "chosen": [user("What is it?"), assistant("x")],
            "rejected": [user("What is it?"), assistant("y")],
        }
    ]
    guess, [ranking] = guessed(tmp_path, rows)
    assert "prompt" not in guess.columns
    assert (ranking.prompt, order(ranking)) == ([user("What is it?")], ["x", "y"])


SYSTEMS = {"prompt": "What is it?", "gpt": "It is surely this one.", "llama": "It is surely that one.",
           "rules": "It is surely neither one."}  # fmt: skip


@pytest.mark.parametrize(
    ("column", "cells", "ranks"),
    [
        ("best", ["llama", "gpt", "rules"], [[2, 1, 2], [1, 2, 2], [2, 2, 1]]),
        ("order", ["llama > rules = gpt", "gpt > rules > llama"], [[2, 1, 2], [1, 3, 2]]),
    ],
)
def test_a_cell_may_name_the_columns_of_systems(
    column: str, cells: list[str], ranks: list[list[int]], tmp_path: Path
) -> None:
    rows = [SYSTEMS | {column: cell, "comment": "This one is the clearest of them."} for cell in cells]
    guess, read = guessed(tmp_path, rows)
    assert (guess.columns["completions"], guess.unused) == (["gpt", "llama", "rules"], ["comment"])
    assert [ranking.ranks for ranking in read] == ranks


def test_the_winner_of_several_answers_is_the_best(tmp_path: Path) -> None:
    rows = numbered(winner=["answer_2", "answer_1", "answer_3"])
    guess, read = guessed(tmp_path, rows)
    assert guess.columns["best"] == "winner"
    assert [ranking.ranks for ranking in read] == [[2, 1, 2], [1, 2, 2], [2, 2, 1]]


def test_the_worst_of_a_list_is_read_beside_the_best(tmp_path: Path) -> None:
    guess, read = guessed(tmp_path, [LISTED | {"best": 0, "worst": 1}, LISTED | {"best": 1, "worst": 2}])
    assert guess.format == "choice"
    assert [ranking.ranks for ranking in read] == [[1, 3, 2], [2, 1, 3]]


def test_columns_of_answers_may_be_called_after_systems(tmp_path: Path) -> None:
    row = {"src": "Was ist das hier?", "sys1": "What is this thing here?", "sys2": "What is that thing there?",
           "sys1rank": 2, "sys2rank": 1}  # fmt: skip
    guess, [ranking] = guessed(tmp_path, [row])
    assert guess.columns["completions"] == ["sys1", "sys2"]
    assert ranking.ranks == [2, 1]


def test_marked_answers_are_no_demonstrations_without_a_word(tmp_path: Path) -> None:
    """Several answers to a prompt are ranked by their marks; of single answers the bad ones should be left out."""
    rows = [{"prompt": f"Q {n // 2}", "response": f"It is {n}.", "thumbs": ["up", "down"][n % 2]} for n in range(8)]
    guess = any_table(Sample.of(written(tmp_path, rows)))
    assert (guess.format, guess.columns["rating"]) == ("long", "thumbs")
    assert [item.line for item in guess.open] == ["scale: [down, up]"]
    guess = any_table(Sample.of(written(tmp_path, [row | {"prompt": f"Q {n}"} for n, row in enumerate(rows)])))
    assert guess.table == "data.demonstrations"
    [note] = guess.notes
    assert "column thumbs has the values down, up" in note
