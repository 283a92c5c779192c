"""Exports of labelling tools, in the formats of Argilla 2.8 and Label Studio's converter (SDK 2.1)."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from dropped import rows_by_reason

from data.tables.columns import ANONYMOUS
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.errors import DataError, RecipeError

FLAT = {
    "id": "1",
    "status": "completed",
    "_server_id": "5f3c",
    "instruction": "Say hello.",
    "response1": "Hello.",
    "response2": "Hi!",
    "response3": "Go away.",
    "model_1": "m1",
    "ranking.responses": [["response2", "response1", "response3"], ["response1", "response2", "response3"]],
    "ranking.responses.users": ["11111111-aaaa", "22222222-bbbb"],
    "ranking.responses.status": ["submitted", "discarded"],
    "ranking.suggestion": ["response1", "response2", "response3"],
    "ranking.suggestion.agent": "some-llm",
    "ranking.suggestion.score": None,
}
NESTED = {
    "id": "1",
    "fields": {name: FLAT[name] for name in ("instruction", "response1", "response2", "response3")},
    "metadata": {"model_1": "m1"},
    "suggestions": {},
    "responses": {
        "ranking": [
            {"value": ["response2", "response1", "response3"], "user_id": "11111111-aaaa"},
            {"value": ["response1", "response2", "response3"], "user_id": "22222222-bbbb"},
        ],
        "comment": [{"value": "fine", "user_id": "11111111-aaaa"}],
    },
    "vectors": {},
    "status": "completed",
    "_server_id": "5f3c",
}
ARGILLA = {"prompt": "instruction", "completions": ["response1", "response2", "response3"]}


def export(tmp_path, format, rows, columns, suffix=".json", human=True):
    path = tmp_path / f"export{suffix}"
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if suffix == ".jsonl" else json.dumps(rows, indent=2))
    return RankingTableConfig(path=str(path), format=format, columns=columns, human=human)


def read(config):
    dropped = Dropped()
    return list(read_rankings(config, dropped)), dropped


def fails(config, *parts, error=DataError):
    with pytest.raises(error) as caught:
        read(config)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_argilla_flattened_records(tmp_path, suffix):
    unranked = FLAT | {"ranking.responses": None, "ranking.responses.users": None, "ranking.responses.status": None}
    [ranking], dropped = read(export(tmp_path, "argilla", [FLAT, unranked], ARGILLA, suffix))
    assert ranking.prompt == [{"role": "user", "content": "Say hello."}]
    assert ranking.completions == ["Hello.", "Hi!", "Go away."]
    assert (ranking.ranks, ranking.annotator, ranking.ratings) == ([2, 1, 3], "11111111-aaaa", None)
    assert set(dropped.counts) == {"discarded response", "no response"}
    assert dropped.read == 2


def test_argilla_datasets(tmp_path):
    """The output of `to_datasets().to_parquet(path)`: the same columns, with Arrow types."""
    rows = [FLAT | {"ranking.responses.status": ["submitted", "submitted"]}] * 3
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    config = RankingTableConfig(path=str(tmp_path / "t.parquet"), format="argilla", columns=ARGILLA)
    rankings, _ = read(config)
    assert [r.ranks for r in rankings] == [[2, 1, 3], [1, 2, 3]] * 3


def test_argilla_nested_records(tmp_path):
    rankings, dropped = read(export(tmp_path, "argilla", [NESTED], ARGILLA))
    assert [(r.annotator, r.ranks) for r in rankings] == [
        ("11111111-aaaa", [2, 1, 3]),
        ("22222222-bbbb", [1, 2, 3]),
    ]
    assert not dropped.counts


def test_argilla_ties_options_and_a_chat_field(tmp_path):
    value = [{"value": "A", "rank": 1}, {"value": "C", "rank": 2}, {"value": "B", "rank": 1}]
    chat = [{"role": "user", "content": "Say hello."}]
    record = NESTED | {
        "fields": NESTED["fields"] | {"instruction": chat},
        "responses": {"order": [{"value": value, "user_id": None}]},
    }
    columns = ARGILLA | {"question": "order", "options": ["A", "B", "C"], "models": ["model_1"] * 3}
    [ranking], _ = read(export(tmp_path, "argilla", [record], columns))
    assert (ranking.prompt, ranking.ranks, ranking.annotator) == (chat, [1, 1, 2], ANONYMOUS)
    assert ranking.models == ["m1", "m1", "m1"]


OPTIONS = ["response1", "response2", "response3"]
RESPONSES = [
    {"user_id": "u1", "value": {"rank": [2, 1, 3], "value": OPTIONS}, "status": "submitted"},
    {"user_id": "u2", "value": {"rank": [1, 1, 2], "value": OPTIONS}, "status": "discarded"},
    {"user_id": None, "value": {"rank": [1, 1, 2], "value": [OPTIONS[2], *OPTIONS[:2]]}, "status": "submitted"},
]
FIELDS = {name: FLAT[name] for name in ("instruction", *OPTIONS)}


def by_place(response):
    value = response["value"]
    pairs = [{"value": name, "rank": rank} for name, rank in zip(value["value"], value["rank"], strict=True)]
    return response | {"value": pairs}


def lists(structs):
    return {name: [struct[name] for struct in structs] for name in structs[0]}


ARGILLA_1 = {
    "as format_as('datasets') writes them": {**FIELDS, "ranking": RESPONSES, "ranking-suggestion": None},
    "with the rank of each option": {**FIELDS, "ranking": [by_place(response) for response in RESPONSES]},
    "as datasets gives a sequence of structs": {**FIELDS, "ranking": lists(RESPONSES)},
    "as structs of lists throughout": {
        **FIELDS,
        "ranking": {**lists(RESPONSES), "value": lists([response["value"] for response in RESPONSES])},
    },
    "as its records are": {
        "fields": FIELDS,
        "metadata": {},
        "responses": [
            {
                "user_id": response["user_id"],
                "status": response["status"],
                "values": {"ranking": {"value": by_place(response)["value"]}, "comment": {"value": "fine"}},
            }
            for response in RESPONSES
        ],
    },
}


@pytest.mark.parametrize("record", ARGILLA_1.values(), ids=ARGILLA_1)
def test_argilla_1_exports_are_read(tmp_path, record):
    unranked = {**FIELDS, "ranking": None}
    rankings, dropped = read(export(tmp_path, "argilla", [record, unranked], ARGILLA))
    assert [(r.annotator, r.ranks) for r in rankings] == [("u1", [2, 1, 3]), (ANONYMOUS, [1, 2, 1])]
    assert rows_by_reason(dropped) == {"discarded response": [1], "no response": [2]}


def test_argilla_1_exports_with_gaps_are_read(tmp_path):
    gap = {"user_id": "u", "value": {"rank": [2, None, 1], "value": OPTIONS}, "status": "submitted"}
    rows = [{**FIELDS, "ranking": [gap]}, {**FIELDS, "ranking": [gap | {"value": None}]}]
    [ranking], dropped = read(export(tmp_path, "argilla", rows, ARGILLA))
    assert (ranking.completions, ranking.ranks) == (["Hello.", "Go away."], [2, 1])
    assert dropped.rows_out == {"response without a ranking": 1}
    assert dropped.completions_out == {"missing rating": 1}


@pytest.mark.parametrize("record", [FLAT, NESTED, *ARGILLA_1.values()])
def test_a_missing_question_is_an_error_that_names_it(tmp_path, record):
    config = export(tmp_path, "argilla", [record], ARGILLA | {"question": "preference"})
    fails(config, "1 x no response", "question: NAME", "ranking")


def test_argilla_exports_that_do_not_fit_are_refused(tmp_path):
    fails(export(tmp_path, "argilla", [FLAT], ARGILLA | {"options": list("ABC")}), "not one of A, B, C")
    fails(
        export(tmp_path, "argilla", [FLAT], ARGILLA | {"completions": ["response1"]}), "1 fields", error=RecipeError
    )
    other = {"prompt": "instruction", "completions": ["response1", "nope"], "options": ["response1", "response2"]}
    fails(export(tmp_path, "argilla", [FLAT], other), "response3")
    text = FLAT | {"ranking.responses": ["response1"], "ranking.responses.status": ["submitted"]}
    fails(export(tmp_path, "argilla", [text], ARGILLA), "must be a list of options")
    fails(export(tmp_path, "argilla", [NESTED | {"responses": "x"}], ARGILLA), "must hold an object here")
    wrong = ARGILLA | {"question": "other"}
    fails(export(tmp_path, "argilla", [FLAT], wrong), "no ranking is left", "1 x no response")


def task(*annotations, **data):
    return {
        "id": 7,
        "data": data,
        "annotations": list(annotations),
        "predictions": [],
        "drafts": [],
        "meta": {},
        "project": 3,
    }


def annotation(value, kind, who=1, name="pw", **more):
    result = {
        "id": "x1",
        "type": kind,
        "from_name": name,
        "to_name": name,
        "origin": "manual",
        "value": value,
    }
    comment = {"id": "x2", "type": "textarea", "from_name": "why", "to_name": "a", "value": {"text": ["because"]}}
    return {
        "id": 11,
        "completed_by": who,
        "result": [result, comment],
        "was_cancelled": False,
        "ground_truth": False,
        "lead_time": 12.5,
        **more,
    }


PAIR = {"prompt": "Go on: the fox", "answer1": "jumps.", "answer2": "sleeps."}
ITEMS = {
    "prompt": "What burned the library?",
    "items": [
        {"id": "llm_1", "title": "LLM 1", "body": "Wars."},
        {"id": "llm_2", "title": "LLM 2", "body": "Neglect."},
        {"id": 3, "title": "LLM 3", "body": "Fire."},
    ],
}
PAIRWISE = {"completions": ["answer1", "answer2"]}
RANKER = {"completions": "items", "model": "title"}


def test_label_studio_pairwise_json(tmp_path):
    mail = {"id": 4, "email": "ann@example.org"}
    tasks = [
        task(
            annotation({"selected": "right"}, "pairwise"),
            annotation({"selected": "left"}, "pairwise", mail),
            **PAIR,
        ),
        task(annotation({"selected": "left"}, "pairwise", was_cancelled=True), **PAIR),
        task(**PAIR),
        task({"id": 1, "completed_by": 1, "result": []}, **PAIR),
    ]
    (first, second), dropped = read(export(tmp_path, "label_studio", tasks, PAIRWISE))
    assert (first.completions, first.ranks, first.annotator) == (["jumps.", "sleeps."], [2, 1], "1")
    assert first.metadata == {"shown": [0, 1], "seconds": 12.5}
    assert (second.ranks, second.annotator) == ([1, 2], "ann@example.org")
    assert rows_by_reason(dropped) == {
        "cancelled annotation": [2],
        "no annotation": [3],
        "no ranking in the annotation": [4],
    }


def test_label_studio_ranker_json(tmp_path):
    value = {"ranker": {"rank": ["llm_2", "3", "llm_1"]}}
    tasks = [task(annotation(value, "ranker", name="rank"), **ITEMS)]
    [ranking], _ = read(export(tmp_path, "label_studio", tasks, RANKER))
    assert (ranking.completions, ranking.ranks) == (["Wars.", "Neglect.", "Fire."], [3, 1, 2])
    assert ranking.models == ["LLM 1", "LLM 2", "LLM 3"]
    assert ranking.metadata["shown"] == [0, 1, 2]


def test_label_studio_buckets_tie_and_drop_answers(tmp_path):
    value = {"ranker": {"bad": ["llm_2"], "good": ["llm_1", "3"], "_": []}}
    items = {**ITEMS, "items": [*ITEMS["items"], {"id": "llm_4", "title": "LLM 4", "body": "Nothing."}]}
    tasks = [task(annotation(value, "ranker", name="rank"), **items)]
    [ranking], dropped = read(export(tmp_path, "label_studio", tasks, RANKER | {"buckets": ["good", "bad"]}))
    assert (ranking.completions, ranking.ranks) == (["Wars.", "Neglect.", "Fire."], [1, 2, 1])
    assert ranking.metadata["shown"] == [0, 1, 2]
    assert dropped.counts == {"missing rating": 1}
    fails(export(tmp_path, "label_studio", tasks, RANKER), "3 buckets: bad, good, _")


def test_label_studio_json_min(tmp_path):
    """`prettify_result` removes the type and writes a list of values under the control's name."""
    rest = {"id": 7, "annotator": 2, "annotation_id": 11, "created_at": "", "updated_at": "", "lead_time": 3.0}
    [pair], _ = read(export(tmp_path, "label_studio", [{**PAIR, "pw": [{"selected": "left"}], **rest}], PAIRWISE))
    assert (pair.ranks, pair.annotator, pair.metadata["seconds"]) == ([1, 2], "2", 3.0)
    row = {**ITEMS, "rank": [{"ranker": {"rank": ["3", "llm_1", "llm_2"]}}], **rest}
    [ranked], _ = read(export(tmp_path, "label_studio", [row], RANKER))
    assert ranked.ranks == [2, 3, 1]


