"""Where a rendered conversation holds what the assistant writes, for training on each of its turns.

A chat template with `{% generation %}` markers says it. Otherwise a turn starts where the conversation before it
ends, rendered with a generation prompt: this is what the model reads when it writes that turn. The turn ends with
the token that ends turns. A template that renders earlier turns differently, as Qwen3's with `enable_thinking:
false`, does not show the model what it will read, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from data.schema import Message
from stages.models.templates import AGAIN, ANSWER, SYSTEM, USER, ChatTemplate, Refused

MARKER = re.compile(r"\{\%-?\s*generation\s*-?\%\}")
LATER = "zRz"
"""The second answer of the probe."""

Span = tuple[int, int]
"""Start and end of a part of a text, in characters."""


class Unlocatable(Exception):
    """An assistant's turn is not in the rendered conversation as the model would write it."""


def marks_generation(template: ChatTemplate) -> bool:
    """Whether the template marks what the assistant generates."""
    return MARKER.search(template.source) is not None


def locate(template: ChatTemplate, messages: Sequence[Message], end: str) -> tuple[str, list[Span]]:
    """The conversation as text up to the assistant's next answer, and the span of each assistant's turn, with the
    token that ends it.

    Args:
        messages: turns as the template accepts them (`ChatTemplate.accepted`).
        end: the text of the token that ends a turn. If the template does not write it, spans end with the answer.

    Raises `Unlocatable`, and `Refused` as the template does.
    """
    text = template.as_given(messages, generation=True)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if marks_generation(template):
        spans = _marked(template, messages)
        if len(spans) != len(answers):
            raise Unlocatable(f"it marks {len(spans)} of {len(answers)} assistant's turns with {{% generation %}}")
        return text, spans
    return text, [_between(template, messages, i, text, end) for i in answers]


def _marked(template: ChatTemplate, messages: Sequence[Message]) -> list[Span]:
    rendered: Any = render_jinja_template(
        conversations=[list(messages)],
        chat_template=template.text,
        add_generation_prompt=True,
        return_assistant_tokens_mask=True,
        **template.tokenizer.special_tokens_map,
    )
    return [(start, stop) for start, stop in rendered[1][0] if stop > start]


def _between(template: ChatTemplate, messages: Sequence[Message], at: int, text: str, end: str) -> Span:
    try:
        before = template.as_given(messages[:at], generation=True)
    except Refused as refused:
        raise Unlocatable(f"it refuses the part of a conversation before an answer: {refused.words}") from refused
    if not text.startswith(before):
        raise Unlocatable("it renders what comes before an answer differently once the answer is there")
    rest, answer = text[len(before) :], messages[at]["content"].strip()
    lead = len(rest) - len(rest.lstrip())
    if not rest[lead:].startswith(answer):
        raise Unlocatable("it changes the text of an assistant's turn, or writes something before it")
    after = rest[lead + len(answer) :]
    blank = len(after) - len(after.lstrip())
    closes = bool(end) and after[blank:].startswith(end)
    return len(before), len(text) - len(after) + (blank + len(end) if closes else 0)


def probe(template: ChatTemplate) -> list[Message]:
    """A conversation with two answers and a turn of each role that the template takes."""
    texts = (USER, ANSWER, AGAIN, LATER, USER)
    messages: list[Message] = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    return [{"role": "system", "content": SYSTEM}, *messages] if template.takes_system else messages


def why_not(template: ChatTemplate, end: str) -> str:
    """Why the assistant's turns of a conversation cannot be located; empty if they can."""
    messages = probe(template)
    try:
        text, spans = locate(template, messages, end)
    except Refused as refused:
        return f"it refuses a conversation with two answers: {refused.words}"
    except Unlocatable as reason:
        return str(reason)
    learned = [text[start:stop] for start, stop in spans]
    if any(answer not in turn for answer, turn in zip((ANSWER, LATER), learned, strict=True)):
        return "its {% generation %} markers do not enclose the assistant's text"
    if any(asked in turn for asked in (USER, AGAIN, SYSTEM) for turn in learned):
        return "its {% generation %} markers enclose text of other turns"
    return ""
