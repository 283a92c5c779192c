"""Conversations in the cells of tables.

A cell holds a conversation as a list of `{"role", "content"}` or `{"from", "value"}` messages, or a single one;
as such a list spelled in JSON or Python; or as a transcript (`Human: ...`, `Assistant: ...`, as in HH-RLHF). Other
text is one turn. `turns` reads each, and `exchange` turns the cells of a row into a prompt and its answers.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from data.schema import Message
from data.tables.sources import as_text
from data.tables.spelling import (
    ANSWER_CUE,
    MESSAGE_KEYS,
    ROLES,
    SPEAKER_FIRST,
    from_transcript,
    is_transcript,
    spelled_messages,
    spelled_texts,
)
from pipeline.errors import DataError

TOOL_ROLES = frozenset(
    {"tool", "function", "ipython", "tool_call", "tool_response", "tool_result", "observation", "function_call"}
)
TOOL_KEYS = ("tool_calls", "function_call")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")

MESSAGES = '[{"role": "user", "content": "..."}, ...]'
TextLists = Literal["refuse", "unwrap", "text"]


class LeftOut(DataError):
    """A row that cannot be used although its table is well formed. Readers of tables leave it out and count it
    under `reason`."""

    def __init__(self, what: str, reason: str, *, where: str, hint: str) -> None:
        super().__init__(what, where=where, hint=hint)
        self.reason = reason


class Forms:
    """Counts the text cells of a table that hold a conversation, by form, to report how they were read."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, values: Iterable[Any]) -> None:
        """Counts the cells of a row."""
        for value in values:
            if is_transcript(value):
                self.counts["a transcript (Human:, Assistant:)"] += 1
            elif isinstance(value, str) and re.match(r"\s*\[?\s*\{", value) and spelled_messages(value, "", ""):
                self.counts["messages spelled as text"] += 1

    def tell(self, path: str, say: Callable[[str], None] | None) -> None:
        """Reports the counts."""
        for name, count in sorted(self.counts.items()):
            if say is not None:
                say(f"{path}: {count:,} cells hold {name}; each is read as a conversation")


# Cells


def turns(value: Any, what: str, where: str, role: Literal["user", "assistant"]) -> list[Message]:
    """The conversation in a cell; other text is one turn of `role`.

    Raises:
        LeftOut: the row cannot be used.
        DataError: the cell is malformed.
    """
    if value is None:
        return []
    if not isinstance(value, str):
        return as_messages(value, what, where)
    text = as_text(value, what, where)
    spelled = spelled_messages(text, what, where)
    if spelled is not None:
        return as_messages(spelled, what, where)
    ends_with_cue = role == "user" and (ANSWER_CUE.search(text) or SPEAKER_FIRST.match(text))
    return from_transcript(text) if is_transcript(text) or ends_with_cue else [{"role": role, "content": text}]


def as_messages(value: Any, what: str, where: str) -> list[Message]:
    """A checked list of messages, `{"role", "content"}` or `{"from", "value"}`, with content as text or as a list
    of text parts. A single message is read as well, and so is a dict of lists of roles and contents, as `datasets`
    may return."""
    if isinstance(value, Mapping):
        keys = next((keys for keys in MESSAGE_KEYS if value.keys() >= {*keys}), None)
        if keys is not None and isinstance(value[keys[0]], list) and isinstance(value[keys[1]], list):
            value = [dict(zip(value, cells, strict=False)) for cells in zip(*value.values(), strict=False)]
        elif keys is not None:
            value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(
            f"{what} must be text or a list of messages, got {value!r:.60}",
            where=where,
            hint=f'write text in quotes ("4"), or {MESSAGES}',
        )
    messages = [_message(message, what, where) for message in value]
    if len(messages) == 1 and messages[0]["role"] == "user" and is_transcript(messages[0]["content"]):
        return from_transcript(messages[0]["content"])
    return messages


