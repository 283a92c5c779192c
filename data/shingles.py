"""Texts as sets of shingles, which tell how much of two texts is the same.

A shingle is a sequence of `SIZE` words (`data.words`), without differences of case, Unicode form (NFC) and
punctuation. Of two texts with shingles A and B, the Jaccard similarity is |A and B| / |A or B|, and the share of A
that B contains is |A and B| / |A| (Broder 1997, "On the resemblance and containment of documents").
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from data.words import folded, words

SIZE = 3
"""Words in a shingle. One changed word changes this many shingles."""
ENOUGH = 8
"""Words from which texts are compared by shingles. Shorter ones are alike by chance: only equal ones count."""
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)


@lru_cache(maxsize=2**14)
def _hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The distinct shingles of a text; empty for a text of fewer than `ENOUGH` words."""
    parts = words(folded(text))
    if len(parts) < ENOUGH:
        return frozenset()
    return frozenset(zip(*(parts[start:] for start in range(SIZE)), strict=False))


def shingle_hashes(text: str) -> NDArray[np.uint64]:
    """Hashes of the `shingles` of a text, ascending (N,)."""
    parts = words(folded(text))
    if len(parts) < ENOUGH:
        return np.zeros(0, dtype=np.uint64)
    hashes = np.fromiter(map(_hash, parts), dtype=np.uint64, count=len(parts))
    starts = len(parts) - SIZE + 1
    # Each sum is shifted before it is multiplied, or the order of the words would not matter.
    total = np.zeros(starts, dtype=np.uint64)
    for place, factor in enumerate(_FACTORS):
        total = (total ^ (total >> np.uint64(29))) * factor + hashes[place : place + starts]
    return np.unique(total)


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """The Jaccard similarity of two sets of shingles; 0 if either is empty."""
    common = len(a & b)
    return common / (len(a) + len(b) - common) if common else 0.0


class Text:
    """A text that is compared with others. Its shingles and their hashes are computed when they are needed."""

    def __init__(self, text: str) -> None:
        self.folded = folded(text)
        self._text = text

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        return shingle_hashes(self._text)

    @cached_property
    def shingles(self) -> frozenset[tuple[str, ...]]:
        return shingles(self._text)

    def similarity(self, other: Text) -> float:
        """The Jaccard similarity of the shingles of two texts, or 1 or 0 for equal and different texts of which one
        is shorter than `ENOUGH` words."""
        return 1.0 if self.folded == other.folded else jaccard(self.shingles, other.shingles)
