"""Conversations in cells: every supported form, in every reader, and cells that contradict each other."""

import json

import pytest
from dropped import rows_by_reason

from data.schema import write_jsonl
from data.tables import corpus
from data.tables.demonstrations import read_demonstrations, read_prompts
from data.tables.messages import LeftOut, as_completion, as_prompt, exchange
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.errors import DataError
from ranking.items import read_sources


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def rankings(tmp_path, rows, format="pairs", dropped=None, lines=None, **values):
    write_jsonl(tmp_path / "t.jsonl", rows)
    config = RankingTableConfig(path=str(tmp_path / "t.jsonl"), format=format, **values)
    say = None if lines is None else lines.append
    return list(read_rankings(config, dropped or Dropped(), say))


def demonstrations(tmp_path, rows, dropped=None, **columns):
    write_jsonl(tmp_path / "d.jsonl", rows)
    config = TableConfig(path=str(tmp_path / "d.jsonl"), columns=columns)
    return [(d.prompt, d.completion) for d in read_demonstrations(config, 0.1, dropped or Dropped())]


def prompts(tmp_path, rows):
    write_jsonl(tmp_path / "p.jsonl", rows)
    return [p.prompt for p in read_prompts(TableConfig(path=str(tmp_path / "p.jsonl")), 0.1, Dropped())]


TURNS = [user("One?"), assistant("Part one."), user("And then?")]
TRANSCRIPTS = {
    "as in HH-RLHF": "\n\nHuman: One?\n\nAssistant: Part one.\n\nHuman: And then?\n\nAssistant:",
    "stripped": "Human: One?\n\nAssistant: Part one.\n\nHuman: And then?\n\nAssistant:",
    "without the cue": "Human: One?\n\nAssistant: Part one.\n\nHuman: And then?",
    "single line ends": "Human: One?\nAssistant: Part one.\nHuman: And then?\nAssistant:",
    "with CR LF": "\r\n\r\nHuman: One?\r\n\r\nAssistant: Part one.\r\n\r\nHuman: And then?\r\n\r\nAssistant: ",
    "without the first speaker": "One?\n\nAssistant: Part one.\n\nHuman: And then?\n\nAssistant:",
}


