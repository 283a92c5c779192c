"""Chat templates: selects one, renders conversations with it, and checks how it behaves.

A template is third-party code. It may refuse a conversation (a system turn, two user turns in a row), print today's
date, leave out a turn or ignore the generation prompt. This module detects all of that by rendering probes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from data.schema import Message
from pipeline.errors import DataError, StageError

TEMPLATES = Path(__file__).parent / "chat_templates"
DEFAULT = "default"
PUBLISHED = "published"
"""The name of the tokenizer's published `default` after the recipe has selected another of its templates."""

DATE = "2024-07-26"
"""The date that templates print unless the recipe sets another. It is the default of Llama 3's template."""

CLOCK = "strftime_now"
"""The function through which transformers gives templates the current time."""

SYSTEM, USER, ANSWER, AGAIN = "zSz", "zQz", "zAz", "zVz"
"""Texts of the probes. No template or tokenizer treats them specially."""


class Refused(DataError):
    """A chat template rejects a conversation.

    Attributes:
        words: the template's error message.
    """

    def __init__(self, words: str, where: str) -> None:
        super().__init__(
            f"the chat template refuses a conversation: {words}",
            where=where,
            hint="remove such conversations, set base.fold_turns: true, or choose another template",
        )
        self.words = words


@contextmanager
def named(conversation: str) -> Iterator[None]:
    """Adds the conversation to the location of a `Refused`."""
    try:
        yield
    except Refused as refused:
        raise Refused(refused.words, f"{refused.where}: {conversation}") from refused


# --- Template selection ---


def chat_template(choice: str, tokenizer: Any, where: str = "base.chat_template") -> str | dict[str, str]:
    """The value of `tokenizer.chat_template` for a `base.chat_template`: one template, or several by name, of which
    `default` is used.

    `auto` keeps the tokenizer's template, or uses `plain` if it has none. Any other value is looked up among the
    tokenizer's named templates, then among those in `chat_templates/`, then as a file. Selecting one of the
    tokenizer's templates keeps the others.

    Raises `StageError` when there is no such template or it cannot be read.
    """
    published = tokenizer.chat_template
    by_name: dict[str, str] = published if isinstance(published, dict) else {}
    if choice == "auto":
        if published:
            default_of(published, where)
            return dict(by_name) or str(published)
        choice = "plain"
    elif choice in by_name:
        replaced = {PUBLISHED: by_name[DEFAULT]} if by_name.get(DEFAULT, by_name[choice]) != by_name[choice] else {}
        return {**replaced, **by_name, DEFAULT: by_name[choice]}
    path = TEMPLATES / f"{choice}.jinja"
    if not path.exists():
        path = Path(choice)
    if not path.is_file():
        known = ", ".join(sorted([*by_name, *(p.stem for p in TEMPLATES.glob("*.jinja"))]))
        raise StageError(
            f"no chat template {choice!r}", where=where, hint=f"use auto, a .jinja file, or one of: {known}"
        )
    try:
        template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(
            f"the chat template cannot be read: {error}", where=str(path), hint="save it as UTF-8 text"
        ) from error
    # The model of a tokenizer that starts every text with BOS was pretrained with it. Conversations are encoded
    # without special tokens, so the template has to write BOS.
    return "{%- set add_bos = true %}" + template if starts_with_bos(tokenizer) else template


def default_of(template: str | dict[str, str], where: str = "base.chat_template") -> str:
    """The template in use: the only one, or the `default` of several. Raises `StageError` if there is none."""
    if not isinstance(template, dict):
        return template
    if DEFAULT not in template:
        raise StageError(
            f"the tokenizer has several chat templates and none of them is the default: {', '.join(template)}",
            where=where,
            hint=f"select one of them, e.g. base.chat_template: {next(iter(template))}",
        )
    return template[DEFAULT]


def starts_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer adds BOS at the start of a text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


# --- Rendering ---


