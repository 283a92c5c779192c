"""Tables that a narrow screen shows as one card per row."""

from __future__ import annotations

import re
from html import unescape

from markupsafe import Markup, escape

from pipeline.wording import DASH

_ROW = re.compile(r"<tr\b([^>]*)>(.*?)</tr>", re.DOTALL)
_CELL = re.compile(r"<(t[hd])\b([^>]*)>(.*?)</\1>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
Cell = tuple[str, str, str]
"""Tag, attributes and content."""


def cards(html: str) -> Markup:
    """A table with its header's labels repeated in each cell as `data-label`, which the style sheet shows where
    rows become cards. Columns without a single value are left out.

    Args:
        html: a table of this folder's templates: one row of headings, and as many cells in every other row.

    Raises `ValueError` if a row has more or fewer cells than the header.
    """
    rows: list[tuple[re.Match[str], list[Cell]]] = [(row, _CELL.findall(row[2])) for row in _ROW.finditer(html)]
    header = [_text(content) for _, _, content in rows[0][1]]
    for _, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"a row of {len(row)} cells under {len(header)} headings: {[_text(cell[2]) for cell in row]}"
            )
    body = [row for _, row in rows[1:]]
    kept = [at for at in range(len(header)) if at == 0 or not body or any(_has_value(row[at][2]) for row in body)]
    parts, end = [], 0
    for number, (match, row) in enumerate(rows):
        parts.append(html[end : match.start()])
        cells = "\n".join(_written(row[at], header[at] if number else "") for at in kept)
        parts.append(f"<tr{match[1]}>\n{cells}\n</tr>")
        end = match.end()
    return Markup("".join([*parts, html[end:]]))


def _written(cell: Cell, label: str) -> str:
    tag, attributes, content = cell
    labelled = f' data-label="{escape(label)}"' if label and tag == "td" else ""
    return f"<{tag}{attributes}{labelled}>{content.strip()}</{tag}>"


def _has_value(content: str) -> bool:
    """Whether a cell shows anything. Bars and dots are elements without text."""
    return "<i " in content or _text(content) not in ("", DASH)


def _text(content: str) -> str:
    return " ".join(unescape(_TAG.sub(" ", content)).split())
