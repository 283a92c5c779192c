"""The `rank` stage: who orders the answers, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import RUNTIME, BelowOne, Chance, Count, NonNegative, Positive, field, section


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
class AppConfig:
    """The page on which people rank (docs/rankings/collecting.md)."""

    annotators: list[Annotated[str, Field(pattern=r"^\w[\w.-]{0,39}$")]] = field(default_factory=list)
    """Who ranks, by pseudonym; each gets a link. Rankings of others that the database holds do not count."""
    overlap: Count = 2
    """How many annotators rank the same answers; agreement is measured on these overlaps."""
    repeats: BelowOne = 0.05
    """Share of an annotator's items that they get a second time, in another order and unannounced."""
    ratings: bool = False
    """Whether each answer may also be rated from 1 to 7."""
    labels: list[str] = field(
        default_factory=lambda: [
            "Fails to follow the instruction",
            "Invents facts",
            "Inappropriate or harmful",
        ]
    )
    """What may be ticked for each answer (as in Ouyang et al. 2022, appendix B)."""
    guidelines: str = ""
    """What annotators are asked to judge by; shown above the first item and on demand."""
    host: str = field(default="127.0.0.1", metadata=RUNTIME)
    """Address that the page is served at. Any other than this machine's own opens it to the network."""
    port: Annotated[int, Field(ge=0, le=65535)] = field(default=8321, metadata=RUNTIME)
    """0: a free one."""
    url: str | None = field(default=None, metadata=RUNTIME)
    """How annotators reach the page, where that is not host and port: "https://rank.example.org"."""
    lease_minutes: Positive = field(default=30.0, metadata=RUNTIME)
    """How long an item that was given out and not ranked is kept from others."""


@section
class RankConfig:
    source: Literal["app", "simulated", "data"] = "data"
    """`data`: rankings given in `data.rankings`; of what `collect` made, `app`: people rank it on a local web page;
    `simulated`: the annotators do."""
    app: AppConfig = field(default_factory=AppConfig)
    """Who ranks in the app, and what they are asked."""
    annotators: list[AnnotatorConfig] = field(default_factory=list)
    """Simulated annotators."""
    annotators_per_prompt: Count = 2
    """How many of them rank the same answers; agreement is measured on these overlaps."""
