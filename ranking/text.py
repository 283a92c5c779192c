"""Answers and prompts as text on a page: without markup, and with invisible characters made visible."""

from __future__ import annotations

import re
import unicodedata

from markupsafe import Markup, escape

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufff9-\ufffb\ud800-\udfff\ufeff]"
)
"""Control characters except tab and newline, direction overrides, and halves of surrogate pairs."""

_SHORT = {**{code: chr(0x2400 + code) for code in range(0x20)}, 0x7F: "\u2421"}


def visible(text: str) -> Markup:
    """`text`, escaped; characters that hide or reorder others are shown by name or number."""
    parts, end = [], 0
    text = text.replace("\r\n", "\n")
    for match in _HIDDEN.finditer(text):
        character = match.group()
        code = ord(character)
        name = unicodedata.name(character, "control" if code < 0xA0 else "lone surrogate").lower()
        parts += [
            escape(text[end : match.start()]),
            Markup('<span class="mark" title="{}">{}</span>').format(name, _SHORT.get(code, f"U+{code:04X}")),
        ]
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])