@pytest.mark.parametrize("text", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_transcripts_are_split_into_turns_in_every_reader(tmp_path, text):
    assert as_prompt(text, "prompt", "t:1") == TURNS
    answers = {"prompt": text, "a": " good", "b": " bad", "ra": 2, "rb": 1}
    tables = {
        "pairs": ([{"prompt": text, "chosen": " good", "rejected": " bad"}], {}),
        "wide": ([answers], {"completions": ["a", "b"], "ratings": ["ra", "rb"]}),
        "long": ([{"prompt": text, "completion": answers[x], "rating": answers[f"r{x}"]} for x in "ab"], {}),
        "scored": ([{"prompt": text, "completions": [" good", " bad"], "ratings": [2, 1]}], {}),
        "choice": ([{"prompt": text, "completions": [" good", " bad"], "choice": 0}], {}),
        "label_studio": ([{**answers, "pw": [{"selected": "left"}]}], {"completions": ["a", "b"]}),
        "argilla": (
            [{**answers, "ranking.responses": [["a", "b"]], "ranking.responses.status": ["submitted"]}],
            {"completions": ["a", "b"]},
        ),
    }
    for format, (rows, columns) in tables.items():
        [ranking] = rankings(tmp_path, rows, format, columns=columns)
        assert (ranking.prompt, ranking.completions, ranking.ranks) == (TURNS, ["good", "bad"], [1, 2]), format
    assert demonstrations(tmp_path, [{"prompt": text, "completion": " good"}]) == [(TURNS, "good")]
    assert prompts(tmp_path, [{"prompt": text}]) == [TURNS]
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": text, "completions": [" good", " bad"]}])
    [source] = read_sources(str(tmp_path / "a.jsonl"))
    assert (source.prompt, source.completions) == (TURNS, ["good", "bad"])


def test_answers_may_be_whole_transcripts(tmp_path):
    for begin in ("\n\n", "", "  "):
        rows = [
            {name: f"{begin}Human: Q{i}\n\nAssistant: {name}" for name in ("chosen", "rejected")} for i in range(3)
        ]
        assert [r.prompt for r in rankings(tmp_path, rows)] == [[user(f"Q{i}")] for i in range(3)]
        with_prompt = [row | {"prompt": f"Q{i}"} for i, row in enumerate(rows)]
        assert {tuple(r.completions) for r in rankings(tmp_path, with_prompt)} == {("chosen", "rejected")}


def test_text_before_a_transcript_is_the_system_message():
    text = "You are a poet.\n\nHuman: Hi\n\nAssistant:"
    assert as_prompt(text, "p", "t:1") == [system("You are a poet."), user("Hi")]


def test_a_system_speaker_comes_first(tmp_path):
    text = "System: You are a poet.\n\nHuman: Hi\n\nAssistant: "
    assert as_prompt(text, "p", "t:1") == [system("You are a poet."), user("Hi")]
    [ranking] = rankings(tmp_path, [{name: text + name for name in ("chosen", "rejected")}])
    assert (ranking.prompt, ranking.completions) == (as_prompt(text, "p", "t:1"), ["chosen", "rejected"])
    alone = "System: a set of parts that work together.\nWhat is it?"
    assert as_prompt(alone, "p", "t:1") == [user(alone)]


def test_text_that_quotes_speakers_is_not_a_transcript():
    quoted = "Sum up this talk:\n\nHuman: Hi\n\nAssistant: Hello, how are you?"
    assert as_prompt(quoted, "p", "t:1") == [user(quoted)]
    play = "Human: the species that asks for plays.\nIt has two legs."
    assert as_completion(play, "c", "t:1") == ([], play)


def test_transcripts_are_counted_and_reported(tmp_path):
    lines = []
    rankings(tmp_path, [{"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": "x", "rejected": "y"}] * 3, lines=lines)
    assert any("3 cells hold a transcript" in line for line in lines)


# lists spelled as text


MESSAGES = [user("Q"), assistant("good")]


@pytest.mark.parametrize("spell", [json.dumps, repr, lambda value: f" {json.dumps(value, indent=1)}\n"])
def test_messages_written_as_text_are_read_in_every_reader(tmp_path, spell):
    lines = []
    row = {"prompt": "Q", "chosen": spell(MESSAGES), "rejected": spell([assistant("bad")])}
    [ranking] = rankings(tmp_path, [row], lines=lines)
    assert (ranking.prompt, ranking.completions) == ([user("Q")], ["good", "bad"])
    assert any("2 cells hold messages spelled as text" in line for line in lines)
    wide = {"a": spell(MESSAGES), "b": spell([user("Q"), assistant("bad")]), "better": "a"}
    [ranking] = rankings(tmp_path, [wide], "wide", columns={"completions": ["a", "b"], "preference": "better"})
    assert (ranking.prompt, ranking.completions, ranking.ranks) == ([user("Q")], ["good", "bad"], [1, 2])
    assert demonstrations(tmp_path, [{"messages": spell(MESSAGES)}]) == [([user("Q")], "good")]
    assert prompts(tmp_path, [{"prompt": spell([user("Q")])}]) == [[user("Q")]]


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'Q'}\n {'role': 'assistant', 'content': 'A'}]",  # NumPy prints no commas
        '[{"role": "user", "content": "Q"}, {"role": "assis',  # cut off
        '[{"content": "Q", "role": "user"} ...]',
    ],
)
def test_unreadable_messages_are_refused_with_the_row(tmp_path, text):
    rows = [{"prompt": "Q", "chosen": "x", "rejected": "y"}, {"prompt": "Q", "chosen": text, "rejected": "y"}]
    with pytest.raises(DataError, match="looks like messages written as text") as caught:
        rankings(tmp_path, rows)
    assert caught.value.where.endswith(":2")


@pytest.mark.parametrize(
    "text", ['["apple", "pear"]', '{"role": "engineer", "content": "x"}', "[]", "[1, 2]", "[x]"]
)
def test_an_answer_may_be_json(tmp_path, text):
    [ranking] = rankings(tmp_path, [{"prompt": "Give me JSON", "chosen": text, "rejected": "no"}])
    assert ranking.completions == [text, "no"]


