"""Campaigns: the items to rank, the annotators and the settings of the page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from data.schema import Message, Split, same_text
from pipeline.config.rank import AppConfig


@dataclass(frozen=True)
class Item:
    """A prompt and its distinct answers in a fixed order, whatever models wrote them.

    It is identified by its content, so that a ranking counts wherever the same answers to the same prompt come up.
    """

    prompt: list[Message]
    completions: list[str]

    @cached_property
    def key(self) -> str:
        text = json.dumps([[[m["role"], m["content"]] for m in self.prompt], self.completions])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Source:
    """A prompt and sampled answers, in the order of sampling, perhaps with duplicates (`same_text`)."""

    prompt: list[Message]
    completions: list[str]
    models: list[str] | None = None
    split: Split = "train"

    @cached_property
    def item(self) -> Item | None:
        """The item to rank; None when all answers are equal."""
        by_text = {same_text(text): text for text in sorted(self.completions, reverse=True)}
        distinct = sorted(by_text.values())
        return Item(self.prompt, distinct) if len(distinct) > 1 else None


@dataclass(frozen=True)
class Campaign:
    """A set of items and how they are ranked.

    Attributes:
        name: its rankings are stored under this name; another name asks another question.
        sources: in the order of assignment. Of equal items the first counts.
        annotators: the people who rank. Rankings by others under this name do not count.
        overlap: how many of them rank each item.
        repeats: share of an annotator's items that they rank twice.
        lease: seconds for which an assigned item is reserved.
        language: of the annotators' page.
        title: what the admin calls it, such as the recipe's name. Annotators do not see it.
    """

    name: str
    sources: Sequence[Source]
    annotators: Sequence[str]
    overlap: int = 2
    repeats: float = 0.0
    labels: Sequence[str] = ()
    ratings: bool = False
    guidelines: str = ""
    lease: float = 1800.0
    language: str = "en"
    title: str = ""
    items: dict[str, Item] = field(init=False, repr=False)
    """By key, in order."""

    def __post_init__(self) -> None:
        items = (source.item for source in self.sources)
        object.__setattr__(self, "items", {item.key: item for item in items if item is not None})

    @classmethod
    def of(cls, name: str, sources: Iterable[Source], config: AppConfig, title: str = "") -> Campaign:
        return cls(
            name=name,
            sources=list(sources),
            annotators=config.annotators,
            overlap=config.overlap,
            repeats=config.repeats,
            labels=config.labels,
            ratings=config.ratings,
            guidelines=config.guidelines,
            lease=60 * config.lease_minutes,
            language=config.language,
            title=title or name,
        )
