"""Grouping and first-seen tests for tables larger than memory, in a temporary SQLite database.

The database is one of SQLite's own temporary files (named ""): it lives in a small cache, spills to the disk
(`$SQLITE_TMPDIR`, else `$TMPDIR`, else /var/tmp or /tmp), and is removed when it is closed.
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
def temporary(cache_kib: int = CACHE_KIB) -> Iterator[sqlite3.Connection]:
    """A temporary database. Raises `DataError` if it cannot be written."""
    connection = sqlite3.connect("", isolation_level=None)
    try:
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        connection.execute("PRAGMA temp_store = FILE")  # where sorting spills to
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        yield connection
    except sqlite3.Error as error:
        raise DataError(
            f"the temporary database cannot be used: {error}",
            hint="free space in the folder of temporary files, or set SQLITE_TMPDIR to another folder",
        ) from error
    finally:
        connection.close()


def digest(key: str) -> bytes:
    """16 bytes. Among a billion keys the chance of a collision is 1e-21."""
    return sha256(key.encode()).digest()[:16]


class Grouping:
    """JSON values grouped by key: first all are added, then the groups are read, in order of first appearance."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE groups (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        connection.execute("CREATE TABLE items (number INTEGER, value TEXT)")
        self.groups = 0

    def add(self, key: str, value: Any) -> None:
        hashed = digest(key)
        group = self._connection.execute("SELECT number FROM groups WHERE key = ?", (hashed,)).fetchone()
        number = group[0] if group else self.groups
        if not group:
            self._connection.execute("INSERT INTO groups VALUES (?, ?)", (hashed, number))
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
    """A `Grouping` that spills to the disk beyond a few megabytes."""
    with temporary() as connection:
        yield Grouping(connection)


class Seen:
    """The set of keys seen so far."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def first(self, key: str) -> bool:
        """Whether `key` is new."""
        return self._connection.execute("INSERT OR IGNORE INTO keys VALUES (?)", (digest(key),)).rowcount == 1


@contextmanager
def seen() -> Iterator[Seen]:
    """A `Seen` that spills to the disk beyond a few megabytes."""
    with temporary() as connection:
        yield Seen(connection)


class Values:
    """The first JSON value of each key."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE first (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def setdefault(self, key: str, value: Any) -> Any:
        """The value of a key that has one. For a new key, stores `value` and returns None."""
        earlier = self.get(key)
        if earlier is None:
            self._connection.execute("INSERT INTO first VALUES (?, ?)", (digest(key), json.dumps(value)))
        return earlier

    def get(self, key: str) -> Any:
        """The value of a key; None for a new one."""
        row = self._connection.execute("SELECT value FROM first WHERE key = ?", (digest(key),)).fetchone()
        return None if row is None else json.loads(row[0])


@contextmanager
def values() -> Iterator[Values]:
    """A `Values` that spills to the disk beyond a few megabytes."""
    with temporary() as connection:
        yield Values(connection)
