"""Says how much work a campaign is, before people are invited to a large one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

from pipeline.errors import StageError
from ranking import assignment
from ranking.campaign import Campaign
from ranking.store import Store

MANY = 200
"""Open items above which the work is announced first."""
ASSUMED = 60.0
"""Seconds per ranking, as long as the database holds fewer than `ENOUGH`. An assumption."""
ENOUGH = 10


def announce(store: Store, campaign: Campaign, say: Callable[[str], None]) -> None:
    """For more than `MANY` open items, says how many hours they are for each annotator. On a terminal it asks
    whether to serve them; elsewhere the command continues.

    Raises `StageError` if the user declines.
    """
    open_items = len(campaign.items)
    missing = assignment.progress(store, campaign)
    if open_items <= MANY or missing.wanted - missing.done <= MANY:
        return
    say(estimate(store, campaign))
    if not sys.stdin.isatty():
        return
    say("Serve them? [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise StageError(
            "nothing was served",
            hint="for fewer items set collect.num_prompts (judge: --prompts; annotate: a shorter file), or name "
            "more annotators",
        )


def estimate(store: Store, campaign: Campaign) -> str:
    """How many rankings are missing, and how many hours of work they are for each annotator."""
    missing = assignment.progress(store, campaign)
    rankings = (missing.wanted - missing.done) * (1 + campaign.repeats)
    people = len(campaign.annotators)
    times = [stored.seconds for stored in store.submitted(campaign.name) if stored.assessment.ranks is not None]
    measured = len(times) >= ENOUGH
    seconds = median(times) if measured else ASSUMED
    hours = rankings * seconds / people / 3600
    each = f"about {hours:,.0f} hours for each annotator" if hours >= 2 else f"about {60 * hours:.0f} minutes each"
    pace = (
        f"at {seconds:.0f} s per ranking, the median so far"
        if measured
        else f"if a ranking takes {seconds:.0f} s, which nobody has measured yet"
    )
    return (
        f"{len(campaign.items):,} items, {campaign.overlap} rankings per item, {people} "
        f"annotator{'s' * (people > 1)}: {each} ({pace})"
    )
