"""Conversations as they stand in tables: a plain string, or a list of messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from data.schema import Message
from data.sources import as_text
from pipeline.errors import DataError

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "prompter": "user"}
"""The roles that are understood; OASST calls the user a prompter."""

_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: Any) -> bool:
    """Whether a cell is a whole conversation as one text, as in HH-RLHF: a blank line and `Human:` begin it."""
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def from_transcript(text: str) -> list[Message]:
    """The turns of a transcript. What one speaker says in several turns is one message."""
    _, *parts = _TURN.split(text)
    messages: list[Message] = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        role = _SPEAKERS[speaker]
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{said.strip()}".strip()
        else:
            messages.append({"role": role, "content": said.strip()})
    return messages


def as_messages(value: Any, what: str, where: str) -> list[Message]:
    """A list of `{"role", "content"}` messages, checked; `DataError` otherwise."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(
            f"{what} is not a list of messages but {value!r:.60}",
            where=where,
            mend='write [{"role": "user", "content": "..."}, ...]',
        )
    messages = []
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in ROLES or "content" not in message:
            raise DataError(
                f"{what} holds {message!r:.60}, which is no message",
                where=where,
                mend=f'a message is {{"role": ..., "content": ...}} with a role of {", ".join(ROLES)}',
            )
        text = as_text(message["content"], f"a message of {what}", where)
        messages.append({"role": ROLES[message["role"]], "content": text})
    return messages


def as_prompt(value: Any, what: str, where: str) -> list[Message]:
    """A prompt: text is one user turn, a conversation must end with the user's. Empty when the cell is."""
    if value is None or isinstance(value, str):
        text = as_text(value, what, where)
        return [{"role": "user", "content": text}] if text.strip() else []
    messages = as_messages(value, what, where)
    if messages and messages[-1]["role"] != "user":
        raise DataError(
            f"{what} ends with the turn of the {messages[-1]['role']}",
            where=where,
            mend="a prompt ends with the user's turn; what follows it belongs to the completion",
        )
    return messages if any(message["content"].strip() for message in messages) else []


def as_completion(value: Any, what: str, where: str) -> tuple[list[Message], str]:
    """An answer, and the messages that stand before it when the cell holds a whole conversation; "" where a
    transcript ends with the user."""
    if is_transcript(value):
        messages = from_transcript(as_text(value, what, where))
        if messages[-1]["role"] == "user":
            return messages, ""
        return messages[:-1], messages[-1]["content"]
    if value is None or isinstance(value, str):
        return [], as_text(value, what, where)
    messages = as_messages(value, what, where)
    if not messages:
        return [], ""
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{what} ends with the turn of the {messages[-1]['role']}",
            where=where,
            mend="an answer ends with the assistant's turn",
        )
    *before, answer = messages
    return as_prompt(before, what, where), answer["content"]


def with_system(prompt: list[Message], system: str | None) -> list[Message]:
    """`prompt` with a system message in front, unless it has one of its own."""
    if system is None or prompt[0]["role"] == "system":
        return prompt
    return [{"role": "system", "content": system}, *prompt]
