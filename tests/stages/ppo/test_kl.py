import math

import numpy as np
import pytest
import torch

from stages.ppo.kl import AdaptiveKL, FixedKL, k1, k3, log_ratio


def categorical(seed, size=7):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(size, 3.0)), rng.dirichlet(np.full(size, 3.0))  # mild: no clamp is reached


def tensors(*values):
    return (torch.tensor(np.atleast_2d(value), dtype=torch.float32) for value in values)


@pytest.mark.parametrize("estimator", [k1, k3], ids=["k1", "k3"])
@pytest.mark.parametrize("seed", range(4))
def test_mean_under_p_is_the_exact_kl(estimator, seed):
    p, q = categorical(seed)
    exact = float((p * np.log(p / q)).sum())
    reverse = float((q * np.log(q / p)).sum())
    assert abs(exact - reverse) > 1e-3, "the case must tell KL(p||q) from KL(q||p)"
    each = estimator(*tensors(np.log(p), np.log(q))).numpy()[0]
    assert float((p * each).sum()) == pytest.approx(exact, rel=1e-5)


def test_signs():
    more_likely_than_reference, less_likely = torch.tensor([[-1.0]]), torch.tensor([[-3.0]])
    reference = torch.tensor([[-2.0]])
    assert k1(more_likely_than_reference, reference).item() == 1.0
    assert k1(less_likely, reference).item() == -1.0
    assert k3(more_likely_than_reference, reference).item() == pytest.approx(math.exp(-1) - 1 + 1)
    assert k3(less_likely, reference).item() == pytest.approx(math.exp(1) - 1 - 1)


def test_k3_is_never_negative_and_zero_only_for_equals():
    logp, ref = tensors(np.linspace(-5, -1, 41), np.full(41, -3.0))
    value = k3(logp, ref)
    assert (value >= 0).all()
    assert torch.equal(value < 1e-6, (logp - ref).abs() < 1e-3)


@pytest.mark.parametrize(("difference", "expected"), [(50, 20), (-50, -20), (19, 19), (-3, -3)])
def test_log_ratio_is_clamped_at_20(difference, expected):
    assert log_ratio(torch.tensor([[float(difference)]]), torch.zeros(1, 1)).item() == expected


@pytest.mark.parametrize(("difference", "expected"), [(50, 10), (-50, -10), (9, 9), (-9, -9)])
def test_k1_is_clamped_at_10(difference, expected):
    assert k1(torch.tensor([[float(difference)]]), torch.zeros(1, 1)).item() == expected


@pytest.mark.parametrize(("difference", "expected"), [(-50, 10), (-4, 10), (50, 10), (5, 4 + math.exp(-5))])
def test_k3_is_clamped_at_10(difference, expected):
    assert k3(torch.tensor([[float(difference)]]), torch.zeros(1, 1)).item() == pytest.approx(expected)


def test_half_precision_is_computed_in_float32():
    logp = torch.tensor([[-1.0078125]], dtype=torch.bfloat16)
    ref = torch.tensor([[-300.0]], dtype=torch.bfloat16)
    for result in (log_ratio(logp, ref), k1(logp, ref), k3(logp, ref)):
        assert result.dtype == torch.float32
        assert torch.isfinite(result).all()
    assert k1(logp, torch.tensor([[-1.0]], dtype=torch.bfloat16)).item() == -0.0078125


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1 + 0.1 * 128 / 1000),
        (5.4, 1 - 0.1 * 128 / 1000),
        (7.2, 1 + 0.2 * 128 / 1000),
        (60.0, 1 + 0.2 * 128 / 1000),  # the error is clipped at 0.2
        (0.0, 1 - 0.2 * 128 / 1000),
        (-3.0, 1 - 0.2 * 128 / 1000),  # an estimate may be negative
    ],
)
def test_adaptive_controller_by_hand(kl, factor):
    controller = AdaptiveKL(0.05, target=6.0, horizon=1000)
    controller.update(kl, 128)
    assert controller.value == pytest.approx(0.05 * factor, rel=1e-12)


def test_adaptive_controller_compounds():
    controller = AdaptiveKL(1.0, target=2.0, horizon=10)
    for kl in (2.2, 9.0, 1.0):
        controller.update(kl, 5)
    assert controller.value == pytest.approx(1.05 * 1.1 * 0.9, rel=1e-12)


def test_adaptive_controller_state_goes_on_where_it_stood():
    first = AdaptiveKL(0.05, target=6.0, horizon=100)
    first.update(9.0, 10)
    second = AdaptiveKL(7.0, target=6.0, horizon=100)
    second.load_state_dict(first.state_dict())
    second.update(9.0, 10)
    assert second.value == pytest.approx(0.05 * 1.02**2, rel=1e-12)


def test_fixed_controller_stays():
    controller = FixedKL(0.3)
    controller.update(1e6, 1000)
    assert controller.value == 0.3
    controller.load_state_dict({"value": 0.4})
    assert (controller.value, controller.state_dict()) == (0.4, {"value": 0.4})