def _message(message: Any, what: str, where: str) -> Message:
    if isinstance(message, dict) and "role" not in message and {"from", "value"} <= message.keys():
        message = {"role": message["from"], "content": message["value"]}  # as ShareGPT writes it
    stated = message.get("role") if isinstance(message, dict) else None
    role = stated if isinstance(stated, str) else ""
    if isinstance(message, dict) and (role in TOOL_ROLES or any(message.get(key) for key in TOOL_KEYS)):
        raise LeftOut(
            f"{what} holds a tool call or a turn of a tool, which prompts cannot hold",
            "tool calls or turns",
            where=where,
            hint="remove the row, or write the call and its result into the text of the turns",
        )
    if isinstance(message, dict) and any(message.get(key) for key in REASONING_KEYS):
        raise LeftOut(
            f"{what} holds reasoning apart from the content, which would be lost",
            "reasoning apart from the content",
            where=where,
            hint="remove the row, or write the reasoning into the content",
        )
    if role not in ROLES or "content" not in message:
        prefix = what if isinstance(message, dict) else f"{what} is not text, and"
        raise DataError(
            f"{prefix} holds {message!r:.60}, which is not a message",
            where=where,
            hint=f'a message is {{"role": ..., "content": ...}} with a role of {", ".join(ROLES)}',
        )
    return {"role": ROLES[role], "content": _content(message["content"], what, where)}


def _content(value: Any, what: str, where: str) -> str:
    """The text of a message, or the joined texts of its parts."""
    if not isinstance(value, list):
        return as_text(value, f"a message of {what}", where)
    for part in value:
        if not isinstance(part, dict) or part.get("type", "text") != "text" or "text" not in part:
            raise LeftOut(
                f"{what} holds a part that is not text: {part!r:.60}",
                "content that is not text",
                where=where,
                hint='remove the row: only text can be read, {"type": "text", "text": "..."}',
            )
    return "".join(as_text(part["text"], f"a message of {what}", where) for part in value)


def as_prompt(value: Any, what: str, where: str) -> list[Message]:
    """A prompt: text is one user turn; a conversation must end with the user's. Empty when a user's turn is empty.

    Raises as `turns`, and `LeftOut` for a prompt that ends with another's turn.
    """
    return _finished(turns(value, what, where, "user"), what, where)


def as_completion(value: Any, what: str, where: str) -> tuple[list[Message], str]:
    """The messages before an answer, where the cell holds a whole conversation, and the answer; "" where a
    transcript ends with the user. Raises as `turns`, and `LeftOut` for an answer that ends with another's turn."""
    messages = turns(value, what, where, "assistant")
    if not messages:
        return [], ""
    if messages[-1]["role"] != "assistant":
        if is_transcript(value):
            return messages, ""
        raise LeftOut(
            f"{what} ends with the turn of the {messages[-1]['role']}",
            f"the conversation ends with the {messages[-1]['role']}'s turn",
            where=where,
            hint="an answer ends with the assistant's turn",
        )
    return messages[:-1], messages[-1]["content"]


def _finished(messages: list[Message], what: str, where: str) -> list[Message]:
    """`messages` as a prompt, which ends with the user, without an empty last turn of the assistant."""
    messages = _without_cue(messages)
    if any(m["role"] == "user" and not m["content"].strip() for m in messages):
        return []
    if not any(m["content"].strip() for m in messages):
        return []
    if messages[-1]["role"] != "user":
        raise LeftOut(
            f"{what} ends with the turn of the {messages[-1]['role']}",
            f"the prompt ends with the {messages[-1]['role']}'s turn",
            where=where,
            hint="a prompt ends with the user's turn; what follows it belongs to the completion",
        )
    return messages


def _without_cue(messages: list[Message]) -> list[Message]:
    has_cue = messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip()
    return messages[:-1] if has_cue else messages


# A row


def exchange(
    prompt: Any, answers: Sequence[tuple[str, Any]], where: str, *, text_lists: TextLists = "refuse", what: str = ""
) -> tuple[list[Message], list[str]]:
    """A row's prompt, and its answers as texts.

    The prompt's cell and the messages before the answers may both hold the conversation: one may continue the
    other, or contain it.

    Args:
        prompt: the prompt's cell; None where the table has none.
        answers: a description, for error messages, and the cell of each answer.
        text_lists: how to read cells that spell lists of texts.
        what: a description of the prompt's cell.

    Raises:
        LeftOut: the row cannot be used.
        DataError: the row is malformed, or its cells contradict each other.
    """
    prompt, answers = _without_lists(prompt, answers, where, text_lists, what)
    context = turns(prompt, what, where, "user")
    goes_on = (
        is_transcript(prompt) or _without_cue(context) != context
    )  # after `Assistant:`, white space is no text
    read = [as_completion(value, name, where) for name, value in answers]
    conversations = [_joined(_without_cue(context), before, where, what) for before, _ in read]
    for (name, _), conversation in zip(answers, conversations, strict=True):
        if conversation != conversations[0]:
            words = [name.removeprefix("column ").strip("'") for name in (answers[0][0], name)]
            message = f"{words[0]} and {words[1]} differ before the last answer"
            hint = "remove the row: a ranking compares answers to the same conversation"
            raise LeftOut(message, message, where=where, hint=hint)
    finished = _finished(conversations[0] if conversations else context, what or "the prompt", where)
    return finished, [text.strip() if goes_on else text for _, text in read]


