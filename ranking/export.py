"""What the database holds as `Ranking`s: the artifact of the `rank` stage, whoever made the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.schema import Ranking
from ranking.campaign import Campaign, Source
from ranking.store import Store, Stored


def counting(store: Store, campaign: Campaign) -> list[Stored]:
    """The newest word on each task that counts: of an active item, by an annotator of the campaign, not a skip."""
    return [
        stored
        for stored in store.submitted(campaign.name)
        if stored.answer.ranks is not None
        and stored.task.item.key in campaign.items
        and stored.task.annotator in campaign.annotators
    ]


def rankings(store: Store, campaign: Campaign) -> Iterator[Ranking]:
    """In the order of the campaign's sources; an annotator's repetition comes after their first ranking."""
    by_item: dict[str, list[Stored]] = {}
    for stored in counting(store, campaign):
        by_item.setdefault(stored.task.item.key, []).append(stored)
    for source in campaign.sources:
        for stored in by_item.pop(source.item.key, []) if source.item else []:
            yield _ranking(source, stored)


def _ranking(source: Source, stored: Stored) -> Ranking:
    """Answers that are the same text share what was said of it."""
    answer, task = stored.answer, stored.task
    at = [task.item.completions.index(text) for text in source.completions]
    assert answer.ranks is not None
    metadata: dict[str, Any] = {
        "seconds": round(stored.seconds, 1),
        "shown": [task.shown.index(i) for i in at],
        "repeat": task.repeat,
        "labels": [answer.labels[i] if answer.labels else [] for i in at],
        "flag": answer.flag is not None,
        "all_bad": answer.all_bad,
        "revisions": stored.revisions,
    }
    if answer.flag:
        metadata["flag_reason"] = answer.flag
    if answer.note:
        metadata["note"] = answer.note
    ratings: list[float] | None = None
    if answer.ratings and None not in answer.ratings:
        ratings = [float(answer.ratings[i] or 0) for i in at]
    elif answer.ratings:  # `Ranking.ratings` has one for each answer or none at all
        metadata["ratings"] = [answer.ratings[i] for i in at]
    return Ranking(
        prompt=source.prompt,
        completions=source.completions,
        ranks=[answer.ranks[i] for i in at],
        annotator=task.annotator,
        human=True,
        ratings=ratings,
        models=source.models,
        split=source.split,
        metadata=metadata,
    )