KAGGLE = {"prompt": '["Q"]', "a": '["x"]', "b": "['y']", "ra": 1, "rb": 0}
WIDE = {"completions": ["a", "b"], "ratings": ["ra", "rb"]}


def test_lists_of_texts_written_as_text_need_a_setting(tmp_path):
    longer = KAGGLE | {"prompt": '["Q", "R"]', "a": '["x", null]', "b": '["y", "z"]'}
    for row in (KAGGLE, KAGGLE | {"prompt": "Q"}):
        with pytest.raises(DataError, match="list of texts written as text") as caught:
            rankings(tmp_path, [row], "wide", columns=WIDE)
        assert "text_lists: unwrap" in caught.value.hint
    dropped = Dropped()
    [ranking] = rankings(tmp_path, [KAGGLE, longer], "wide", dropped, columns=WIDE, text_lists="unwrap")
    assert (ranking.prompt, ranking.completions) == ([user("Q")], ["x", "y"])
    assert rows_by_reason(dropped) == {"several turns in one list": [2]}
    [ranking] = rankings(tmp_path, [KAGGLE], "wide", columns=WIDE, text_lists="text")
    assert ranking.prompt == [user('["Q"]')]
    with pytest.raises(DataError, match="list of texts"):
        prompts(tmp_path, [{"prompt": '["Q"]'}])


def test_adjacent_string_literals_are_not_joined(tmp_path):
    """NumPy prints ['a' 'b'], which Python reads as ['ab']."""
    row = KAGGLE | {"prompt": "['Q' 'R']"}
    [ranking] = rankings(tmp_path, [row | {"a": "x"}], "wide", columns=WIDE, text_lists="unwrap")
    assert ranking.prompt == [user("['Q' 'R']")]


# messages


def test_content_in_parts_is_joined():
    parts = [{"type": "text", "text": "Look "}, {"type": "text", "text": "here"}]
    assert as_prompt([{"role": "user", "content": parts}], "p", "t:1") == [user("Look here")]
    for part in ({"type": "image", "url": "x"}, {"type": "image_url", "text": "x"}, "text"):
        with pytest.raises(LeftOut, match="not text") as caught:
            as_prompt([{"role": "user", "content": [parts[0], part]}], "p", "t:1")
        assert caught.value.reason == "content that is not text"


def test_messages_may_be_lists_of_roles_and_contents():
    """Older versions of `datasets` return this for a sequence of structs."""
    assert as_prompt({"role": ["user"], "content": ["Q"]}, "p", "t:1") == [user("Q")]


CALL = [{"type": "function", "function": {"name": "w", "arguments": "{}"}}]


@pytest.mark.parametrize(
    "middle",
    [
        [{"role": "assistant", "content": None, "tool_calls": CALL}, {"role": "tool", "content": "22"}],
        [{"role": "assistant", "content": "Wait", "tool_calls": CALL}, user("ok?")],
        [{"role": "assistant", "content": "", "function_call": CALL[0]}, {"role": "function", "content": "22"}],
        [assistant("Wait"), {"role": "tool", "content": "22", "name": "w"}],
    ],
)
def test_rows_with_tool_calls_are_dropped_and_counted(tmp_path, middle):
    plain = {name: [user("Q"), assistant(name)] for name in ("chosen", "rejected")}
    tools = {name: [user("Q"), *middle, assistant(name)] for name in ("chosen", "rejected")}
    dropped = Dropped()
    assert len(rankings(tmp_path, [plain, tools], dropped=dropped)) == 1
    assert rows_by_reason(dropped) == {"tool calls or turns": [2]}
    with pytest.raises(DataError, match="1 x tool calls or turns") as caught:
        rankings(tmp_path, [tools])
    assert "into the text of the turns" in caught.value.hint
    dropped = Dropped()
    rows = [{"messages": plain["chosen"]}, {"messages": tools["chosen"]}]
    assert len(demonstrations(tmp_path, rows, dropped)) == 1
    assert dropped.rows_out == {"tool calls or turns": 1}


