from __future__ import annotations

from itertools import combinations
from math import log

import numpy as np
import pytest

from stages.eval import best_of_n


@pytest.mark.parametrize("n", range(1, 6))
def test_the_estimate_is_the_mean_over_all_subsets(n: int) -> None:
    rng = np.random.default_rng(n)
    scores, gold = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    found = (best_of_n.weights(scores, n) * gold).sum(1)
    for row in range(3):
        best = [gold[row][max(chosen, key=lambda i: scores[row][i])] for chosen in combinations(range(5), n)]
        assert found[row] == pytest.approx(sum(best) / len(best))


def test_weights_are_chances() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 16))
    for n in (1, 2, 7, 16):
        np.testing.assert_allclose(best_of_n.weights(scores, n).sum(1), 1)
    np.testing.assert_allclose(best_of_n.weights(scores, 1), 1 / 16)
    assert (best_of_n.weights(scores, 16).argmax(1) == scores.argmax(1)).all()


def test_equal_scores_share_all_of_the_chance() -> None:
    found = best_of_n.weights(np.zeros((1, 4)), 2)
    np.testing.assert_allclose(found, [[0, 1 / 6, 2 / 6, 3 / 6]])


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_bound_is_the_kl_where_no_scores_tie(n: int) -> None:
    """Of many equally likely answers, all scored differently: the i-th best is picked with chance
    ((i)^n - (i-1)^n) / M^n."""
    many = 100_000
    i = np.arange(1, many + 1, dtype=float)
    picked = (i / many) ** n - ((i - 1) / many) ** n
    kl = float((picked * np.log(picked * many)).sum())
    assert best_of_n.kl_bound(n) == pytest.approx(kl, abs=1e-3)


def test_the_bound_bounds_where_scores_tie() -> None:
    """Two answers of chance one half, one of them better: best of 2 gives the worse with chance 1/4."""
    kl = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)
    assert 0 < kl < best_of_n.kl_bound(2)
    assert best_of_n.kl_bound(1) == 0


@pytest.mark.parametrize(("kl", "n"), [(0.0, 1), (0.1, 2), (0.45, 3), (1.2, 8), (50.0, 16), (-0.1, 1)])
def test_the_nearest_n(kl: float, n: int) -> None:
    assert best_of_n.nearest(kl, 16) == n


def test_the_ladder() -> None:
    assert best_of_n.ladder(16) == [1, 2, 4, 8, 16]
    assert best_of_n.ladder(12) == [1, 2, 4, 8, 12]
    assert best_of_n.ladder(2) == [1, 2]
