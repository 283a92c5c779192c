import pytest

from data.tables.messages import as_completion, as_messages, as_prompt, with_system
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


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([USER, ASSISTANT], "turn of the assistant"),
        ([{"role": "robot", "content": "x"}], "not a message"),
        ([{"role": "user"}], "not a message"),
        (["hi"], "not a message"),
        ([{"role": "user", "content": 3}], "must be text"),
        ({"role": "user", "content": "x"}, "must be text or a list of messages"),
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
