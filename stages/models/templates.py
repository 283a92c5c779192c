"""Chat templates: which of them is used, and what it makes of a conversation.

A template is somebody else's program. It may refuse a conversation (a system turn, two user turns in a row), print
today's date, leave a turn out or ignore the generation prompt. All of that shows by rendering probes, which is how
this module finds out.
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
"""The name under which a tokenizer keeps its own `default` when the recipe names another of its templates."""

DATE = "2024-07-26"
"""What a template that prints the day's date prints unless a recipe says otherwise: Llama 3's own default."""

CLOCK = "strftime_now"
"""The only clock that transformers gives to a template."""

SYSTEM, USER, ANSWER, AGAIN = "zSz", "zQz", "zAz", "zVz"
"""Texts of the probes: no template and no tokenizer treats them in a special way."""


class Refused(DataError):
    """A chat template does not take a conversation.

    Attributes:
        words: why, in the template's own words.
    """

    def __init__(self, words: str, where: str) -> None:
        super().__init__(
            f"the chat template refuses a conversation. Its words: {words}",
            where=where,
            hint="remove such conversations, set base.fold_turns: true, or choose another template",
        )
        self.words = words


@contextmanager
def named(conversation: str) -> Iterator[None]:
    """Adds to a `Refused` which conversation it is about."""
    try:
        yield
    except Refused as refused:
        raise Refused(refused.words, f"{refused.where}: {conversation}") from refused


# --- Which template ---


def chat_template(choice: str, tokenizer: Any, where: str = "base.chat_template") -> str | dict[str, str]:
    """What `tokenizer.chat_template` becomes under `base.chat_template`: a template, or several by name of which
    `default` is used. Raises `StageError`.

    `auto` keeps what the tokenizer has, or takes `plain` where it has none. Another value is looked up among the
    tokenizer's own named templates first, then among those in data/templates/, then as a file. Nothing that the
    tokenizer was published with is lost when one of its own is named.
    """
    own = tokenizer.chat_template
    by_name: dict[str, str] = own if isinstance(own, dict) else {}
    if choice == "auto":
        if own:
            default_of(own, where)
            return dict(by_name) or str(own)
        choice = "plain"
    elif choice in by_name:
        kept = {PUBLISHED: by_name[DEFAULT]} if by_name.get(DEFAULT, by_name[choice]) != by_name[choice] else {}
        return {**kept, **by_name, DEFAULT: by_name[choice]}
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
    # A tokenizer that starts every text with BOS was pretrained so; the template has to say it, because
    # conversations are encoded without special tokens.
    return "{%- set add_bos = true %}" + template if starts_with_bos(tokenizer) else template


def default_of(template: str | dict[str, str], where: str = "base.chat_template") -> str:
    """The template that is used: the only one, or of several the `default`. Raises `StageError` without one."""
    if not isinstance(template, dict):
        return template
    if DEFAULT not in template:
        raise StageError(
            f"the tokenizer has several chat templates and none of them is the default: {', '.join(template)}",
            where=where,
            hint=f"name one of them, e.g. base.chat_template: {next(iter(template))}",
        )
    return template[DEFAULT]


def starts_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts BOS in front of a text by itself."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


# --- What it renders ---


def pinned(template: str, date: str) -> str:
    """The template with a clock that stands at midnight of `date` (YYYY-MM-DD), and otherwise the same.

    `strftime_now` becomes a macro that replaces each directive of its format. transformers gives no way to set the
    date, and a template that is pinned as text renders the same in every process.
    """
    at, escaped = datetime.fromisoformat(date), "\ufdd0"
    values = {f"%{flag}{letter}": at.strftime(f"%{flag}{letter}") for flag in "-" for letter in "demHIjMSyUW"}
    values |= {f"%{letter}": at.strftime(f"%{letter}") for letter in "aAwdbBmyYHIpMSfjUWVGucxXDFTReh"}
    replaced = "".join(f"|replace({old!r},{new!r})" for old, new in values.items())
    body = f"{{{{ format|replace('%%','{escaped}'){replaced}|replace('{escaped}','%') }}}}"
    # The newline is the one that a block tag swallows: the template itself starts on a line of its own.
    return f"{{%- macro {CLOCK}(format) %}}{body}{{% endmacro %}}\n{template}"


def fold(messages: Sequence[Message], *, system: bool) -> list[Message]:
    """What one role says in several turns in a row as one turn, joined by blank lines; with `system`, a system turn
    counts as the user's."""
    roles = {"system": "user"} if system else {}
    turns = [(roles.get(message["role"], message["role"]), message["content"]) for message in messages]
    return [
        {"role": role, "content": "\n\n".join(text for _, text in group if text)}
        for role, group in groupby(turns, key=lambda turn: turn[0])
    ]


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        date: what it prints as today's, YYYY-MM-DD.
        folds: whether turns that it cannot take are folded into others (`fold`) rather than refused.
        where: what to name in an error.

    Attributes:
        source: the template as published.
        no_system: why it does not take a system turn or leaves out its text; None if it takes one.
        exchange: a question and its answer as it renders them.
        talk: a conversation with a turn of each role, up to the next answer: all that it writes around turns.

    Raises `StageError` when it has no default, a syntax error, or refuses a question with its answer.
    """

    def __init__(
        self, tokenizer: Any, *, date: str = DATE, folds: bool = False, where: str = "base.chat_template"
    ) -> None:
        if not tokenizer.chat_template:
            raise StageError("the tokenizer has no chat template", where=where, hint="set base.chat_template")
        self.tokenizer, self.folds, self._where = tokenizer, folds, where
        self.source = default_of(tokenizer.chat_template, where)
        self._text = pinned(self.source, date) if CLOCK in self.source else self.source
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
        if self.folds:
            messages = fold(messages, system=not self.takes_system)
        elif self.no_system is not None and any(message["role"] == "system" for message in messages):
            raise Refused(self.no_system, self._where)
        return self.as_given(messages, generation=generation)

    def as_given(self, messages: Sequence[Message], *, generation: bool = False) -> str:
        """As `render`, nothing folded."""
        return self._rendered(self._text, messages, generation)

    def prints_date(self) -> bool:
        """Whether what it prints depends on the day."""
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
        except Refused:  # one exchange is all that it takes
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
                hint="correct the template of the tokenizer, or set base.chat_template to another",
            ) from error
        except Exception as error:  # a template refuses in whatever way it likes: TemplateError, TypeError, ...
            raise Refused(str(error) or type(error).__name__, self._where) from error

    def _why_no_system(self) -> str | None:
        turns = [{"role": "system", "content": SYSTEM}, *_turns(USER)]
        try:
            text = self.as_given(turns)
        except Refused as refused:
            return refused.words
        return None if _has(text, SYSTEM) else "it leaves out the text of a system turn"


def check(template: ChatTemplate) -> list[str]:
    """What to tell the user of a template before training, one line each. Raises `StageError` when it cannot be
    trained with: it loses a user's text, or prompts end before the assistant's turn begins.

    What is trained on is `render(prompt, generation=True)` and the answer after it; that should be how the template
    renders the whole conversation.
    """
    question = _turns(USER)
    prompt, bare = template.as_given(question, generation=True), template.as_given(question)
    whole = template.exchange
    if _loses_a_turn(template):
        raise StageError(
            "the chat template leaves out the text of a user's turn",
            where="base.chat_template",
            hint="choose a template that prints every turn, e.g. base.chat_template: chatml",
        )
    if whole.startswith(prompt + ANSWER):
        return []
    if not whole.startswith(prompt):
        return [
            "the chat template renders a conversation otherwise than its prompt and answer: training and sampling "
            f"use {prompt[-40:] + ANSWER!r}, a whole conversation has {whole[-60:]!r}"
        ]
    header = whole[len(prompt) :].partition(ANSWER)[0]
    if not header.strip():
        return []
    if prompt == bare:
        raise StageError(
            f"the chat template ignores add_generation_prompt: a prompt ends without {header!r}, which starts the "
            "assistant's turn",
            where="base.chat_template",
            hint="copy the template to a .jinja file, end it with {% if add_generation_prompt %}{{ "
            f"{header!r} }}}}{{% endif %}} and name the file under base.chat_template",
        )
    return [
        f"the chat template writes {header!r} before the last answer of a conversation and not at the end of a "
        "prompt: answers are trained and sampled without it"
    ]


def _loses_a_turn(template: ChatTemplate) -> bool:
    for texts in ((USER,), (USER, ANSWER, AGAIN)):
        try:
            talk = template.as_given(_turns(*texts), generation=True)
        except Refused:  # conversations that it refuses are named where they are read
            continue
        if not all(_has(talk, text) for text in texts[::2]):
            return True
    return False


def ending(template: ChatTemplate) -> str:
    """What the template writes after the last answer; empty where it changes the answer's text."""
    _, answer, after = template.exchange.rpartition(ANSWER)
    return after if answer else ""


def _turns(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _has(text: str, probe: str) -> bool:
    return re.search(probe, text, re.IGNORECASE) is not None