def shared_start(texts: Sequence[str]) -> str:
    """The beginning that all texts share, up to the end of a word; "" if there is none, or nothing follows it."""
    shortest = min(texts, key=len)
    letters = enumerate(zip(*texts, strict=False))
    start = shortest[: next((place for place, some in letters if len(set(some)) > 1), len(shortest))]
    if any(text[len(start) :][:1].strip() and start[-1:].strip() for text in texts):
        start = re.sub(r"\S+\Z", "", start)  # a word that is cut
    start = start.rstrip()
    return start if all(text[len(start) :].strip() for text in texts) else ""


def _without_lists(
    prompt: Any, answers: Sequence[tuple[str, Any]], where: str, text_lists: TextLists, what: str
) -> tuple[Any, Sequence[tuple[str, Any]]]:
    """Cells that spell lists of texts, unwrapped or refused. It takes a prompt, or all answers with lists of one
    text, to show that the table is of this kind: a single answer may well be such a list."""
    if text_lists == "text":
        return prompt, answers
    prompt_texts, answer_texts = spelled_texts(prompt), [spelled_texts(value) for _, value in answers]
    wrapped = [texts for texts in answer_texts if texts is not None and len(texts) == 1]
    if prompt_texts is None and not (answer_texts and len(wrapped) == len(answer_texts)):
        return prompt, answers
    if text_lists == "refuse":
        name, cell = (what, prompt) if prompt_texts is not None else answers[0]
        raise DataError(
            f"{name or 'the prompt'} holds a list of texts written as text: {cell!r:.60}",
            where=where,
            hint="set `text_lists: unwrap` beside `path` where such a list holds the turns of a conversation (rows "
            "with more than one are left out), or `text_lists: text` to take the text as it is",
        )
    if any(len(texts) > 1 for texts in (prompt_texts, *answer_texts) if texts is not None):
        raise LeftOut(
            "the cells hold lists of several turns", "several turns in one list", where=where, hint="remove the row"
        )

    def unwrapped(value: Any, texts: list[str] | None) -> Any:
        return value if texts is None else "".join(texts)

    names = [name for name, _ in answers]
    cells = [unwrapped(value, texts) for (_, value), texts in zip(answers, answer_texts, strict=True)]
    return unwrapped(prompt, prompt_texts), list(zip(names, cells, strict=True))


def _joined(context: list[Message], before: list[Message], where: str, what: str) -> list[Message]:
    """The conversation from the prompt's cell (`context`) and the messages `before` the answer in its own cell."""
    if not before or not any(m["content"].strip() for m in context):
        return before or context
    if _holds(before, context):
        system = [m for m in context if m["role"] == "system"]
        return before if before[0]["role"] == "system" else [*system, *before]
    follows = {"user": "assistant", "assistant": "user", "system": "user"}
    if before[0]["role"] == follows[context[-1]["role"]]:
        return [*context, *before]
    raise DataError(
        f"{what or 'the prompt'} and the conversation before the answer contradict each other: "
        f"{context[-1]['content']!r:.60}, {before[-1]['content']!r:.60}",
        where=where,
        hint='correct the row; or write `prompt: ""` under `columns` where the conversation is the whole prompt',
    )


def _holds(conversation: list[Message], part: list[Message]) -> bool:
    """Whether `conversation` contains `part`. System messages are ignored where only one of the two has any."""
    systems, (whole, some) = zip(*(_by_role(messages) for messages in (conversation, part)), strict=True)
    if all(systems) and systems[0] != systems[1]:
        return False
    return any(whole[i : i + len(some)] == some for i in range(len(whole) - len(some) + 1))


def _by_role(messages: list[Message]) -> tuple[list[str], list[tuple[str, str]]]:
    """Contents of the system messages, and roles and contents of the others, with white space and Unicode forms
    normalised."""

    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", " ".join(text.split()))

    system = [plain(m["content"]) for m in messages if m["role"] == "system"]
    return system, [(m["role"], plain(m["content"])) for m in messages if m["role"] != "system"]


def with_system(prompt: list[Message], system: str | None) -> list[Message]:
    """`prompt` with a system message in front, unless it has one already."""
    if system is None or prompt[0]["role"] == "system":
        return prompt
    return [{"role": "system", "content": system}, *prompt]
