"""The Hub's identifiers of licences, which a card's metadata must use.

licenses.txt is the table of huggingface/hub-docs, docs/hub/repositories-licenses.md (2026-08-22), one identifier
and name per line.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from pathlib import Path

OTHER = "other"
"""The identifier of a licence that is not on the list; the recipe then sets its name too."""
FILLER = re.compile(r"\b(licen[cs]e|the|version|gnu|family|international|universal|community|agreement)\b")


@cache
def names() -> dict[str, str]:
    """Identifier -> the licence's name."""
    lines = (Path(__file__).parent / "licenses.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def nearest(text: str) -> str | None:
    """The identifier that a licence's name or misspelt identifier most likely means."""
    wanted = _plain(text)
    known = {_plain(form): identifier for identifier, name in names().items() for form in (name, identifier)}
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.75)
    return known[near[0]] if near else None


def _plain(text: str) -> str:
    """The distinguishing letters and digits: "The Apache License, Version 2.0" -> "apache2"."""
    words = FILLER.sub(" ", text.casefold().replace("-", " "))
    kept = re.sub(r"[^a-z0-9.+]", "", re.sub(r"\bv(?=\d)|(?<=[a-z])v(?=\d)", "", words))
    return re.sub(r"\.0(?!\d)", "", kept).replace("creativecommons", "cc").strip(".")
