"""Held-out prompts that occur in training text.

A held-out prompt occurs in a text exactly if the text contains its words in their order, ignoring case and
punctuation, and nearly if it contains at least a given share of its shingles (`data.shingles`). Prompts of fewer
than `data.shingles.ENOUGH` words occur in texts by chance; they count only as the whole of a training prompt. This
is the n-gram overlap of GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C) with a share instead of a 13-gram.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data.overlaps import Kind
from data.schema import Message
from data.shingles import shingle_hashes
from data.words import folded, words


def conversation(prompt: Iterable[Message]) -> str:
    """The text of a prompt that is compared: all turns, without the system message."""
    return "\n".join(turn["content"] for turn in prompt if turn["role"] != "system")


@dataclass(frozen=True)
class Occurrence:
    """A held-out text in a training text. `share`: of its shingles, 1 for an exact occurrence."""

    kind: Kind
    share: float
    held_out: str


class HeldOutTexts:
    """Held-out texts by shingle. Memory: the texts, and 12 bytes per shingle.

    Args:
        threshold: share of a held-out text's shingles from which a text nearly contains it.
        near: whether to look for texts that are nearly contained.
    """

    def __init__(self, threshold: float, near: bool = True) -> None:
        self.threshold = threshold if near else 1.0
        self.near = near
        self._texts: list[str] = []
        self._wholes: dict[str, int] = {}
        self._hashes, self._owners, self._sizes = array("Q"), array("I"), array("I")
        self._index: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Adds a held-out text. Equal ones are kept once."""
        whole = folded(text)
        if whole in self._wholes:
            return
        self._wholes[whole] = len(self._texts)
        hashes = shingle_hashes(text)
        self._hashes.extend(hashes.tolist())
        self._owners.extend([len(self._texts)] * len(hashes))
        self._sizes.append(len(hashes))
        self._texts.append(text)
        self._index = None

    def find(self, text: str, prompt: str | None = None) -> Occurrence | None:
        """The held-out text that occurs in a text; None if there is none. If there are several: an exact one, or
        the one with the largest share.

        Args:
            text: a training text, with its prompt if it has one.
            prompt: the prompt alone, which may equal a short held-out one.
        """
        if prompt is not None and (same := self._wholes.get(folded(prompt))) is not None:
            return Occurrence("exact", 1.0, self._texts[same])
        if not self._hashes:
            return None
        shares = self._shares(shingle_hashes(text))
        whole = np.flatnonzero(shares == 1.0)
        spoken = _spoken(text) if len(whole) else ""
        for number in whole.tolist():
            if _spoken(self._texts[number]) in spoken:
                return Occurrence("exact", 1.0, self._texts[number])
        if not self.near or not len(shares):
            return None
        best = int(shares.argmax())
        if shares[best] < self.threshold:
            return None
        return Occurrence("near", float(shares[best]), self._texts[best])

    def _shares(self, hashes: np.ndarray) -> np.ndarray:
        """The share of each held-out text's shingles that are among `hashes` (number of held-out texts)."""
        if self._index is None:
            every = np.frombuffer(self._hashes, dtype=np.uint64)
            order = np.argsort(every, kind="stable")
            self._index = every[order], np.frombuffer(self._owners, dtype=np.uint32)[order]
        known, owners = self._index
        starts, ends = np.searchsorted(known, hashes, "left"), np.searchsorted(known, hashes, "right")
        places = [np.arange(start, end) for start, end in zip(starts, ends, strict=True) if end > start]
        if not places:
            return np.zeros(0)
        counts = np.bincount(owners[np.concatenate(places)], minlength=len(self._texts))
        sizes = np.maximum(np.frombuffer(self._sizes, dtype=np.uint32), 1)
        return np.asarray(counts / sizes)


def _spoken(text: str) -> str:
    """The words of a text between spaces, so that one text contains another only at the boundaries of words."""
    return f" {' '.join(words(folded(text)))} "
