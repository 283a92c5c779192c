import random
from collections import defaultdict

import pytest

from data.tables import spill
from data.tables.spill import grouping, seen
from pipeline.errors import DataError


@pytest.fixture
def little_memory(monkeypatch):
    """A cache of 64 kB, so that a few thousand rows spill to disk."""
    monkeypatch.setattr(spill, "CACHE_KIB", 64)


def test_groups_come_in_order_of_first_appearance(little_memory):
    rng = random.Random(0)
    items = [(f"group {rng.randrange(500)}", [i, "ü" * rng.randrange(200)]) for i in range(5000)]
    expected = defaultdict(list)
    for key, value in items:
        expected[key].append(value)
    with grouping() as groups:
        for key, value in items:
            groups.add(key, value)
        assert groups.groups == len(expected)
        assert groups.largest() == max(map(len, expected.values()))
        assert list(groups) == list(expected.values())


def test_an_empty_table_has_no_groups():
    with grouping() as groups:
        assert (groups.groups, groups.largest(), list(groups)) == (0, 0, [])


def test_seen_recognises_first_occurrences(little_memory):
    rng = random.Random(0)
    keys = [f"key {rng.randrange(3000)}" for _ in range(10_000)]
    with seen() as known:
        firsts = [key for key in keys if known.first(key)]
    assert firsts == list(dict.fromkeys(keys))


def test_a_full_disk_is_an_error_with_a_hint():
    def fill():
        with seen() as known:
            known._connection.execute("PRAGMA max_page_count = 5")
            for i in range(10_000):
                known.first(str(i))

    with pytest.raises(DataError, match="temporary database") as caught:
        fill()
    assert "SQLITE_TMPDIR" in caught.value.hint
