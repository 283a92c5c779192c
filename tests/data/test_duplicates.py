"""Planted duplicates are found, and what is not a duplicate is left alone."""

import random
from itertools import combinations

import pytest

from data.duplicates import duplicates, near_duplicates
from data.shingles import SIZE, Text, jaccard, shingle_hashes, shingles
from pipeline.config.data import DuplicatesConfig

LONG = (
    "The harbour museum opens at nine in the morning and closes at six in the evening from Tuesday to Sunday, and "
    "tickets for adults cost twelve euros at the door or ten euros when they are bought in advance on the web page"
)
CHINESE = (
    "这家餐厅位于老城区,价格适中,评价为五星,提供正宗的泰国菜,非常适合带孩子的家庭,"
    "离火车站只有几分钟的路程,周末经常客满,建议提前预订。"
)
THAI = "ร้านอาหารแห่งนี้ตั้งอยู่ในย่านเมืองเก่า ราคาปานกลาง ได้คะแนนห้าดาว และเสิร์ฟอาหารไทยแท้ เหมาะสำหรับครอบครัวที่มีเด็ก"


def find(rows, **config):
    """The duplicates of rows (split, *texts), by index, with the index of what they repeat."""
    with duplicates(DuplicatesConfig(**config), "demonstrations") as finder:
        hits = [finder.find(number, split, texts) for number, (split, *texts) in enumerate(rows)]
    return {hit.row: (hit.of, hit.kind) for hit in hits if hit is not None}


def test_equal_texts_are_exact_duplicates_whatever_their_case_white_space_and_unicode_form():
    rows = [
        ("train", "Où est le café ?", "Là."),
        ("train", "OÙ est\n le  CAFE\u0301 ?", " là. "),
        ("train", "Où est le café ?", "Ici."),
    ]
    assert find(rows) == {1: (0, "exact")}


@pytest.mark.parametrize("text", [LONG, CHINESE, THAI], ids=["English", "Chinese", "Thai"])
def test_a_changed_word_gives_a_near_duplicate_in_every_script(text):
    changed = text.replace("twelve", "eleven").replace("泰", "法").replace("ห้า", "สี่")
    assert changed != text
    assert find([("train", "Q", text), ("train", "Q", changed), ("train", "Q", text[::-1])]) == {1: (0, "near")}


def test_demonstrations_with_the_same_prompt_and_other_answers_are_not_duplicates():
    assert find([("train", LONG, "Yes."), ("train", LONG, "No.")]) == {}
    other = " ".join(reversed(LONG.split()))
    assert find([("train", LONG, LONG), ("train", LONG, other), ("train", other, LONG)]) == {}


def test_rows_of_other_splits_are_not_compared():
    assert find([("train", LONG), ("eval", LONG), ("eval", LONG + " today")]) == {2: (1, "near")}


def test_short_texts_are_duplicates_only_if_equal():
    assert find([("train", "What is 2 + 2?"), ("train", "What is 2 - 2?"), ("train", "what is 2 + 2?")]) == {
        2: (0, "exact")
    }


def test_kinds_that_the_recipe_ignores_are_not_counted():
    rows = [("train", LONG), ("train", LONG.upper()), ("train", LONG + " today")]
    assert find(rows, exact="ignore") == {2: (0, "near")}
    assert find(rows, near="ignore") == {1: (0, "exact")}


def test_shingles_are_sets_of_word_triples():
    words = [f"w{i}" for i in range(20)]
    triples = {tuple(words[i : i + SIZE]) for i in range(18)}
    assert len(shingles(" ".join(words))) == len(shingle_hashes(" ".join(words))) == len(triples)
    swapped = [*words[:10], words[11], words[10], *words[12:]]
    other = {tuple(swapped[i : i + SIZE]) for i in range(18)}
    expected = len(triples & other) / len(triples | other)
    assert jaccard(shingles(" ".join(words)), shingles(" ".join(swapped))) == pytest.approx(expected)
    assert len(np_unique(shingle_hashes(" ".join(words)), shingle_hashes(" ".join(reversed(words))))) == 36


def np_unique(*arrays):
    return {int(value) for array in arrays for value in array}


def test_nearly_all_pairs_above_the_threshold_are_found_and_none_below():
    """Against a comparison of all pairs."""
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(200)]
    texts = []
    for _ in range(60):
        base = rng.choices(vocabulary, k=60)
        texts.append(base)
        for changes in (1, 2, 4):
            copy = list(base)
            for place in rng.sample(range(60), changes):
                copy[place] = rng.choice(vocabulary)
            texts.append(copy)
    rows = [("train", " ".join(text)) for text in texts]
    near = {
        (a, b) for a, b in combinations(range(len(rows)), 2) if Text(rows[a][1]).similarity(Text(rows[b][1])) >= 0.8
    }
    hits = find(rows)
    assert {(of, row) for row, (of, _) in hits.items()} <= near
    # Every row that repeats one that is kept.
    kept = set(range(len(rows))) - set(hits)
    missed = {row for of, row in near if of in kept and row in kept}
    assert len(missed) <= 0.05 * len(hits)
    assert len(hits) > 60


def test_near_duplicates_among_a_few_texts_keep_the_first():
    texts = [LONG, "another answer of some eight or nine words here", LONG + " today", LONG + " today too"]
    repeats = near_duplicates(texts, 0.8)
    assert {place: first for place, (first, _) in repeats.items()} == {2: 0, 3: 0}
