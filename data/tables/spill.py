"""Tables that outgrow memory: grouping and first-seen tests in a temporary SQLite database.

The database is SQLite's own kind of temporary file (named ""): it is held in a small cache, goes to the disk
(`$SQLITE_TMPDIR`, else `$TMPDIR`, else /var/tmp or /tmp) when it outgrows that, and is gone when it is closed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from typing import Any

from pipeline.errors import DataError

CACHE_KIB = 8192


@contextmanager
def _temporary() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect("", isolation_level=None)
    try:
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("PRAGMA temp_store = FILE")  # where sorting spills to
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        yield connection
    except sqlite3.Error as error:
        raise DataError(
            f"the temporary database cannot be used: {error}",
            hint="make room where temporary files lie, or name another folder in SQLITE_TMPDIR",
        ) from error
    finally:
        connection.close()


def _digest(key: str) -> bytes:
    """16 bytes: two of a billion keys share them with a chance of 1e-21."""
    return sha256(key.encode()).digest()[:16]


class Grouping:
    """JSON values grouped by key: first all are added, then the groups are read, in order of first appearance."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE groups (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        connection.execute("CREATE TABLE items (number INTEGER, value TEXT)")
        self.groups = 0

    def add(self, key: str, value: Any) -> None:
        digest = _digest(key)
        found = self._connection.execute("SELECT number FROM groups WHERE key = ?", (digest,)).fetchone()
        number = found[0] if found else self.groups
        if not found:
            self._connection.execute("INSERT INTO groups VALUES (?, ?)", (digest, number))
            self.groups += 1
        self._connection.execute("INSERT INTO items VALUES (?, ?)", (number, json.dumps(value)))

    def largest(self) -> int:
        """Values in the largest group; 0 where there is none."""
        counts = "SELECT max(c) FROM (SELECT count(*) AS c FROM items GROUP BY number)"
        return int(self._connection.execute(counts).fetchone()[0] or 0)

    def __iter__(self) -> Iterator[list[Any]]:
        rows = self._connection.execute("SELECT number, value FROM items ORDER BY number, rowid")
        for _, group in groupby(rows, key=itemgetter(0)):
            yield [json.loads(value) for _, value in group]


@contextmanager
def grouping() -> Iterator[Grouping]:
    """A `Grouping` whose rows lie on the disk as far as they do not fit into a few megabytes."""
    with _temporary() as connection:
        yield Grouping(connection)


class Seen:
    """Which keys came before."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def first(self, key: str) -> bool:
        """Whether `key` is new."""
        return self._connection.execute("INSERT OR IGNORE INTO keys VALUES (?)", (_digest(key),)).rowcount == 1


@contextmanager
def seen() -> Iterator[Seen]:
    """A `Seen` that lies on the disk as far as it does not fit into a few megabytes."""
    with _temporary() as connection:
        yield Seen(connection)
