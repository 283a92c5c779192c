from itertools import combinations, permutations
from math import comb

import numpy as np
import pytest
import torch

from stages.reward.likelihoods import (
    borda_targets,
    bradley_terry,
    centering,
    davidson,
    davidson_nu,
    plackett_luce,
    rating_targets,
    regression,
)

SCORES = [0.3, -1.2, 2.0, 0.7]


def loss_of(objective, scores, ranks):
    return objective(torch.tensor(scores, dtype=torch.float64), torch.tensor(ranks)).item()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def probability_of_order(scores, order):
    """Of choosing the answers in exactly this order, each by softmax over those left."""
    strengths, p = np.exp(scores), 1.0
    for position, i in enumerate(order):
        p *= strengths[i] / strengths[list(order[position:])].sum()
    return p


def orders_that_agree(ranks):
    """Full orders in which no answer of a worse rank comes before one of a better rank."""
    for order in permutations(range(len(ranks))):
        if all(ranks[a] <= ranks[b] for a, b in combinations(order, 2)):
            yield order


@pytest.mark.parametrize("ranks", [[1, 2, 3, 4], [4, 1, 3, 2], [1, 1, 2, 3], [2, 1, 2, 1], [5, 1, 9, 5]])
def test_bradley_terry_by_hand(ranks):
    total = 0.0
    for i in range(4):
        for j in range(4):
            if ranks[i] < ranks[j]:
                total -= np.log(sigmoid(SCORES[i] - SCORES[j]))
    assert loss_of(bradley_terry, SCORES, ranks) == pytest.approx(total / comb(4, 2), rel=1e-9)


@pytest.mark.parametrize("k", [2, 3, 5, 9])
def test_bradley_terry_weighs_pairs_by_their_number(k):
    """Equal scores: every pair costs log 2, and a ranking of any K costs as much as one pair."""
    assert loss_of(bradley_terry, [0.0] * k, list(range(1, k + 1))) == pytest.approx(np.log(2))


def test_bradley_terry_gradient_in_closed_form():
    scores = torch.tensor(SCORES, dtype=torch.float64, requires_grad=True)
    bradley_terry(scores, torch.tensor([2, 1, 3, 2])).backward()
    ranks, expected = [2, 1, 3, 2], np.zeros(4)
    for i in range(4):
        for j in range(4):
            if ranks[i] < ranks[j]:
                push = sigmoid(SCORES[j] - SCORES[i]) / 6
                expected[i] -= push
                expected[j] += push
    np.testing.assert_allclose(scores.grad, expected, atol=1e-9)


