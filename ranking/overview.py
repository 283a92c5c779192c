"""The numbers of the admin page: everyone's progress, pace and agreement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

from ranking.assignment import Progress, progress
from ranking.campaign import Campaign, Item
from ranking.export import counting
from ranking.store import Store, Stored


@dataclass
class Alike:
    """Pairs of answers that two rankings both order strictly, and how many of them are ordered alike."""

    alike: int = 0
    pairs: int = 0

    def add(self, a: Sequence[int], b: Sequence[int]) -> None:
        for i, j in combinations(range(len(a)), 2):
            product = (a[i] - a[j]) * (b[i] - b[j])
            self.pairs += product != 0
            self.alike += product > 0

    @property
    def share(self) -> float | None:
        return self.alike / self.pairs if self.pairs else None


@dataclass
class Annotator:
    """An annotator's counts. `with_others` is agreement on overlaps, `with_self` on repetitions."""

    name: str
    ranked: int = 0
    repeats: int = 0
    skipped: int = 0
    flagged: int = 0
    all_bad: int = 0
    seconds: list[float] = field(default_factory=list)
    with_others: Alike = field(default_factory=Alike)
    with_self: Alike = field(default_factory=Alike)

    @property
    def median_seconds(self) -> float | None:
        return median(self.seconds) if self.seconds else None

    @property
    def per_hour(self) -> float | None:
        """Items per hour of activity on the page."""
        spent = sum(self.seconds)
        return 3600 * len(self.seconds) / spent if spent else None


@dataclass(frozen=True)
class Overview:
    """`agreement` is over all pairs of annotators of an item, each counted once."""

    progress: Progress
    annotators: list[Annotator]
    agreement: Alike
    disputed: list[tuple[Item, Alike]]
    remarks: list[Stored]
    elsewhere: int


def overview(store: Store, campaign: Campaign, most: int = 10) -> Overview:
    """The overview, with up to `most` disputed items and up to `most` flags and notes."""
    people = {name: Annotator(name) for name in campaign.annotators}
    everything = store.submitted(campaign.name)
    for stored in everything:
        if stored.task.annotator in people and stored.task.item.key in campaign.items:
            _count(people[stored.task.annotator], stored)
    counted = counting(store, campaign)
    by_item: dict[str, list[Stored]] = defaultdict(list)
    for stored in counted:
        by_item[stored.task.item.key].append(stored)
    compared = [(group[0].task.item, _compare(group, people)) for group in by_item.values()]
    agreement = Alike(sum(b.alike for _, b in compared), sum(b.pairs for _, b in compared))
    disputes = [(item, between) for item, between in compared if between.pairs]
    disputes.sort(key=lambda dispute: (dispute[1].share or 0.0, -dispute[1].pairs))
    ranked = sum(stored.assessment.ranks is not None for stored in everything)
    remarks = [s for s in everything if s.assessment.flag is not None or s.assessment.note]
    return Overview(
        progress(store, campaign),
        list(people.values()),
        agreement,
        [dispute for dispute in disputes if (dispute[1].share or 0.0) < 1][:most],
        sorted(remarks, key=lambda s: -s.received_at)[:most],
        ranked - len(counted),
    )


def _count(person: Annotator, stored: Stored) -> None:
    assessment = stored.assessment
    person.flagged += assessment.flag is not None
    if assessment.ranks is None:
        person.skipped += 1
        return
    person.repeats += stored.task.repeat
    person.ranked += not stored.task.repeat
    person.all_bad += assessment.all_bad
    person.seconds.append(stored.seconds)


def _compare(submissions: Iterable[Stored], people: dict[str, Annotator]) -> Alike:
    """Agreement on one item: added to each annotator, and returned for the first rankings of all."""
    first = {s.task.annotator: s.assessment.ranks or [] for s in submissions if not s.task.repeat}
    for stored in submissions:
        name, ranks = stored.task.annotator, stored.assessment.ranks or []
        if stored.task.repeat and name in first:
            people[name].with_self.add(first[name], ranks)
    between = Alike()
    for (a, ranks_a), (b, ranks_b) in combinations(first.items(), 2):
        between.add(ranks_a, ranks_b)
        people[a].with_others.add(ranks_a, ranks_b)
        people[b].with_others.add(ranks_a, ranks_b)
    return between
