"""The language of what people read in a browser: the annotators' page and the report. English is in the code and
the templates; other languages are catalogues beside them.

A catalogue, `messages/<language>.yaml`, maps English texts to translations, in sections. Templates mark theirs with
`_`, `trans` and `ngettext` (Jinja's i18n extension) and write values as `%(name)s`. Code translates with
`translate`, or marks a constant with `mark` and translates it where it is shown, and writes values as `{name}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import yaml

ENGLISH = "en"
PPO = "PPO"
"""What texts call the method that trained the policy, and the policy."""


def mark(text: str) -> str:
    """Marks a text that is translated where it is shown."""
    return text


@dataclass(frozen=True)
class Language:
    """A language: its code, and the translations by English text.

    Attributes:
        policy: the name to show for `PPO`, where another advantage estimator trained the policy.
        recorded: translations of sentences that stages wrote into their artifacts, with {} for the values.
    """

    code: str = ENGLISH
    texts: Mapping[str, str] = field(default_factory=dict)
    recorded: Mapping[str, str] = field(default_factory=dict)
    policy: str = PPO

    @classmethod
    def read(cls, folder: Path, code: str) -> dict[str, dict[str, str]]:
        """The sections of a language's catalogue; empty for English."""
        if code == ENGLISH:
            return {}
        content: dict[str, dict[str, str]] = yaml.safe_load((folder / f"{code}.yaml").read_text(encoding="utf-8"))
        return content

    @classmethod
    def of(cls, folder: Path, code: str) -> Self:
        """The language of a catalogue with the sections `texts` and `recorded`."""
        sections = cls.read(folder, code)
        return cls(code, sections.get("texts", {}), sections.get("recorded", {}))

    def translated(self, text: str) -> str:
        """The translation; a text without one stays as it is. Line breaks of a template count as spaces."""
        if self.code != ENGLISH:
            text = self.texts.get(text) or self.texts.get(" ".join(text.split()), text)
        return text.replace(PPO, self.policy)

    def counted(self, one: str, many: str, number: int) -> str:
        """The form for a number. A catalogue has one form, under the English singular."""
        if self.code == ENGLISH:
            return (one if number == 1 else many).replace(PPO, self.policy)
        return self.translated(one)

    def of_record(self, text: str) -> str:
        """The translation of a sentence that a stage recorded. Its values are translated in the same way, because
        they may be such sentences; unknown sentences stay as they are."""
        if translation := self.recorded.get(text):
            return translation
        for pattern in sorted(self.recorded, key=len, reverse=True):  # the most specific one
            if "{}" in pattern and (match := _pattern(pattern).fullmatch(text)):
                return self.recorded[pattern].format(*map(self.of_record, match.groups()))
        return text

    def install(self, templates: Any) -> None:
        """Makes the templates of a Jinja environment use the language."""
        templates.add_extension("jinja2.ext.i18n")
        templates.install_gettext_callables(self.translated, self.counted, newstyle=True)
        templates.filters["translated"] = self.translated
        templates.globals["language"] = self.code


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("(.+?)".join(map(re.escape, text.split("{}"))), re.DOTALL)


_current: ContextVar[Language] = ContextVar("language", default=Language())  # noqa: B039 (it is immutable)


def current() -> Language:
    return _current.get()


def policy() -> str:
    """The name of the policy, and of the method that trained it: `PPO`, or that of another advantage estimator."""
    return current().policy


@contextmanager
def using(language: Language) -> Iterator[None]:
    """Texts of the block are in this language; elsewhere they are in English."""
    token = _current.set(language)
    try:
        yield
    finally:
        _current.reset(token)


def translate(text: str, /, **values: Any) -> str:
    """A text in the current language, with values in place of `{name}` or `{name:format}`."""
    translated = current().translated(text)
    return translated.format(**values) if values else translated


def recorded(text: str) -> str:
    """A sentence that a stage recorded, in the current language."""
    return current().of_record(text)
