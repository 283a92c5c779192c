"""The database of people's rankings: one SQLite file, synced to the disk before a submission is confirmed.

`submissions` is append-only, enforced by triggers: a correction is a new row, and the newest row of a task counts.
`tasks` holds which item each annotator was shown, and in which order.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import StageError
from ranking.campaign import Campaign, Item

VERSION = 1
SCHEMA = """
CREATE TABLE items (key TEXT PRIMARY KEY, prompt TEXT NOT NULL, completions TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE active (
  campaign TEXT NOT NULL, item TEXT NOT NULL REFERENCES items, place INTEGER NOT NULL,
  PRIMARY KEY (campaign, item)
) WITHOUT ROWID;
CREATE TABLE tasks (
  id INTEGER PRIMARY KEY, campaign TEXT NOT NULL, item TEXT NOT NULL REFERENCES items, annotator TEXT NOT NULL,
  repeat INTEGER NOT NULL, shown TEXT NOT NULL, given_at REAL NOT NULL, shown_at REAL NOT NULL,
  leased_until REAL NOT NULL, state TEXT NOT NULL CHECK (state IN ('open', 'ranked', 'skipped', 'lapsed')),
  UNIQUE (campaign, item, annotator, repeat)
);
CREATE INDEX tasks_by_annotator ON tasks (campaign, annotator, state);
CREATE TABLE submissions (
  id INTEGER PRIMARY KEY, submission TEXT NOT NULL UNIQUE, task INTEGER NOT NULL REFERENCES tasks,
  kind TEXT NOT NULL CHECK (kind IN ('ranked', 'skipped')), content TEXT NOT NULL,
  shown_at REAL NOT NULL, received_at REAL NOT NULL
);
CREATE INDEX submissions_by_task ON submissions (task, id);
CREATE TRIGGER submissions_stay BEFORE UPDATE ON submissions BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER submissions_never_go BEFORE DELETE ON submissions BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""

Kind = Literal["ranked", "skipped"]


@dataclass(frozen=True)
class Assessment:
    """An annotator's ranking of an item. Lists go by the item's completions, not by the order on the screen.

    Attributes:
        ranks: dense, 1 is best, equal ranks are ties; None for a skipped item.
        all_bad: whether no answer is acceptable; the ranks are then all equal.
        ratings: 1 to 7 per answer, None where there is none.
        labels: those ticked for each answer.
        flag: the reason for flagging the item ("" without one); None for an item that is not flagged.
        seconds: of activity, as counted by the page.
        moves: how many changes of the order were made on the page.
    """

    ranks: list[int] | None
    all_bad: bool = False
    ratings: list[int | None] | None = None
    labels: list[list[str]] | None = None
    flag: str | None = None
    note: str = ""
    seconds: float | None = None
    moves: int | None = None

    @property
    def kind(self) -> Kind:
        return "skipped" if self.ranks is None else "ranked"


@dataclass(frozen=True)
class Task:
    """An item assigned to an annotator; `shown[p]` is the completion at position p of the screen."""

    id: int
    campaign: str
    item: Item
    annotator: str
    repeat: bool
    shown: list[int]
    given_at: float
    state: str


@dataclass(frozen=True)
class Stored:
    """A task's newest submission; `seconds` are of all of its revisions together."""

    task: Task
    assessment: Assessment
    revisions: int
    seconds: float
    received_at: float


_DEFAULTS = vars(Assessment(ranks=None))
"""Values that are not stored."""


class Conflict(Exception):
    """A submission id that was used for another submission."""


class Store:
    """The database. One object serves all threads of a process; several processes may use one file.

    Args:
        path: of the file, created for this user alone where it does not exist.
        now: the clock, in seconds.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.path, self.now = path, now
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            with self.transaction() as db:
                (version,) = db.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in _statements(SCHEMA):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise StageError(
                f"the rankings cannot be read: {error}", where=str(path), hint="restore the file from a copy"
            ) from error
        if version > VERSION:
            self._db.close()
            raise StageError(
                f"the database was written by a newer version of tutelage (format {version})",
                where=str(path),
                hint="update tutelage",
            )

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction, synced to the disk when it ends."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def read(self, query: str, *values: Any, **named: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(query, named or values).fetchall()

    def open(self, campaign: Campaign) -> None:
        """Makes the campaign's items the active ones under its name."""
        with self.transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO items VALUES (?, ?, ?)",
                (
                    (key, json.dumps(item.prompt), json.dumps(item.completions))
                    for key, item in campaign.items.items()
                ),
            )
            db.execute("DELETE FROM active WHERE campaign = ?", (campaign.name,))
            db.executemany(
                "INSERT INTO active VALUES (?, ?, ?)",
                ((campaign.name, key, place) for place, key in enumerate(campaign.items)),
            )

    def task(self, number: int) -> Task | None:
        rows = self.read(f"SELECT {_COLUMNS} FROM tasks t JOIN items i ON i.key = t.item WHERE t.id = ?", number)
        return _task(rows[0]) if rows else None

    def submit(self, task: int, submission: str, assessment: Assessment) -> bool:
        """Stores an assessment; returns False when this submission was stored before.

        Raises `Conflict` when its id was used for another task or with another assessment.
        """
        content = json.dumps({name: value for name, value in vars(assessment).items() if value != _DEFAULTS[name]})
        with self.transaction() as db:
            known = db.execute(
                "SELECT task, kind, content FROM submissions WHERE submission = ?", (submission,)
            ).fetchone()
            if known:
                if known != (task, assessment.kind, content):
                    raise Conflict(submission)
                return False
            now = self.now()
            db.execute(
                "INSERT INTO submissions (submission, task, kind, content, shown_at, received_at) "
                "SELECT ?, id, ?, ?, shown_at, ? FROM tasks WHERE id = ?",
                (submission, assessment.kind, content, now, task),
            )
            db.execute("UPDATE tasks SET state = ? WHERE id = ?", (assessment.kind, task))
        return True

    def submitted(self, campaign: str, annotator: str | None = None) -> list[Stored]:
        """The newest submission of each task of the campaign, oldest task first; also of items no longer active."""
        where = "WHERE t.campaign = ? AND (? IS NULL OR t.annotator = ?)"
        return self._newest(where, campaign, annotator, annotator)

    def newest(self) -> int:
        """The number of the newest submission: it changes whenever something is submitted."""
        [(number,)] = self.read("SELECT COALESCE(MAX(id), 0) FROM submissions")
        return int(number)

    def finished(self, campaign: str, annotator: str) -> list[int]:
        """The annotator's tasks that they ranked or skipped, oldest first."""
        rows = self.read(
            "SELECT id FROM tasks WHERE campaign = ? AND annotator = ? AND state IN ('ranked', 'skipped') "
            "ORDER BY id",
            campaign,
            annotator,
        )
        return [number for (number,) in rows]

    def stored(self, task: Task) -> Stored | None:
        """A task's newest submission."""
        return next(iter(self.stored_all([task.id])), None)

    def stored_all(self, tasks: Sequence[int]) -> list[Stored]:
        return self._newest("WHERE t.id IN (SELECT value FROM json_each(?))", json.dumps(list(tasks)))

    def _newest(self, where: str, *values: Any) -> list[Stored]:
        rows = self.read(
            f"""SELECT {_COLUMNS}, s.content, s.shown_at, s.received_at
            FROM submissions s JOIN tasks t ON t.id = s.task JOIN items i ON i.key = t.item
            {where} ORDER BY t.id, s.id""",
            *values,
        )
        newest: dict[int, Stored] = {}
        for *columns, content, shown_at, received_at in rows:
            assessment = Assessment(**{"ranks": None, **json.loads(content)})
            number = columns[0]
            before = newest.get(number)
            newest[number] = Stored(
                before.task if before else _task(columns),
                assessment,
                (before.revisions if before else 0) + 1,
                (before.seconds if before else 0.0) + _seconds(assessment, received_at - shown_at),
                received_at,
            )
        return list(newest.values())


_COLUMNS = "t.id, t.campaign, i.prompt, i.completions, t.annotator, t.repeat, t.shown, t.given_at, t.state"

LONGEST = 600.0
"""The most seconds that count for an item where the page did not count them."""


def _seconds(assessment: Assessment, elapsed: float) -> float:
    """The page's count, capped by the time since the item was last shown; that time where there is no count."""
    return min(LONGEST, elapsed) if assessment.seconds is None else min(assessment.seconds, elapsed + 5)


def _task(row: Sequence[Any]) -> Task:
    number, campaign, prompt, completions, annotator, repeat, shown, given_at, state = row
    item = Item(json.loads(prompt), json.loads(completions))
    return Task(number, campaign, item, annotator, bool(repeat), json.loads(shown), given_at, state)


def _statements(script: str) -> Iterator[str]:
    """The script's statements; `executescript` would commit between them."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
