"""The language of the annotators' page. English is in the templates; other languages are catalogues.

`messages/<language>.yaml` maps English texts to translations: `page` those of the templates and of the server's
messages, `script` those of the scripts. Templates mark theirs with `_` and `ngettext` (Jinja's i18n extension),
scripts with `t`, and code with `Refusal` or `mark`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment

from ranking.terminal import rough

FOLDER = Path(__file__).parent / "messages"


class Refusal(Exception):
    """A message for the annotator. `text` is English, with `%(name)s` for the values."""

    def __init__(self, text: str, **values: Any) -> None:
        self.text, self.values = text, values
        super().__init__(text % values)


def mark(text: str) -> str:
    """Marks a text that is translated where it is shown."""
    return text


@dataclass(frozen=True)
class Language:
    """A language of the page: its code, and the translations of `page` and `script` by English text."""

    code: str
    page: Mapping[str, str] = field(default_factory=dict)
    script: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, code: str) -> Language:
        if code == "en":
            return cls(code)
        content = yaml.safe_load((FOLDER / f"{code}.yaml").read_text(encoding="utf-8"))
        return cls(code, content["page"], content["script"])

    def translated(self, text: str) -> str:
        """The translation; a text without one stays as it is."""
        return self.page.get(text, text)

    def refused(self, refusal: Refusal) -> str:
        return self.translated(refusal.text) % refusal.values

    def counted(self, one: str, many: str, number: int) -> str:
        """The form for a number. A catalogue has one form, under the English singular."""
        return self.page.get(one, one if number == 1 else many)

    def roughly(self, seconds: float) -> str:
        """A duration, such as "5 min"."""
        number, unit = rough(seconds)
        return f"{number} {self.translated(unit)}"

    def install(self, templates: Environment) -> None:
        """Makes templates speak the language."""
        templates.add_extension("jinja2.ext.i18n")
        install = templates.install_gettext_callables  # type: ignore[attr-defined]
        install(self.translated, self.counted, newstyle=True)
        templates.filters |= {"translated": self.translated, "roughly": self.roughly}
        templates.globals |= {"language": self.code, "script_messages": dict(self.script)}
