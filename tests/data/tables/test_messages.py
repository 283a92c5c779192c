import json

import pytest

from data.tables.messages import LeftOut, as_completion, as_messages, as_prompt, turns, with_system
from pipeline.errors import DataError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "be kind"}


def test_text_is_a_single_user_turn():
    assert as_prompt("hi", "prompt", "t:1") == [USER]


@pytest.mark.parametrize("empty", [None, "", "  ", [], [{"role": "user", "content": ""}]])
def test_empty_prompts_have_no_messages(empty):
    assert as_prompt(empty, "prompt", "t:1") == []


def test_conversations_keep_only_roles_and_contents():
    assert as_prompt([SYSTEM, {**USER, "id": 3}], "prompt", "t:1") == [SYSTEM, USER]
    assert as_messages([{"role": "prompter", "content": "hi"}], "prompt", "t:1") == [USER]
    assert as_messages(USER, "prompt", "t:1") == [USER]


def test_sharegpt_messages_are_read():
    talk = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    read = [{"role": role, "content": text} for role, text in (("system", "s"), ("user", "q"), ("assistant", "a"))]
    columns = {name: [message[name] for message in talk] for name in ("from", "value")}
    for value in (talk, columns, json.dumps(talk), repr(talk)):
        assert turns(value, "prompt", "t:1", "user") == read
    for value in (talk[2], json.dumps(talk[2]), repr(talk[2])):
        assert turns(value, "answer", "t:1", "assistant") == read[2:]
    with pytest.raises(LeftOut, match="a tool"):
        turns([*talk[:2], {"from": "function_call", "value": "{}"}], "prompt", "t:1", "user")
    timetable = '[{"from": "Berlin", "value": 3}]'  # an answer in JSON
    assert turns(timetable, "answer", "t:1", "assistant") == [{"role": "assistant", "content": timetable}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([USER, ASSISTANT], "turn of the assistant"),
        ([{"role": "robot", "content": "x"}], "not a message"),
        ([{"role": "user"}], "not a message"),
        (["hi"], "not a message"),
        ([{"role": "user", "content": 3}], "must be text"),
        ({"text": "x"}, "must be text or a list of messages"),
        (3, "must be text or a list of messages"),
    ],
)
def test_malformed_prompts_are_refused(value, message):
    with pytest.raises(DataError, match=message) as caught:
        as_prompt(value, "column 'prompt'", "t:1")
    assert caught.value.where == "t:1"


def test_completions_are_read():
    assert as_completion("x", "c", "t:1") == ([], "x")
    assert as_completion(None, "c", "t:1") == ([], "")
    assert as_completion([ASSISTANT], "c", "t:1") == ([], "hello")
    assert as_completion([USER, ASSISTANT], "c", "t:1") == ([USER], "hello")
    with pytest.raises(DataError, match="turn of the user"):
        as_completion([ASSISTANT, USER], "c", "t:1")


def test_the_system_message_is_added_unless_there_is_one():
    assert with_system([USER], "be kind") == [SYSTEM, USER]
    assert with_system([{"role": "system", "content": "own"}, USER], "be kind")[0]["content"] == "own"
    assert with_system([USER], None) == [USER]
