"""The estimated optimum against closed forms and enumeration."""

import math

import pytest
import torch

from stages.ppo.optimum import Curve


@pytest.mark.parametrize("std", [0.5, 3.0])
@pytest.mark.parametrize("kl", [0.1, 0.3, 0.6])
def test_normal_scores_have_the_optimum_in_closed_form(std, kl):
    """Tilting N(m, s^2) by exp(r / beta) gives N(m + s^2 / beta, s^2), whose KL is s^2 / (2 beta^2)."""
    generator = torch.Generator().manual_seed(0)
    curve = Curve.of(2 + std * torch.randn((2000, 64), generator=generator))
    beta = float(curve.beta_at(kl))
    assert beta == pytest.approx(std / math.sqrt(2 * kl), rel=0.03)
    assert curve.score_at(kl) == pytest.approx(2 + std * math.sqrt(2 * kl), rel=0.02)


def test_two_kinds_of_answers_have_the_optimum_in_closed_form():
    """Scores 1 with probability p and 0 otherwise: the optimum's p is p e^(1/beta) / (p e^(1/beta) + 1 - p)."""
    generator = torch.Generator().manual_seed(1)
    p, beta = 0.3, 0.8
    curve = Curve.of((torch.rand((5000, 32), generator=generator) < p).double())
    q = p * math.exp(1 / beta) / (p * math.exp(1 / beta) + 1 - p)
    kl, score = curve.at(beta)
    assert kl == pytest.approx(q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)), rel=0.02)
    assert score == pytest.approx(q, rel=0.01)


def test_the_jackknife_removes_most_of_the_bias_of_few_samples():
    generator = torch.Generator().manual_seed(2)
    curve = Curve.of(torch.randn((4000, 16), generator=generator))
    beta = 1.0  # KL 0.5
    i = int((curve.beta_G - beta).abs().argmin())
    true = 1 / (2 * float(curve.beta_G[i]) ** 2)
    plain, corrected = float(curve.plain_PG.mean(0)[i]), float(curve.kl_PG.mean(0)[i])
    assert abs(corrected - true) < 0.35 * abs(plain - true)


def test_the_jackknife_is_that_of_leaving_out_each_sample():
    scores = torch.randn((3, 5), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    curve = Curve.of(scores)
    i = 70
    beta = float(curve.beta_G[i])

    def plain(values):
        w = (values / beta).softmax(0)
        return float((w * (w * len(values)).clamp(min=1e-300).log()).sum()), float((w * values).sum())

    for row, kl, score in zip(scores, curve.kl_PG[:, i], curve.score_PG[:, i], strict=True):
        left = [plain(torch.cat([row[:k], row[k + 1 :]])) for k in range(5)]
        assert float(kl) == pytest.approx(5 * plain(row)[0] - 4 * sum(v[0] for v in left) / 5, abs=1e-9)
        expected = min(5 * plain(row)[1] - 4 * sum(v[1] for v in left) / 5, float(row.max()))
        assert float(score) == pytest.approx(expected, abs=1e-9)


def test_a_larger_kl_needs_a_smaller_coefficient_and_buys_a_higher_score():
    curve = Curve.of(torch.randn((200, 64), generator=torch.Generator().manual_seed(4)))
    kls = [0.1, 0.3, 0.6, 1.0]
    betas, scores = [float(curve.beta_at(kl)) for kl in kls], [curve.score_at(kl) for kl in kls]
    assert betas == sorted(betas, reverse=True)
    assert scores == sorted(scores)
    assert [curve.at(beta)[0] for beta in betas] == pytest.approx(kls, rel=1e-3)


def test_more_samples_reach_a_larger_kl_and_none_reaches_log_n():
    reach = [
        Curve.of(torch.randn((200, n), generator=torch.Generator().manual_seed(5))).reach for n in (16, 64, 256)
    ]
    assert reach == sorted(reach)
    assert all(kl < math.log(n) for kl, n in zip(reach, (16, 64, 256), strict=True))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_coefficient_has_the_unit_of_the_score(scale):
    scores = torch.randn((50, 32), generator=torch.Generator().manual_seed(6))
    expected = float(Curve.of(scores).beta_at(0.5))
    assert float(Curve.of(scale * scores + 7 * scale).beta_at(0.5)) == pytest.approx(scale * expected, rel=1e-3)


def test_equal_scores_stay_finite():
    curve = Curve.of(torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 5.0]]))
    for values in (curve.kl_PG, curve.score_PG, curve.plain_PG):
        assert torch.isfinite(values).all()
    assert not curve.kl_PG[0].abs().gt(1e-9).any()
