from __future__ import annotations

import numpy as np
import pytest

from stages.eval import wins


def test_one_answer_each_is_a_comparison_with_half_for_ties() -> None:
    ours, theirs, one = np.array([[2.0], [1.0], [0.0]]), np.array([[1.0], [1.0], [5.0]]), np.ones((3, 1))
    assert wins.wins(ours, one, theirs, one).tolist() == [1.0, 0.5, 0.0]
    assert wins.ties(ours, one, theirs, one) == pytest.approx(1 / 3)


def test_many_answers_are_all_their_comparisons_by_chance() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 3, (4, 3)).astype(float), rng.integers(0, 3, (4, 2)).astype(float)
    a, b = rng.dirichlet([1] * 3, 4), rng.dirichlet([1] * 2, 4)
    found = wins.wins(ours, a, theirs, b)
    for p in range(4):
        total = sum(
            a[p, i] * b[p, j] * (1.0 if ours[p, i] > theirs[p, j] else 0.5 if ours[p, i] == theirs[p, j] else 0.0)
            for i in range(3)
            for j in range(2)
        )
        assert found[p] == pytest.approx(total)
    np.testing.assert_allclose(found + wins.wins(theirs, b, ours, a), 1)


def test_the_interval_of_a_mean_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = wins.mean(values, 2000, 0)
    error = values.std() / 20
    assert found["value"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found["low"] < found["value"] < found["high"]


def test_relative_change() -> None:
    ours, theirs = np.array([1.0, 0.0, 2.0, 1.0]), np.array([2.0, 2.0, 2.0, 2.0])
    found = wins.relative_change(ours, theirs, 500, 0)
    assert found["value"] == pytest.approx(-0.5)
    assert found["low"] < -0.5 < found["high"]
    half = wins.relative_change(theirs / 2, theirs, 50, 0)
    assert half == pytest.approx({"value": -0.5, "low": -0.5, "high": -0.5})
    assert wins.relative_change(ours, 0 * theirs, 50, 0)["value"] is None
