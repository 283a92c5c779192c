"""The `rank` stage: who orders the answers, and how."""

from __future__ import annotations

from typing import Literal

from pipeline.config.section import Chance, Count, NonNegative, field, section


@section
class AnnotatorConfig:
    """A simulated annotator of the built-in task: what they care about, and how they err.

    The utility of an answer is `-missing * m - invented * i - repeated * r + verbosity * w + N(0, noise)`
    with m, i, r the facts they *believe* missing, invented and repeated and w the answer's length in tens of
    words.
    """

    name: str
    missing: float = 1.0
    invented: float = 1.0
    repeated: float = 0.5
    verbosity: float = 0.0
    """Bias: reward for every ten words, whatever they say."""
    oversight: Chance = 0.05
    """Chance that they misread a single fact."""
    noise: NonNegative = 0.3
    """Standard deviation of the noise on the utility."""
    tie: NonNegative = 0.25
    """Answers whose utilities lie closer than this are ranked equal."""


@section
class RankConfig:
    source: Literal["simulated", "data"] = "data"
    """`data`: rankings given in `data.rankings`; `simulated`: the annotators rank what `collect` made."""
    annotators: list[AnnotatorConfig] = field(default_factory=list)
    """Simulated annotators."""
    annotators_per_prompt: Count = 2
    """How many of them rank the same answers; agreement is measured on these overlaps."""
