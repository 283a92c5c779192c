"""The `rank` stage: who orders the answers, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import RUNTIME, BelowOne, Chance, Count, NonNegative, Positive, field, section


@section
class AnnotatorConfig:
    """A simulated annotator of the built-in task: what they care about, and which errors they make.

    The utility of an answer is `-missing * m - invented * i - repeated * r + verbosity * w + N(0, noise)`, where m,
    i and r count the facts that they *believe* missing, invented and repeated, and w is the answer's length in tens
    of words.
    """

    name: str
    """Name in the rankings; must be unique."""
    missing: float = 1.0
    """Utility lost per missing fact."""
    invented: float = 1.0
    """Utility lost per invented fact."""
    repeated: float = 0.5
    """Utility lost per repeated fact."""
    verbosity: float = 0.0
    """Bias towards long answers: utility gained per ten words, whatever they say."""
    oversight: Chance = 0.05
    """Probability of misreading a single fact."""
    noise: NonNegative = 0.3
    """Standard deviation of the noise on the utility."""
    tie: NonNegative = 0.25
    """Answers whose utilities differ by less than this are ranked equal."""


@section
class AppConfig:
    """The page on which people rank (docs/rankings/collecting.md)."""

    annotators: list[Annotated[str, Field(pattern=r"^\w[\w.-]{0,39}$")]] = field(default_factory=list)
    """Pseudonyms of the annotators. Each gets a link of their own. Rankings in the database by anybody else are
    ignored."""
    overlap: Count = 2
    """Annotators per set of answers. Agreement is measured on answers that several annotators ranked."""
    repeats: BelowOne = 0.05
    """Share of an annotator's items that come a second time, reordered and unannounced, to measure how far they
    agree with themselves."""
    ratings: bool = False
    """Whether annotators may also rate each answer from 1 to 7."""
    labels: list[str] = field(
        default_factory=lambda: [
            "Fails to follow the instruction",
            "Invents facts",
            "Inappropriate or harmful",
        ]
    )
    """Checkboxes shown with each answer (as in Ouyang et al. 2022, appendix B)."""
    language: Literal["en", "zh"] = "en"
    """Language of the annotators' page: English or Chinese. Labels and guidelines are shown as they are written,
    and the default labels translated. The admin's page is in English."""
    guidelines: str = ""
    """Instructions for annotators, shown before the first item and on request."""
    host: str = field(default="127.0.0.1", metadata=RUNTIME)
    """Address that the page is served at. Any address other than this machine's own opens it to the network."""
    port: Annotated[int, Field(ge=0, le=65535)] = field(default=8321, metadata=RUNTIME)
    """Port that the page is served at; 0 takes a free one."""
    url: str | None = field(default=None, metadata=RUNTIME)
    """The address in annotators' links where it differs from host and port, such as "https://rank.example.org"."""
    lease_minutes: Positive = field(default=30.0, metadata=RUNTIME)
    """Minutes for which an item is reserved for the annotator it was given to."""
    linger_minutes: NonNegative = field(default=5.0, metadata=RUNTIME)
    """When all rankings are in, the page stays open for corrections until no annotator has used it for so many
    minutes."""


@section
class RankConfig:
    """Where the rankings come from."""

    source: Literal["app", "simulated", "data"] = "data"
    """data: the rankings in `data.rankings`. app: people rank what `collect` sampled, on a local web page.
    simulated: the simulated annotators rank it."""
    app: AppConfig = field(default_factory=AppConfig)
    """For `source: app`: who ranks, and what they are asked."""
    annotators: list[AnnotatorConfig] = field(default_factory=list)
    """For `source: simulated`: the annotators."""
    annotators_per_prompt: Count = 2
    """For `source: simulated`: annotators who rank the same answers. Agreement is measured on these."""