def test_label_studio_with_several_controls(tmp_path):
    both = annotation({"selected": "left"}, "pairwise")
    both["result"].append({**both["result"][0], "from_name": "safer", "value": {"selected": "right"}})
    tasks = [task(both, **PAIR)]
    fails(export(tmp_path, "label_studio", tasks, PAIRWISE), "2 controls: pw, safer")
    [ranking], _ = read(export(tmp_path, "label_studio", tasks, PAIRWISE | {"question": "safer"}))
    assert ranking.ranks == [2, 1]


def test_label_studio_exports_that_do_not_fit_are_refused(tmp_path):
    tasks = [task(annotation({"selected": "up"}, "pairwise"), **PAIR)]
    fails(export(tmp_path, "label_studio", tasks, PAIRWISE), "must select left or right, got 'up'")
    fails(
        export(tmp_path, "label_studio", tasks, {"completions": ["a", "b", "c"]}), "compares 2", error=RecipeError
    )
    tasks = [task(annotation({"ranker": ["llm_1"]}, "ranker", name="rank"), **ITEMS)]
    fails(export(tmp_path, "label_studio", tasks, RANKER), "must be {column: [ids]}")
    tasks = [task(annotation({"ranker": {"rank": ["llm_1"]}}, "ranker", name="rank"), prompt="p", items="llm_1")]
    fails(export(tmp_path, "label_studio", tasks, RANKER), "must be a list of items")
    fails(export(tmp_path, "label_studio", [task("x", **PAIR)], PAIRWISE), "must hold an object here")
