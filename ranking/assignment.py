"""Assigns items to annotators.

- Each item goes to `overlap` different annotators. An item that another annotator has open counts as taken for
  `lease` seconds. Items with a ranking come first, so that a campaign that ends early has overlaps.
- Annotators get a share `repeats` of their own items a second time, with other items in between.
- A skipped item goes to another annotator, as long as there is one.
"""

from __future__ import annotations

import json
import math
import random
import sqlite3
from dataclasses import dataclass

from ranking.campaign import Campaign
from ranking.store import Store, Task

GAP = 8
"""The least number of items between an item and its repetition."""


@dataclass(frozen=True)
class Progress:
    """Rankings so far, of those wanted."""

    done: int
    wanted: int

    @property
    def complete(self) -> bool:
        return self.done >= self.wanted


def progress(store: Store, campaign: Campaign) -> Progress:
    """Rankings that count. Wanted are `overlap` per item, or fewer where too many annotators skipped it."""
    rows = store.read(
        """SELECT COALESCE(SUM(t.state = 'ranked'), 0), COALESCE(SUM(t.state = 'skipped'), 0)
        FROM active a LEFT JOIN tasks t ON t.campaign = a.campaign AND t.item = a.item AND NOT t.repeat
          AND t.annotator IN (SELECT value FROM json_each(?))
        WHERE a.campaign = ? GROUP BY a.item""",
        json.dumps(list(campaign.annotators)),
        campaign.name,
    )
    done = wanted = 0
    for ranked, skipped in rows:
        possible = min(campaign.overlap, len(campaign.annotators) - skipped)
        wanted += possible
        done += min(ranked, possible)
    return Progress(done, wanted)


def share(store: Store, campaign: Campaign, annotator: str) -> Progress:
    """The annotator's rankings, repetitions included, and how many there will be if all annotators do the same
    number. Skipped items are not rankings."""
    rows = store.read(
        """SELECT COALESCE(SUM(t.annotator = :me AND t.state = 'ranked' AND NOT t.repeat), 0),
          COALESCE(SUM(t.annotator = :me AND t.state = 'ranked' AND t.repeat), 0),
          COALESCE(SUM(t.annotator = :me AND t.state = 'skipped' AND NOT t.repeat), 0),
          COALESCE(SUM(t.annotator != :me AND t.state = 'ranked' AND NOT t.repeat), 0)
        FROM active a LEFT JOIN tasks t ON t.campaign = a.campaign AND t.item = a.item
          AND t.annotator IN (SELECT value FROM json_each(:all))
        WHERE a.campaign = :campaign GROUP BY a.item""",
        campaign=campaign.name,
        me=annotator,
        all=json.dumps(list(campaign.annotators)),
    )
    done = sum(mine for mine, *_ in rows)
    repeats = sum(repeat for _, repeat, *_ in rows)
    available = sum(not mine and not skipped and others < campaign.overlap for mine, _, skipped, others in rows)
    equal = math.ceil(progress(store, campaign).wanted / len(campaign.annotators))
    wanted = min(done + available, max(equal, done + bool(available)))
    again = max(repeats, int(campaign.repeats * wanted) if wanted > GAP else 0)
    return Progress(done + repeats, wanted + again)


def next_task(store: Store, campaign: Campaign, annotator: str) -> Task | None:
    """The annotator's open item, or else a repetition or a new one; None when there is nothing for them now."""
    now = store.now()
    with store.transaction() as db:
        number = (
            _open(db, campaign, annotator, now)
            or _repetition(db, campaign, annotator, now)
            or _new(db, campaign, annotator, now)
        )
        if number is None:
            return None
        db.execute(
            "UPDATE tasks SET shown_at = ?, leased_until = ? WHERE id = ?", (now, now + campaign.lease, number)
        )
    return store.task(number)


def show_again(store: Store, task: Task) -> None:
    """Restarts the clock of an earlier item that is opened again."""
    with store.transaction() as db:
        db.execute("UPDATE tasks SET shown_at = ? WHERE id = ?", (store.now(), task.id))


