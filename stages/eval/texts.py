"""What can be counted in answers without understanding them. Words are those of `data.words`: of scripts without
spaces, such as Chinese, each character is one."""

from __future__ import annotations

from collections.abc import Sequence

from data.words import words

REPEATED = 4
"""Words in the sequences whose repetition is counted."""


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The sequences of n words, in order."""
    of_text = words(text)
    return list(zip(*(of_text[i:] for i in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams of all texts (Li et al. 2016, arXiv:1510.03055, section 5). It
    falls with the number of texts: compare equal numbers of answers to the same prompts."""
    every = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(every)) / max(1, len(every))


def repetition(text: str, n: int = REPEATED) -> float:
    """The share of a text's n-grams that it has said before (seq-rep-n, Welleck et al. 2020, arXiv:1908.04319,
    section 3); 0 for a text shorter than n words."""
    grams = ngrams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
