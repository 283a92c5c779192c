"""Rows that repeat an earlier one, exactly or nearly.

Exact duplicates are equal in all their texts, ignoring case, white space and Unicode form. Near-duplicates are
alike in each of their texts (`data.shingles.Text`), so demonstrations with one prompt and two answers are not.
Candidates come from MinHash signatures in bands (locality-sensitive hashing: Broder 1997; Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", chapter 3), and each is compared in full, so that what is reported is true.
What is missed: of pairs at a similarity of 0.8 and a threshold of 0.8 about 5 %, of pairs at 0.9 less than 0.1 %.
The index is a temporary SQLite database, so memory does not grow with the table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from sqlite3 import Connection

import numpy as np
from datasketch import MinHash, MinHashLSH

from data.overlaps import EXAMPLES, SHOWN, Kind, start
from data.schema import Split
from data.shingles import Text, jaccard, shingles
from data.tables.spill import digest, temporary
from pipeline.config.data import DuplicatesConfig

PERMUTATIONS = 128
"""Hash functions of a MinHash signature."""
MISSES = 0.95
"""Weight of missed pairs against wrong candidates, which are compared and cost only time."""
CANDIDATES = 32
"""Rows of one band that a row is compared with."""
CACHE_KIB = 2048
"""Of the index, in memory."""

_OFFSET = np.uint64(0x9E3779B97F4A7C15)

REASONS: dict[Kind, str] = {"exact": "duplicate", "near": "near-duplicate"}
"""Why a row is left out, by kind."""
HINTS: dict[Kind, str] = {kind: f"data.duplicates.{kind}: report keeps them" for kind in REASONS}


@dataclass(frozen=True)
class Duplicate:
    """A row that repeats another one.

    Attributes:
        table: what the row is: demonstrations, prompts or answers.
        row: its number in its source.
        of: the number of the row that it repeats; the same for two answers of one ranking.
        similarity: 1 for an exact duplicate; otherwise of the texts that differ most.
        text, first: the starts of the text and of the earlier one.
    """

    table: str
    kind: Kind
    split: Split
    row: int
    of: int
    similarity: float
    text: str
    first: str


class Duplicates:
    """Finds and counts duplicates in one kind of rows.

    Attributes:
        counts: by split and kind.
        examples: the first of each kind.
    """

    def __init__(self, connection: Connection, config: DuplicatesConfig, table: str) -> None:
        self.config, self.table = config, table
        self.counts: Counter[tuple[Split, Kind]] = Counter()
        self.examples: list[Duplicate] = []
        self._connection = connection
        self._lsh = MinHashLSH(config.threshold, PERMUTATIONS, weights=(1 - MISSES, MISSES))
        self._empty = MinHash(PERMUTATIONS, hashfunc=int)
        connection.execute("CREATE TABLE items (number INTEGER PRIMARY KEY, row INTEGER, texts TEXT)")
        connection.execute("CREATE TABLE exact (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        connection.execute(
            "CREATE TABLE bands (key INTEGER, number INTEGER, PRIMARY KEY (key, number)) WITHOUT ROWID"
        )

    def find(self, row: int, split: Split, texts: Sequence[str]) -> Duplicate | None:
        """Which earlier row of the split this one repeats in all its `texts`. A row that repeats none is
        remembered; a row that repeats one is counted, unless the config ignores its kind."""
        compared = [Text(text) for text in texts]
        key = digest(json.dumps([split, *(text.folded for text in compared)]))
        earlier = self._connection.execute("SELECT number FROM exact WHERE key = ?", (key,)).fetchone()
        if earlier is not None:
            return self._note("exact", row, split, texts, earlier[0], 1.0)
        bands = self._bands(split, compared) if self.config.near != "ignore" else []
        number, similarity = self._nearest(compared, bands)
        if number is not None:
            return self._note("near", row, split, texts, number, similarity)
        cursor = self._connection.execute("INSERT INTO items (row, texts) VALUES (?, ?)", (row, json.dumps(texts)))
        self._connection.execute("INSERT INTO exact VALUES (?, ?)", (key, cursor.lastrowid))
        self._connection.executemany(
            "INSERT OR IGNORE INTO bands VALUES (?, ?)", ((band, cursor.lastrowid) for band in bands)
        )
        return None

    def _count(self, duplicate: Duplicate) -> None:
        kind = (duplicate.split, duplicate.kind)
        self.counts[kind] += 1
        if self.counts[kind] <= EXAMPLES:
            self.examples.append(duplicate)

    def _bands(self, split: Split, texts: Sequence[Text]) -> list[int]:
        """The keys of a row's bands. Shingles of different texts of a row differ, so that the signature's Jaccard
        similarity is at least the lowest of the texts'."""
        parts = [text.hashes + _OFFSET * np.uint64(place) for place, text in enumerate(texts) if len(text.hashes)]
        if not parts:
            return []
        hashes = np.concatenate(parts) >> np.uint64(32)
        signature = MinHash(
            PERMUTATIONS, hashfunc=int, permutations=self._empty.permutations, scheme=self._empty.scheme
        )
        signature.update_batch(hashes.tolist())
        values, rows = signature.hashvalues, self._lsh.r
        slices = (values[band * rows : (band + 1) * rows] for band in range(self._lsh.b))
        keys = (
            blake2b(f"{split} {band} ".encode() + part.tobytes(), digest_size=8) for band, part in enumerate(slices)
        )
        return [int.from_bytes(key.digest(), "big", signed=True) for key in keys]

    def _nearest(self, texts: Sequence[Text], bands: Sequence[int]) -> tuple[int | None, float]:
        """The number of the most similar earlier row at or above the threshold, and its similarity."""
        numbers = {
            number
            for band in bands
            for (number,) in self._connection.execute(
                "SELECT number FROM bands WHERE key = ? LIMIT ?", (band, CANDIDATES)
            )
        }
        best, most = None, 0.0
        for number in sorted(numbers):
            earlier = map(Text, self._texts(number)[1])
            similarity = min(text.similarity(other) for text, other in zip(texts, earlier, strict=True))
            if similarity >= self.config.threshold and similarity > most:
                best, most = number, similarity
        return best, most

    def _texts(self, number: int) -> tuple[int, list[str]]:
        row, texts = self._connection.execute("SELECT row, texts FROM items WHERE number = ?", (number,)).fetchone()
        return row, json.loads(texts)

    def _note(
        self, kind: Kind, row: int, split: Split, texts: Sequence[str], number: int, similarity: float
    ) -> Duplicate | None:
        if getattr(self.config, kind) == "ignore":
            return None
        of, earlier = self._texts(number)
        duplicate = Duplicate(
            self.table, kind, split, row, of, round(similarity, 3), texts[-1][:SHOWN], earlier[-1][:SHOWN]
        )
        self._count(duplicate)
        return duplicate

    def drops(self, duplicate: Duplicate | None) -> bool:
        """Whether the config drops this duplicate. Held-out rows stay."""
        return duplicate is not None and self._dropped(duplicate.split, duplicate.kind)

    def _dropped(self, split: Split, kind: Kind) -> bool:
        return split == "train" and getattr(self.config, kind) == "drop"

    def kept(self) -> dict[Kind, int]:
        """Duplicates that stay, by kind."""
        return {
            kind: sum(
                count for (split, of), count in self.counts.items() if of == kind and not self._dropped(split, of)
            )
            for kind in REASONS
        }

    def describe(self) -> str:
        """A line for the log about duplicates that stay; empty where there are none."""
        return describe(self.table, self.kept(), self.examples)