@pytest.mark.parametrize("objective", [bradley_terry, plackett_luce])
def test_far_apart_scores_stay_finite(objective):
    scores = torch.tensor([-200.0, 200.0, 0.0], requires_grad=True)
    loss = objective(scores, torch.tensor([1, 2, 3]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[0] < 0 < scores.grad[1]


@pytest.mark.parametrize("ranks", [[1, 2], [2, 1], [3, 8]])
@pytest.mark.parametrize("scores", [[0.4, -0.9], [-2.0, 3.0]])
def test_plackett_luce_of_two_is_bradley_terry(scores, ranks):
    winner, loser = sorted(range(2), key=lambda i: ranks[i])
    expected = -np.log(sigmoid(scores[winner] - scores[loser]))
    assert loss_of(plackett_luce, scores, ranks) == pytest.approx(expected, rel=1e-9)
    assert loss_of(bradley_terry, scores, ranks) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_plackett_luce_probabilities_of_all_orders_sum_to_one(k):
    total = sum(np.exp(-loss_of(plackett_luce, SCORES[:k], list(r))) for r in permutations(range(1, k + 1)))
    assert total == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(
    "ranks",
    [
        [1, 2, 3, 4],
        [3, 1, 4, 2],
        [1, 1, 2, 3],
        [2, 1, 2, 3],
        [1, 2, 2, 2],
        [2, 2, 2, 1],
        [1, 1, 2, 2],
        [7, 3, 3, 3],
    ],
)
def test_plackett_luce_with_ties_is_the_sum_over_orders(ranks):
    scores = np.array(SCORES)
    expected = sum(probability_of_order(scores, order) for order in orders_that_agree(ranks))
    assert np.exp(-loss_of(plackett_luce, SCORES, ranks)) == pytest.approx(expected, rel=1e-9)


def test_plackett_luce_with_large_ties():
    scores = np.random.default_rng(0).normal(size=6)
    ranks = [2, 1, 1, 2, 1, 3]
    expected = sum(probability_of_order(scores, order) for order in orders_that_agree(ranks))
    assert np.exp(-loss_of(plackett_luce, scores, ranks)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("objective", [bradley_terry, plackett_luce])
def test_all_tied_says_nothing(objective):
    """Loss and gradient are zero, and backward works: a batch may hold nothing but ties."""
    scores = torch.tensor(SCORES, requires_grad=True)
    loss = objective(scores, torch.tensor([2, 2, 2, 2]))
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(scores.grad, torch.zeros(4))


@pytest.mark.parametrize("objective", [bradley_terry, plackett_luce])
def test_only_differences_of_scores_count(objective):
    ranks = [2, 1, 3, 2]
    shifted = [s + 17 for s in SCORES]
    assert loss_of(objective, shifted, ranks) == pytest.approx(loss_of(objective, SCORES, ranks), rel=1e-9)


def test_centering():
    scores = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    loss = centering(scores)
    loss.backward()
    assert loss.item() == pytest.approx(9.0)
    np.testing.assert_allclose(scores.grad, [2.0, 2.0, 2.0])


# --- Margins ---


@pytest.mark.parametrize("ranks", [[1, 2, 3, 4], [1, 1, 2, 3], [2, 1, 2, 1]])
def test_margins_by_hand(ranks):
    """Llama 2's loss: -log sigmoid(better - worse - margin), over all pairs; equation 2."""
    margins = np.random.default_rng(0).uniform(0, 2, (4, 4))
    total = 0.0
    for i in range(4):
        for j in range(4):
            if ranks[i] < ranks[j]:
                total -= np.log(sigmoid(SCORES[i] - SCORES[j] - margins[i, j]))
    found = bradley_terry(torch.tensor(SCORES, dtype=torch.float64), torch.tensor(ranks), torch.from_numpy(margins))
    assert found.item() == pytest.approx(total / comb(4, 2), rel=1e-9)


# --- Ties as observations ---


def davidson_probabilities(a, b, nu):
    """Davidson 1970: of a win of the first, of the second, and of a tie."""
    strengths = np.exp([a, b])
    total = strengths.sum() + nu * np.sqrt(strengths.prod())
    return *(strengths / total), nu * np.sqrt(strengths.prod()) / total


@pytest.mark.parametrize("ranks", [[1, 2, 3, 4], [1, 1, 2, 3], [2, 1, 2, 1], [3, 3, 3, 3]])
def test_davidson_by_hand(ranks):
    nu, total = 0.7, 0.0
    for i, j in combinations(range(4), 2):
        wins, loses, ties = davidson_probabilities(SCORES[i], SCORES[j], nu)
        total -= np.log(wins if ranks[i] < ranks[j] else loses if ranks[i] > ranks[j] else ties)
    found = loss_of(lambda s, r: davidson(s, r, np.log(nu)), SCORES, ranks)
    assert found == pytest.approx(total / comb(4, 2), rel=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_nu_of_a_share_of_ties(share):
    assert davidson_probabilities(0.3, 0.3, davidson_nu(share))[2] == pytest.approx(share)


def test_without_ties_davidson_is_bradley_terry():
    found = loss_of(lambda s, r: davidson(s, r, -50.0), SCORES, [3, 1, 4, 2])
    assert found == pytest.approx(loss_of(bradley_terry, SCORES, [3, 1, 4, 2]), rel=1e-9)


# --- Regression ---


def test_regression_by_hand():
    scores, targets = np.array([1.0, 4.0, -2.0]), np.array([0.5, 0.0, 2.5])
    expected = np.mean(((scores - 1.0) - (targets - 1.0)) ** 2)
    found = regression(torch.from_numpy(scores), torch.from_numpy(targets))
    assert found.item() == pytest.approx(expected)
    assert regression(torch.from_numpy(scores + 9), torch.from_numpy(targets - 3)).item() == pytest.approx(expected)


def test_targets_from_ranks():
    """Of two others, the first beats both, the last two beat half of one each."""
    found = borda_targets(torch.tensor([1, 2, 2]))
    np.testing.assert_allclose(found, np.log([2.5 / 0.5, 1.0 / 2.0, 1.0 / 2.0]), rtol=1e-6)
    assert torch.equal(borda_targets(torch.tensor([4, 4])), torch.zeros(2))


def test_targets_from_ratings():
    ratings = [80.0, 20.0, 50.0]
    np.testing.assert_allclose(
        rating_targets(torch.tensor(ratings)), (np.array(ratings) - 50) / np.std(ratings), rtol=1e-6
    )
    assert torch.equal(rating_targets(torch.tensor([7.0, 7.0])), torch.zeros(2))
