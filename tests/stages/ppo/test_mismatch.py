"""The difference between sampling and training, and the weights that correct for it, against numpy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.config.ppo import PPOConfig
from stages.models.distributed import World
from stages.ppo.experience import Experience
from stages.ppo.mismatch import importance_weights, with_mismatch
from stages.sampling.decoding import Record


def test_weights_by_their_definition():
    rng = np.random.default_rng(0)
    trained, sampled = rng.normal(-2, 1, size=(2, 5, 7)).astype(np.float32)
    found = importance_weights(torch.tensor(trained, requires_grad=True), torch.tensor(sampled), 2.0)
    expected = np.minimum(np.exp(trained) / np.exp(sampled), 2.0)
    assert (expected == 2.0).any()
    assert (expected < 0.5).any(), "only the large ones are truncated"
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not found.requires_grad


def test_truncated_weights_make_the_estimate_nearly_that_of_the_trained_policy():
    """E_q[min(p / q, C) f] is E_p[f] where no ratio is above C: what the weights are for (Ionides 2008)."""
    p, q, f = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.35, 0.25]), np.array([1.0, -2.0, 3.0])
    weights = importance_weights(torch.tensor(np.log(p)), torch.tensor(np.log(q)), 2.0).numpy()
    assert (q * weights * f).sum() == pytest.approx((p * f).sum(), rel=1e-5)
    capped = importance_weights(torch.tensor(np.log(p)), torch.tensor(np.log(q)), 1.0).numpy()
    np.testing.assert_allclose(capped, [1.0, 0.3 / 0.35, 0.2 / 0.25], rtol=1e-5)


def experience_of(logp, mask, record):
    zero = torch.zeros_like(logp)
    episodes = SimpleNamespace(mask_BT=mask, sampled=record)
    return Experience(episodes, logp, zero, zero, zero, zero, {"objective/kl": 1.0}, 1.0, 0.0)


@pytest.mark.parametrize("clip_max", [None, 1.5])
def test_metrics_by_their_definitions(clip_max):
    """Of valid tokens only: elsewhere the record holds anything, and it may be longer than the longest response."""
    rng = np.random.default_rng(1)
    trained, mask = rng.normal(-2, 1, size=(6, 8)), rng.random((6, 8)) < 0.6
    sampled = np.full((6, 10), 1e9)
    sampled[:, :8] = np.where(mask, trained + rng.normal(0.01, 0.1, size=(6, 8)), 1e9)
    record = Record(torch.tensor(sampled, dtype=torch.float32), torch.zeros(6, 10), torch.zeros(6, 10))
    data = experience_of(torch.tensor(np.where(mask, trained, 0), dtype=torch.float32), torch.tensor(mask), record)
    found = with_mismatch(data, PPOConfig(importance_sampling_clip_max=clip_max), World())
    d = (trained - sampled[:, :8])[mask]
    assert found.metrics["sampling/kl_k3"] == pytest.approx((np.exp(d) - 1 - d).mean(), rel=1e-3)
    assert found.metrics["sampling/logp_difference_std"] == pytest.approx(d.std(), rel=1e-4)
    assert found.metrics["objective/kl"] == 1.0
    assert (found.weights_BT is None) == (clip_max is None)
    if clip_max is not None:
        np.testing.assert_allclose(found.weights_BT.numpy()[mask], np.minimum(np.exp(d), 1.5), rtol=1e-4)
