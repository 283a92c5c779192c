import numpy as np
import pytest
import torch

from stages.scoring.information_gain import expected_information_gain


def entropy(p):
    return -sum(q * np.log(q) for q in (p, 1 - p) if q > 0)


def test_it_is_the_mutual_information_of_outcome_and_member_averaged_over_pairs():
    scores = np.random.default_rng(0).normal(size=(3, 2, 4))
    expected = []
    for n in range(2):
        gains = []
        for i in range(4):
            for j in range(i):
                # The joint distribution of member (each 1/3) and outcome, by enumeration.
                p = [1 / (1 + np.exp(scores[m, n, j] - scores[m, n, i])) for m in range(3)]
                joint = np.array([[q / 3, (1 - q) / 3] for q in p])
                independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
                gains.append((joint * np.log(joint / independent)).sum())
        expected.append(np.mean(gains))
    assert expected_information_gain(torch.tensor(scores)).tolist() == pytest.approx(expected, rel=1e-9)


def test_two_members_sure_of_opposite_orders_disagree_by_one_bit():
    scores = torch.tensor([[[50.0, 0.0]], [[0.0, 50.0]]])
    assert expected_information_gain(scores).item() == pytest.approx(np.log(2))


def test_what_no_ranking_can_tell_has_no_gain():
    """Members' offsets, equal answers, and how sure those are who agree."""
    scores = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    offsets = 9 * torch.randn(3, 5, 1, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        expected_information_gain(scores + offsets), expected_information_gain(scores), rtol=1e-4, atol=1e-6
    )
    assert expected_information_gain(offsets.expand(3, 5, 4)).abs().max() < 1e-12
    assert expected_information_gain(scores[:1].expand(3, 5, 4)).abs().max() < 1e-12
    sure = torch.tensor([[[30.0, 0.0]], [[60.0, 0.0]]])
    assert expected_information_gain(sure).item() < 1e-9


def test_extremes_stay_finite():
    assert expected_information_gain(torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]])).item() == pytest.approx(
        np.log(2)
    )
