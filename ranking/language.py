"""The language of the annotators' page (see `pipeline.language`).

`messages/<language>.yaml` has two sections: `page` for the texts of the templates and of the server's messages,
`script` for those of the scripts. Scripts mark theirs with `t`, and code with `Refusal` or `mark`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import language
from ranking.terminal import rough

FOLDER = Path(__file__).parent / "messages"


class Refusal(Exception):
    """A message for the annotator. `text` is English, with `%(name)s` for the values."""

    def __init__(self, text: str, **values: Any) -> None:
        self.text, self.values = text, values
        super().__init__(text % values)


@dataclass(frozen=True)
class Language(language.Language):
    """A language of the page. `script` has the translations for the scripts, by English text."""

    script: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, code: str) -> Language:
        sections = cls.read(FOLDER, code)
        return cls(code, sections.get("page", {}), script=sections.get("script", {}))

    def refused(self, refusal: Refusal) -> str:
        return self.translated(refusal.text) % refusal.values

    def roughly(self, seconds: float) -> str:
        """A duration, such as "5 min"."""
        number, unit = rough(seconds)
        return f"{number} {self.translated(unit)}"

    def install(self, templates: Any) -> None:
        super().install(templates)
        templates.filters["roughly"] = self.roughly
        templates.globals["script_messages"] = dict(self.script)