def describe(table: str, kept: Mapping[Kind, int], examples: Sequence[Duplicate]) -> str:
    """A line for the log about duplicates that stay; empty where there are none."""
    kinds = [kind for kind in REASONS if kept.get(kind)]
    if not kinds:
        return ""
    parts = [f"{kept[kind]:,} {REASONS[kind]}{'s' * (kept[kind] != 1)}" for kind in kinds]
    first = examples[0]
    place = f"row {first.row}" + (f" repeats row {first.of}" if first.of != first.row else "")
    keys = " and ".join(f"data.duplicates.{kind}" for kind in kinds)
    return (
        f"data: {' and '.join(parts)} among the {table} ({place}: {start(first.text)!r}). To drop those that are "
        f"trained on, set {keys}: drop"
    )


@contextmanager
def duplicates(config: DuplicatesConfig, table: str) -> Iterator[Duplicates]:
    """A `Duplicates` whose index spills to the disk beyond a few megabytes."""
    with temporary(CACHE_KIB) as connection:
        yield Duplicates(connection, config, table)


class NearAnswers:
    """Finds and counts near-duplicate answers in one ranking. Equal ones were merged by the table's reader."""

    def __init__(self, config: DuplicatesConfig) -> None:
        self.config, self.table = config, "answers"
        self.count = 0
        self.examples: list[Duplicate] = []

    def find(self, row: int, split: Split, texts: Sequence[str]) -> set[int]:
        """The places of answers to drop. Near-duplicates that stay are counted."""
        if self.config.near == "ignore":
            return set()
        repeats = near_duplicates(texts, self.config.threshold)
        if self.config.near == "drop" and split == "train":
            return set(repeats)
        self.count += len(repeats)
        for place, (first, similarity) in repeats.items():
            if len(self.examples) < EXAMPLES:
                text, earlier = texts[place][:SHOWN], texts[first][:SHOWN]
                self.examples.append(
                    Duplicate("answers", "near", split, row, row, round(similarity, 3), text, earlier)
                )
        return set()

    def kept(self) -> dict[Kind, int]:
        """Near-duplicates that stay."""
        return {"near": self.count}

    def describe(self) -> str:
        """A line for the log about near-duplicates that stay; empty where there are none."""
        return describe("answers of a ranking", self.kept(), self.examples)


def near_duplicates(texts: Sequence[str], threshold: float) -> dict[int, tuple[int, float]]:
    """Among a few texts: place of each near-duplicate of an earlier one -> that one's place and the similarity.
    Texts that repeat another one are not compared with later ones."""
    sets = [shingles(text) for text in texts]
    repeats: dict[int, tuple[int, float]] = {}
    for place, its in enumerate(sets):
        for earlier in range(place):
            if earlier in repeats or (similarity := jaccard(its, sets[earlier])) < threshold:
                continue
            if place not in repeats or similarity > repeats[place][1]:
                repeats[place] = (earlier, similarity)
    return repeats
