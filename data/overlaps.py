"""What duplicates (`data.duplicates`) and contamination (`data.contamination`) share: kinds, and examples."""

from __future__ import annotations

from typing import Literal

Kind = Literal["exact", "near"]
EXAMPLES = 20
"""Rows of each table that are kept as examples; of duplicates, of each kind."""
SHOWN = 200
"""Characters of an example."""
_LINE = 60


def start(text: str) -> str:
    """The start of a text, for a line of the log."""
    return text if len(text) <= _LINE else text[: _LINE - 1] + "…"
