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
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303b\u3041-\u30ff"
    r"\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    r"\ua9e0-\ua9fe\uaa60-\uaa7f\U00016fe3\U0001aff0-\U0001b167\U00020000-\U0003ffff"
)
"""The characters of scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), as the
inside of a character class of `re`."""
WORD_START = rf"(?:(?<![^\W{UNSPACED}])|(?=[{UNSPACED}]))"
WORD_END = rf"(?:(?![^\W{UNSPACED}])|(?<=[{UNSPACED}]))"
"""Boundaries of words, for patterns of `re`. There is none next to a character of a script without spaces, so text
in such a script matches anywhere."""


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