def test_rows_with_empty_tool_calls_are_kept(tmp_path):
    chosen = [user("Q"), {"role": "assistant", "content": "x", "tool_calls": None, "function_call": {}}]
    assert len(rankings(tmp_path, [{"chosen": chosen, "rejected": [user("Q"), assistant("y")]}])) == 1


def test_conversations_that_end_with_the_user_are_dropped_and_counted(tmp_path):
    complete = {name: [user("Q"), assistant(name)] for name in ("chosen", "rejected")}
    open_ = {name: [*turns, user("thanks")] for name, turns in complete.items()}
    dropped = Dropped()
    assert len(rankings(tmp_path, [complete, open_, complete | {"chosen": open_["chosen"]}], dropped=dropped)) == 1
    assert dropped.rows_out == {"the conversation ends with the user's turn": 2}
    dropped = Dropped()
    rows = [{"messages": turns["chosen"]} for turns in (complete, open_)]
    assert len(demonstrations(tmp_path, rows, dropped)) == 1
    assert dropped.rows_out == {"the conversation ends with the user's turn": 1}


def test_prompts_that_end_with_the_assistant_are_dropped_and_counted(tmp_path):
    dropped = Dropped()
    rows = [{"prompt": [user("Q")], "completion": "x"}, {"prompt": MESSAGES, "completion": "x"}]
    assert len(demonstrations(tmp_path, rows, dropped)) == 1
    assert dropped.rows_out == {"the prompt ends with the assistant's turn": 1}
    with pytest.raises(DataError, match="no prompt is left: 1 x the prompt ends with the assistant's turn"):
        prompts(tmp_path, [{"prompt": MESSAGES}])


@pytest.mark.parametrize(
    "prompt",
    [
        [system("Be short."), user("")],
        [system("Be short."), user("Q"), assistant("A"), user(" \n")],
        [user(""), assistant("A"), user("Q")],
        "Human: \n\nAssistant:",
    ],
)
def test_an_empty_user_turn_is_an_empty_prompt(tmp_path, prompt):
    dropped = Dropped()
    rows = [{"prompt": p, "chosen": "x", "rejected": "y"} for p in ("Q", prompt)]
    assert len(rankings(tmp_path, rows, dropped=dropped)) == 1
    assert rows_by_reason(dropped) == {"empty prompt": [2]}


@pytest.mark.parametrize("role", [None, 3, ["user"], "developer"])
def test_unknown_roles_are_refused(role):
    with pytest.raises(DataError, match="which is not a message") as caught:
        as_prompt([{"role": role, "content": "x"}], "p", "t:1")
    assert "system, user, assistant" in caught.value.hint


@pytest.mark.parametrize("cell", [4, 4.5, True])
def test_numbers_are_refused_with_a_hint(tmp_path, cell):
    with pytest.raises(DataError, match=r"column 'chosen' must be text .*, got") as caught:
        rankings(tmp_path, [{"prompt": "Q", "chosen": cell, "rejected": 5}])
    assert 'in quotes ("4")' in caught.value.hint


# the prompt's cell and the conversation before an answer


Q, A, R = user("Q"), assistant("A"), user("R")


@pytest.mark.parametrize(
    ("prompt", "before", "expected"),
    [
        ("Q", [], [Q]),
        (None, [Q, A, R], [Q, A, R]),
        ("", [Q], [Q]),
        ("Q", [Q], [Q]),
        ("  Q\n", [Q], [Q]),
        ("Q", [Q, A, R], [Q, A, R]),
        ("R", [Q, A, R], [Q, A, R]),
        ([Q, A, R], [Q, A, R], [Q, A, R]),
        ("Q", [A, R], [Q, A, R]),
        ([Q, A], [R], [Q, A, R]),
        ([system("S")], [Q], [system("S"), Q]),
        ([system("S")], [system("S"), Q], [system("S"), Q]),
        ([system("S"), Q], [Q], [system("S"), Q]),
        ("Q", [system("S"), Q], [system("S"), Q]),
        ("caf\u00e9", [user("cafe\u0301")], [user("cafe\u0301")]),
    ],
)
def test_prompt_and_conversation_are_joined(prompt, before, expected):
    answers = [(name, [*before, assistant(name)]) for name in ("x", "y")]
    assert exchange(prompt, answers, "t:1") == (expected, ["x", "y"])


