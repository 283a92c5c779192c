"""How words are found in text, in any script.

Words are those of Unicode's default word boundaries (UAX #29), as the `regex` package implements them: "isn't" and
"3.14" are one word each, and punctuation is none. Scripts without spaces between words have no such boundaries in
the standard. There every character is a word: each Chinese character, each hiragana, and each Thai, Lao, Khmer or
Burmese letter with the marks on it. A run of katakana is one word. No dictionary is used, so counts are of
characters there, not of what a linguist calls words.
"""

from __future__ import annotations

import unicodedata

import regex

_WORD = regex.compile(r"(?w)\b\w.*?\b")
_TOKEN = regex.compile(r"(?w)\b\w.*?\b|[^\w\s]")
UNSPACED = regex.compile(
    r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}\p{scx=Thai}\p{scx=Lao}\p{scx=Khmer}\p{scx=Myanmar}]"
)
"""A character of a script that puts no spaces between words."""


def words(text: str) -> list[str]:
    """The words of `text`, in order."""
    return list(_WORD.findall(text))


def words_and_punctuation(text: str) -> list[str]:
    """The words of `text` and its other characters except white space, in order."""
    return list(_TOKEN.findall(text))


def folded(text: str) -> str:
    """`text` without differences of case, white space and Unicode form (NFC)."""
    # NFC before and after: folding can decompose a letter, and composed letters can fold differently.
    composed = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", composed).split())
