import pytest

from stages.eval.texts import distinct, repetition


def test_distinct() -> None:
    texts = ["a b a b", "a b"]
    assert distinct(texts, 1) == pytest.approx(2 / 6)
    assert distinct(texts, 2) == pytest.approx(2 / 4)  # a b, b a, a b; a b
    assert distinct(["one"], 2) == 0


def test_repetition_is_of_a_text_itself() -> None:
    assert repetition("a b c d e f") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
    assert repetition("x x x x x x") == pytest.approx(2 / 3)
    assert repetition("too short") == 0