@pytest.mark.parametrize(
    ("prompt", "before"),
    [
        ("other", [Q]),
        ("Q", [R]),
        ([system("S"), Q], [system("T"), Q]),
        ([system("S")], [system("T"), Q]),
        ("A", [Q, A, R]),
        ([Q, A, R], [Q]),
    ],
)
def test_prompt_and_conversation_that_contradict_each_other_are_refused(tmp_path, prompt, before):
    row = {"prompt": prompt} | {name: [*before, assistant(name)] for name in ("chosen", "rejected")}
    with pytest.raises(DataError, match="contradict each other") as caught:
        rankings(tmp_path, [row])
    assert caught.value.where.endswith(":1")
    [ranking] = rankings(tmp_path, [row], columns={"prompt": ""})
    assert ranking.prompt == before
    demonstration = {"prompt": prompt, "messages": row["chosen"]}
    with pytest.raises(DataError, match="contradict each other"):
        demonstrations(tmp_path, [demonstration])
    for columns in ({"prompt": ""}, {"messages": "messages"}):
        assert demonstrations(tmp_path, [demonstration], **columns) == [(before, "chosen")]


def test_messages_and_a_completion_that_differ_are_refused(tmp_path):
    row = {"messages": MESSAGES, "prompt": "Q", "completion": "good"}
    assert demonstrations(tmp_path, [row]) == [([Q], "good")]
    with pytest.raises(DataError, match="hold different answers"):
        demonstrations(tmp_path, [row | {"completion": "bad"}])
    named = demonstrations(tmp_path, [row | {"completion": "bad"}], prompt="prompt", completion="completion")
    assert named == [([Q], "bad")]


def test_only_some_answers_may_repeat_the_conversation(tmp_path):
    [ranking] = rankings(tmp_path, [{"prompt": "Q", "chosen": [Q, assistant("x")], "rejected": "y"}])
    assert (ranking.prompt, ranking.completions) == ([Q], ["x", "y"])
    with pytest.raises(DataError, match="differ before the last answer"):
        rankings(tmp_path, [{"chosen": [Q, assistant("x")], "rejected": "y"}])


def test_a_table_without_prompts_names_the_missing_column(tmp_path):
    with pytest.raises(DataError, match="no column 'prompt'"):
        rankings(tmp_path, [{"chosen": "x", "rejected": "y"}])


def test_native_prompts_are_checked(tmp_path):
    row = {"completions": ["x", "y"], "ranks": [1, 2], "annotator": "a", "human": True}
    good = row | {"prompt": [Q]}
    rows = [good, row | {"prompt": []}, row | {"prompt": [Q, A]}, row | {"prompt": [user("")]}]
    dropped = Dropped()
    assert len(rankings(tmp_path, rows, "native", dropped)) == 1
    assert rows_by_reason(dropped) == {"empty prompt": [2, 4], "the prompt ends with the assistant's turn": [3]}


def test_a_corpus_splits_transcripts_like_other_tables(tmp_path):
    write_jsonl(
        tmp_path / "c.jsonl", [{"prompt": f"Human: Q{i}\n\nAssistant:", "completion": " x"} for i in range(40)]
    )
    write_jsonl(tmp_path / "plain.jsonl", [{"prompt": f"Q{i}", "completion": "x"} for i in range(40)])
    read = [
        list(corpus.documents(TableConfig(path=str(tmp_path / name)), 0, 0.3))
        for name in ("c.jsonl", "plain.jsonl")
    ]
    assert read[0] == read[1]
    assert 0 < len(read[0]) < 40
    write_jsonl(tmp_path / "c.jsonl", [{"prompt": [Q, A, R], "completion": "x"}])
    with pytest.raises(DataError, match="must be a single user turn"):
        list(corpus.documents(TableConfig(path=str(tmp_path / "c.jsonl")), 0, 0.0))
