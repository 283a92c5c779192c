"""The rankings in the database as `Ranking`s, for the `rank` stage and the exports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.schema import Ranking, same_text
from ranking.campaign import Campaign, Source
from ranking.store import Store, Stored


def counting(store: Store, campaign: Campaign) -> list[Stored]:
    """The newest submissions that count: rankings of active items by the campaign's annotators."""
    return [
        stored
        for stored in store.submitted(campaign.name)
        if stored.assessment.ranks is not None
        and stored.task.item.key in campaign.items
        and stored.task.annotator in campaign.annotators
    ]


def rankings(store: Store, campaign: Campaign) -> Iterator[Ranking]:
    """All rankings in the order of the sources; an annotator's repetition comes after their first ranking."""
    by_item: dict[str, list[Stored]] = {}
    for stored in counting(store, campaign):
        by_item.setdefault(stored.task.item.key, []).append(stored)
    for source in campaign.sources:
        for stored in by_item.pop(source.item.key, []) if source.item else []:
            yield _ranking(source, stored)


def _ranking(source: Source, stored: Stored) -> Ranking:
    """The ranking of a source. Answers with equal texts share rank, rating and labels."""
    assessment, task = stored.assessment, stored.task
    places = {same_text(text): place for place, text in enumerate(task.item.completions)}
    at = [places[same_text(text)] for text in source.completions]
    assert assessment.ranks is not None
    metadata: dict[str, Any] = {
        "seconds": round(stored.seconds, 1),
        "shown": [task.shown.index(i) for i in at],
        "repeat": task.repeat,
        "labels": [assessment.labels[i] if assessment.labels else [] for i in at],
        "flag": assessment.flag is not None,
        "all_bad": assessment.all_bad,
        "revisions": stored.revisions,
    }
    if assessment.flag:
        metadata["flag_reason"] = assessment.flag
    if assessment.note:
        metadata["note"] = assessment.note
    ratings: list[float] | None = None
    if assessment.ratings and None not in assessment.ratings:
        ratings = [float(assessment.ratings[i] or 0) for i in at]
    elif assessment.ratings:  # `Ranking.ratings` has one for each answer or none at all
        metadata["ratings"] = [assessment.ratings[i] for i in at]
    return Ranking(
        prompt=source.prompt,
        completions=source.completions,
        ranks=[assessment.ranks[i] for i in at],
        annotator=task.annotator,
        human=True,
        ratings=ratings,
        models=source.models,
        split=source.split,
        metadata=metadata,
    )
