"""Scores that are counted rather than learned: a pattern in the text, and the number of tokens.

Shapes: N responses.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from stages.models.text import Codec
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.scorer import Scorer


class Measure(Scorer):
    """A scorer of single responses."""

    @abstractmethod
    def score(self, response: Sequence[int]) -> float:
        """The score of one response, as sampled: ids of the policy's tokenizer, the stop token included."""

    def members(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        scores = torch.tensor([[self.score(response) for response in responses]], dtype=torch.float32)
        self.on_batch(len(responses))
        return scores


class PatternScorer(Measure):
    """1 where a regular expression matches somewhere in the text of a response, else 0."""

    def __init__(self, pattern: str, codec: Codec, name: str) -> None:
        self.pattern, self.codec, self.name = re.compile(pattern), codec, name

    def score(self, response: Sequence[int]) -> float:
        return float(self.pattern.search(self.codec.decode(response)) is not None)


class LengthScorer(Measure):
    """`-|n - target| / scale` for a response of n tokens."""

    def __init__(self, target: int, scale: int, name: str) -> None:
        self.target, self.scale, self.name = target, scale, name

    def score(self, response: Sequence[int]) -> float:
        return -abs(len(response) - self.target) / self.scale


class OverlongScorer(Measure):
    """DAPO's soft overlong punishment (Yu et al. 2025, arXiv:2503.14476, equation 13), with L_max = `limit` and
    L_cache = `falls`: 0 up to L_max - L_cache tokens, `((L_max - L_cache) - n) / L_cache` up to L_max, then -1."""

    def __init__(self, limit: int, falls: int, name: str) -> None:
        self.limit, self.falls, self.name = limit, falls, name

    def score(self, response: Sequence[int]) -> float:
        return max(-1.0, min(0.0, (self.limit - self.falls - len(response)) / self.falls))