def pinned(template: str, date: str) -> str:
    """The template with its clock fixed at midnight of `date` (YYYY-MM-DD).

    `strftime_now` becomes a macro that replaces each directive of its format. transformers offers no way to set the
    date, and a template that is pinned in its text renders the same in every process.
    """
    at, escaped = datetime.fromisoformat(date), "\ufdd0"
    values = {f"%{flag}{letter}": at.strftime(f"%{flag}{letter}") for flag in "-" for letter in "demHIjMSyUW"}
    values |= {f"%{letter}": at.strftime(f"%{letter}") for letter in "aAwdbBmyYHIpMSfjUWVGucxXDFTReh"}
    replaced = "".join(f"|replace({old!r},{new!r})" for old, new in values.items())
    body = f"{{{{ format|replace('%%','{escaped}'){replaced}|replace('{escaped}','%') }}}}"
    # The block tag swallows this newline. It puts the template on a new line, so its line numbers are off by one.
    return f"{{%- macro {CLOCK}(format) %}}{body}{{% endmacro %}}\n{template}"


def fold(messages: Sequence[Message], *, system: bool) -> list[Message]:
    """Merges consecutive turns of one role into one, joined by blank lines. With `system`, system turns become user
    turns."""
    roles = {"system": "user"} if system else {}
    turns = [(roles.get(message["role"], message["role"]), message["content"]) for message in messages]
    return [
        {"role": role, "content": "\n\n".join(text for _, text in group if text)}
        for role, group in groupby(turns, key=lambda turn: turn[0])
    ]


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        date: the current date as the template sees it, YYYY-MM-DD.
        folds: whether turns that the template does not accept are merged into others (`fold`) instead of refused.
        where: the location to report in errors.

    Attributes:
        source: the template as the tokenizer has it.
        text: the same with its clock fixed.
        no_system: why the template does not accept a system turn or leaves out its text; None if it accepts one.
        exchange: a rendered question and answer.
        talk: a rendered conversation with a turn of each role, up to the next answer. It contains everything that
            the template writes around turns.

    Raises `StageError` when the tokenizer has no default template, or when the template has a syntax error or
    refuses a question with its answer.
    """

    def __init__(
        self, tokenizer: Any, *, date: str = DATE, folds: bool = False, where: str = "base.chat_template"
    ) -> None:
        if not tokenizer.chat_template:
            raise StageError("the tokenizer has no chat template", where=where, hint="set base.chat_template")
        self.tokenizer, self.folds, self._where = tokenizer, folds, where
        self.source = default_of(tokenizer.chat_template, where)
        self.text = pinned(self.source, date) if CLOCK in self.source else self.source
        try:
            self.exchange = self.as_given(_turns(USER, ANSWER))
        except Refused as refused:
            raise StageError(
                f"the chat template refuses a question with its answer: {refused.words}",
                where=where,
                hint="use a tokenizer whose template takes user and assistant turns, or base.chat_template: chatml",
            ) from refused
        self.no_system = self._why_no_system()
        self.talk = self._everything()

    @property
    def takes_system(self) -> bool:
        return self.no_system is None

    def render(self, messages: Sequence[Message], *, generation: bool = False) -> str:
        """A conversation as text; with `generation`, up to the assistant's next answer. Raises `Refused`."""
        return self.as_given(self.accepted(messages), generation=generation)

    def accepted(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The turns that are rendered: folded, if the template folds. Raises `Refused` for a system turn that the
        template does not take."""
        if self.folds:
            return fold(messages, system=not self.takes_system)
        if self.no_system is not None and any(message["role"] == "system" for message in messages):
            raise Refused(self.no_system, self._where)
        return messages

    def as_given(self, messages: Sequence[Message], *, generation: bool = False) -> str:
        """As `render`, without folding."""
        return self._rendered(self.text, messages, generation)

    def prints_date(self) -> bool:
        """Whether the template's output depends on the date."""
        if CLOCK not in self.source:
            return False
        turns = _turns(USER) if not self.takes_system else [{"role": "system", "content": SYSTEM}, *_turns(USER)]
        days = (pinned(self.source, date) for date in ("2001-02-03", "2014-11-28"))
        return len({self._rendered(text, turns, True) for text in days}) > 1

    def _everything(self) -> str:
        talk = _turns(USER, ANSWER, AGAIN)
        if self.takes_system:
            talk = [{"role": "system", "content": SYSTEM}, *talk]
        try:
            return self.as_given(talk, generation=True)
        except Refused:  # the template accepts a single exchange only
            return self.as_given(_turns(USER), generation=True) + self.exchange

    def _rendered(self, template: str, messages: Sequence[Message], generation: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=generation, chat_template=template
                )
            )
        except TemplateSyntaxError as error:
            line = f", line {error.lineno - (template != self.source)}" if error.lineno else ""
            raise StageError(
                f"the chat template has a syntax error{line}: {error.message}",
                where=self._where,
                hint="fix the tokenizer's template, or set base.chat_template to another one",
            ) from error
        except Exception as error:  # templates raise anything to refuse: TemplateError, TypeError, ...
            raise Refused(str(error) or type(error).__name__, self._where) from error

    def _why_no_system(self) -> str | None:
        turns = [{"role": "system", "content": SYSTEM}, *_turns(USER)]
        try:
            text = self.as_given(turns)
        except Refused as refused:
            return refused.words
        return None if _has(text, SYSTEM) else "it leaves out the text of a system turn"


