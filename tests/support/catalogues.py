"""Checks of translations: texts that templates and pages mark, and a catalogue that shows which were looked up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jinja2 import nodes
from jinja2.ext import extract_from_ast

LEFT, RIGHT = "⟦", "⟧"


class Bracketed(dict[str, str]):
    """A catalogue in which every text stands in brackets."""

    def get(self, text: str, default: Any = None) -> str:
        return f"{LEFT}{text}{RIGHT}"


def marked(template: nodes.Template) -> Iterator[str]:
    """The texts that a template marks; of those with a plural, the singular."""
    for _, _, message in extract_from_ast(template):
        first = message[0] if isinstance(message, tuple) else message
        assert first is not None
        yield first


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"%\(\w+\)s|\{\w+(?::[^}]*)?\}|<[^>]+>", text))
