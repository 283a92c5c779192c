from __future__ import annotations

from pathlib import Path

from ranking_site import ask

from ranking.assignment import next_task
from ranking.campaign import Campaign
from ranking.overview import overview
from ranking.store import Assessment, Store

ORDERS = {"ana": [1, 2, 3, 4], "ben": [1, 2, 4, 3], "cem": [1, 1, 1, 2]}


def test_agreement_counts_each_pair_of_annotators_once(tmp_path: Path) -> None:
    """Per item, ana and ben agree on 5 of 6 strict pairs, ana and cem on 3 of 3, ben and cem on 2 of 3."""
    campaign = Campaign("rank", [ask(0), ask(1)], list(ORDERS), overlap=3)
    store = Store(tmp_path / "r.sqlite")
    store.open(campaign)
    for number in range(2):
        for name, ranks in ORDERS.items():
            task = next_task(store, campaign, name)
            assert task is not None
            store.submit(task.id, f"{name} {number}".ljust(16, "."), Assessment(ranks=ranks))
    summary = overview(store, campaign)
    assert (summary.agreement.alike, summary.agreement.pairs) == (2 * (5 + 3 + 2), 2 * (6 + 3 + 3))
    assert {a.name: (a.with_others.alike, a.with_others.pairs) for a in summary.annotators} == {
        "ana": (2 * (5 + 3), 2 * (6 + 3)),
        "ben": (2 * (5 + 2), 2 * (6 + 3)),
        "cem": (2 * (3 + 2), 2 * (3 + 3)),
    }
    assert [between.pairs for _, between in summary.disputed] == [12, 12]