def check(template: ChatTemplate) -> list[str]:
    """Warnings about a template for the user, one line each.

    Training uses `render(prompt, generation=True)` followed by the answer. The template should render the full
    conversation the same way.

    Raises `StageError` when the template leaves out a user's text, or when prompts end before the header of the
    assistant's turn.
    """
    question = _turns(USER)
    prompt, bare = template.as_given(question, generation=True), template.as_given(question)
    exchange = template.exchange
    if _loses_a_turn(template):
        raise StageError(
            "the chat template leaves out the text of a user's turn",
            where="base.chat_template",
            hint="use a template that prints every turn, e.g. base.chat_template: chatml",
        )
    if exchange.startswith(prompt + ANSWER):
        return []
    if not exchange.startswith(prompt):
        return [
            "the chat template renders a full conversation differently from a prompt followed by its answer: "
            f"training and sampling use {prompt[-40:] + ANSWER!r}, a full conversation has {exchange[-60:]!r}"
        ]
    header = exchange[len(prompt) :].partition(ANSWER)[0]
    if not header.strip():
        return []
    if prompt == bare:
        raise StageError(
            f"the chat template ignores add_generation_prompt: a prompt ends without {header!r}, which starts the "
            "assistant's turn",
            where="base.chat_template",
            hint="copy the template to a .jinja file, end it with {% if add_generation_prompt %}{{ "
            f"{header!r} }}}}{{% endif %}} and set base.chat_template to the file",
        )
    return [
        f"the chat template writes {header!r} before the last answer of a conversation but not at the end of a "
        "prompt: answers are trained and sampled without it"
    ]


def _loses_a_turn(template: ChatTemplate) -> bool:
    for texts in ((USER,), (USER, ANSWER, AGAIN)):
        try:
            talk = template.as_given(_turns(*texts), generation=True)
        except Refused:  # the stages report refused conversations when they read them
            continue
        if not all(_has(talk, text) for text in texts[::2]):
            return True
    return False


def ending(template: ChatTemplate) -> str:
    """The text that the template writes after the last answer; empty if it changes the answer's text."""
    _, answer, after = template.exchange.rpartition(ANSWER)
    return after if answer else ""


def _turns(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _has(text: str, probe: str) -> bool:
    return re.search(probe, text, re.IGNORECASE) is not None