_TAKEN = """(SELECT COUNT(*) FROM tasks o WHERE o.campaign = a.campaign AND o.item = a.item AND NOT o.repeat
  AND o.annotator != :me AND o.annotator IN (SELECT value FROM json_each(:all))
  AND (o.state = 'ranked' OR o.state = 'open' AND o.leased_until > :now))"""
"""SQL: how many other annotators have ranked an active item, or have it open."""


def _values(campaign: Campaign, annotator: str, now: float) -> dict[str, object]:
    everyone = json.dumps(list(campaign.annotators))
    return {
        "campaign": campaign.name,
        "me": annotator,
        "all": everyone,
        "now": now,
        "overlap": campaign.overlap,
    }


def _open(db: sqlite3.Connection, campaign: Campaign, annotator: str, now: float) -> int | None:
    values = _values(campaign, annotator, now)
    db.execute(
        f"""UPDATE tasks SET state = 'lapsed' WHERE id IN (
          SELECT t.id FROM tasks t JOIN active a USING (campaign, item)
          WHERE t.campaign = :campaign AND t.annotator = :me AND t.state = 'open' AND NOT t.repeat
            AND t.leased_until < :now AND {_TAKEN} >= :overlap)""",
        values,
    )
    row = db.execute(
        """SELECT t.id FROM tasks t JOIN active a USING (campaign, item)
        WHERE t.campaign = :campaign AND t.annotator = :me AND t.state = 'open' ORDER BY t.id LIMIT 1""",
        values,
    ).fetchone()
    return row[0] if row else None


def _repetition(db: sqlite3.Connection, campaign: Campaign, annotator: str, now: float) -> int | None:
    ranked = db.execute(
        """SELECT t.item, t.repeat, t.shown FROM tasks t JOIN active a USING (campaign, item)
        WHERE t.campaign = ? AND t.annotator = ? AND t.state = 'ranked' ORDER BY t.id""",
        (campaign.name, annotator),
    ).fetchall()
    first = [(item, shown) for item, repeat, shown in ranked if not repeat]
    repeated = {
        item
        for (item,) in db.execute(
            "SELECT item FROM tasks WHERE campaign = ? AND annotator = ? AND repeat", (campaign.name, annotator)
        )
    }
    if len(repeated) >= int(campaign.repeats * len(first)):
        return None
    candidates = [(item, shown) for item, shown in first[:-GAP] if item not in repeated]
    if not candidates:
        return None
    rng = random.Random(f"repeat {campaign.name} {annotator} {len(repeated)}")
    item, before = rng.choice(candidates)
    return _assign(db, campaign, item, annotator, now, before=json.loads(before))


def _new(db: sqlite3.Connection, campaign: Campaign, annotator: str, now: float) -> int | None:
    row = db.execute(
        f"""SELECT item FROM (
          SELECT a.item, a.place, {_TAKEN} AS taken FROM active a
          WHERE a.campaign = :campaign AND NOT EXISTS (
            SELECT 1 FROM tasks t WHERE t.campaign = a.campaign AND t.item = a.item AND t.annotator = :me
              AND t.state != 'lapsed'))
        WHERE taken < :overlap ORDER BY taken DESC, place LIMIT 1""",
        _values(campaign, annotator, now),
    ).fetchone()
    return _assign(db, campaign, row[0], annotator, now) if row else None


def _assign(
    db: sqlite3.Connection,
    campaign: Campaign,
    item: str,
    annotator: str,
    now: float,
    before: list[int] | None = None,
) -> int:
    """Creates a task, or opens a lapsed one, and returns its id. Its order on the screen is random, and other than
    `before` for a repetition."""
    rng = random.Random(f"order {campaign.name} {item} {annotator} {before}")
    shown = list(range(len(campaign.items[item].completions)))
    rng.shuffle(shown)
    while shown == before:
        rng.shuffle(shown)
    [(number,)] = db.execute(
        "INSERT INTO tasks (campaign, item, annotator, repeat, shown, given_at, shown_at, leased_until, state) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'open') "
        "ON CONFLICT (campaign, item, annotator, repeat) DO UPDATE SET state = 'open' RETURNING id",
        (campaign.name, item, annotator, before is not None, json.dumps(shown), now, now, now + campaign.lease),
    ).fetchall()
    return int(number)
