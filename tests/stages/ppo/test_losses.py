import math

import numpy as np
import pytest
import torch

from stages.ppo.losses import entropy_bonus, kl_loss, policy_loss, value_loss


def one(*values):
    """Each number as a (1, 1) tensor."""
    return [torch.tensor([[float(value)]]) for value in values]


ALL = torch.ones(1, 1, dtype=torch.bool)


def policy_gradient(ratio, advantage, **kwargs):
    """Loss of a single token, and its derivative by the token's log-prob."""
    logp, old, advantages = one(math.log(ratio) - 1.5, -1.5, advantage)
    logp.requires_grad_()
    result = policy_loss(logp, old, advantages, ALL, count=1, **({"cliprange": 0.2} | kwargs))
    result.loss.backward()
    return result.loss.item(), logp.grad.item(), result.sums


def test_at_ratio_one_the_gradient_is_that_of_reinforce():
    rng = np.random.default_rng(0)
    raw, tokens = rng.normal(size=(2, 3, 5)), rng.integers(5, size=(2, 3))
    advantages, mask = rng.normal(size=(2, 3)), np.array([[1, 1, 1], [1, 0, 0]], dtype=bool)
    logits = torch.tensor(raw, requires_grad=True)
    logp = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[..., None])[..., 0]
    policy_loss(
        logp, logp.detach(), torch.tensor(advantages), torch.tensor(mask), count=4, cliprange=0.2
    ).loss.backward()

    probabilities = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)
    score_function = np.eye(5)[tokens] - probabilities  # d log p(token) / d logits
    expected = -(advantages * mask)[..., None] * score_function / 4
    np.testing.assert_allclose(logits.grad, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        pytest.param(1.5, 2.0, -2.4, 0.0, id="positive, above: clipped"),
        pytest.param(0.5, 2.0, -1.0, -1.0, id="positive, below: pulled back"),
        pytest.param(0.5, -2.0, 1.6, 0.0, id="negative, below: clipped"),
        pytest.param(1.5, -2.0, 3.0, 3.0, id="negative, above: pulled back"),
        pytest.param(1.1, 2.0, -2.2, -2.2, id="positive, inside"),
        pytest.param(0.9, -2.0, 1.8, 1.8, id="negative, inside"),
    ],
)
def test_policy_clip(ratio, advantage, loss, gradient):
    found_loss, found_gradient, sums = policy_gradient(ratio, advantage)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    if gradient == 0.0:
        assert found_gradient == 0.0, "exactly zero where the clip holds"
    else:
        assert found_gradient == pytest.approx(gradient, rel=1e-5)
    assert sums["clipfrac"].item() == (1.0 if gradient == 0.0 else 0.0)
    assert sums["ratio"].item() == pytest.approx(ratio, rel=1e-5)
    assert sums["policy_loss"].item() == pytest.approx(loss, rel=1e-5)
    # k3 of the behaviour policy from the new one: its mean under the behaviour policy is KL(old || new).
    assert sums["approxkl"].item() == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-4)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        pytest.param(1.25, 2.0, -2.5, -2.5, id="above, inside the upper range"),
        pytest.param(1.5, 2.0, -2.56, 0.0, id="above: clipped at the upper range"),
        pytest.param(0.75, -2.0, 1.6, 0.0, id="below: clipped at the lower range"),
        pytest.param(1.5, -2.0, 3.0, 3.0, id="negative, above: not clipped"),
    ],
)
def test_clip_higher(ratio, advantage, loss, gradient):
    actual_loss, actual_gradient, sums = policy_gradient(ratio, advantage, cliprange_high=0.28)
    assert actual_loss == pytest.approx(loss, rel=1e-5)
    assert actual_gradient == pytest.approx(gradient, rel=1e-5, abs=0.0)
    assert sums["clipfrac"].item() == (1.0 if gradient == 0.0 else 0.0)


def test_the_tokens_of_a_response_count_as_their_mean():
    rng = np.random.default_rng(0)
    logp, old, ref = rng.normal(-2, 0.3, size=(3, 3, 4))
    advantages, mask = rng.normal(size=(3, 4)), np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=bool)
    ratio = np.exp(logp - old)
    policy = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 0.8, 1.2))
    kl = 0.3 * (np.exp(ref - logp) - 1 - (ref - logp))
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (logp, old, advantages)]
    results = (
        policy_loss(*tensors, torch.tensor(mask), count=3, cliprange=0.2, per_response=True),
        kl_loss(
            *tensors[:2],
            torch.tensor(ref),
            torch.tensor(mask),
            count=3,
            coef=0.3,
            estimator="k3",
            per_response=True,
        ),
    )
    for result, token_loss in zip(results, (policy, kl), strict=True):
        expected = np.mean([token_loss[row, mask[row]].mean() for row in range(3)])
        assert result.loss.item() == pytest.approx(expected, rel=1e-4)


KL = {
    "k1": (lambda x: x, lambda x, r: r * (x + 1)),
    "k2": (lambda x: x**2 / 2, lambda x, r: x),
    "k3": (lambda x: math.exp(-x) - 1 + x, lambda x, r: 1 - math.exp(-x)),
    "k3 corrected": (lambda x: math.exp(-x) - 1 + x, lambda x, r: r * x),
}
"""The estimate at a log-ratio x of policy to reference, and its gradient by the policy's log-prob at a ratio r to
the policy that sampled."""


@pytest.mark.parametrize("name", KL)
@pytest.mark.parametrize(("log_ratio", "ratio"), [(0.7, 1.0), (-0.4, 1.0), (0.7, 1.3)])
def test_kl_in_the_loss(name, log_ratio, ratio):
    value, gradient = KL[name]
    corrected = name in ("k1", "k3 corrected")
    (logp, old), ref = one(-1.5, -1.5 - math.log(ratio)), torch.tensor([[-1.5 - log_ratio]])
    logp.requires_grad_()
    result = kl_loss(logp, old, ref, ALL, count=2, coef=0.1, estimator=name[:2], use_bias_correction=corrected)
    result.loss.backward()
    expected = 0.1 * value(log_ratio) * (ratio if corrected else 1)
    assert result.loss.item() == pytest.approx(expected / 2, rel=1e-4)
    assert result.sums["kl_loss"].item() == pytest.approx(expected, rel=1e-4)
    assert logp.grad.item() == pytest.approx(0.1 * gradient(log_ratio, ratio) / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        pytest.param(4.0, -1.0, 3.0, 0.0, id="beyond c: bounded"),
        pytest.param(2.0, -1.0, 2.0, 2.0, id="below c: as without"),
        pytest.param(0.5, -1.0, 0.8, 0.0, id="clipped below: as without"),
        pytest.param(4.0, 1.0, -1.2, 0.0, id="positive: never touched, above"),
        pytest.param(0.1, 1.0, -0.1, -0.1, id="positive: never touched, below"),
    ],
)
def test_dual_clip(ratio, advantage, loss, gradient):
    found_loss, found_gradient, _ = policy_gradient(ratio, advantage, dual_clip=3.0)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert found_gradient == pytest.approx(gradient, rel=1e-5, abs=0.0)


def test_weights_multiply_what_the_clips_left_and_get_no_gradient():
    rng = np.random.default_rng(0)
    logp, old = rng.normal(-2, 0.5, size=(2, 4, 6))
    advantages, weights = rng.normal(size=(4, 6)), rng.uniform(0.1, 2.0, size=(4, 6))
    mask = rng.random((4, 6)) < 0.7
    ratio = np.exp(logp - old)
    per_token = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 0.8, 1.2))
    per_token = np.where(advantages < 0, np.minimum(per_token, -advantages * 3.0), per_token)
    leaf, factor = (torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (logp, weights))
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (old, advantages)]
    found = policy_loss(
        leaf, *tensors, torch.tensor(mask), count=7, cliprange=0.2, dual_clip=3.0, weights_BT=factor.detach()
    )
    expected = (weights * per_token)[mask].sum()
    assert found.loss.item() == pytest.approx(expected / 7, rel=1e-4)
    assert found.sums["policy_loss"].item() == pytest.approx(expected, rel=1e-4)
    found.loss.backward()
    # d loss / d logp = -A ratio where the plain term rules and dual clip does not.
    plain = -advantages * ratio
    rules = (plain >= -advantages * np.clip(ratio, 0.8, 1.2)) & ~((advantages < 0) & (plain > -advantages * 3.0))
    np.testing.assert_allclose(leaf.grad, np.where(mask & rules, weights * plain, 0) / 7, rtol=1e-4, atol=1e-6)


def test_an_absurd_ratio_stays_finite():
    loss, gradient, _ = policy_gradient(math.exp(80), -1.0)
    assert loss == pytest.approx(math.exp(20), rel=1e-5)
    assert gradient == 0.0


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        pytest.param(1.0, 0.0, 2.0, (0.2 - 2) ** 2 / 2, 0.0, id="clipped is worse: it rules, gradient zero"),
        pytest.param(-1.0, 0.0, -2.0, (-0.2 + 2) ** 2 / 2, 0.0, id="the same below"),
        pytest.param(1.0, 0.0, 0.1, 0.9**2 / 2, 0.9, id="clipped is better: plain rules"),
        pytest.param(-1.0, 0.0, 0.5, 1.5**2 / 2, -1.5, id="moved away from the target"),
        pytest.param(0.1, 0.0, 2.0, 1.9**2 / 2, -1.9, id="inside the range"),
    ],
)
def test_value_clip(value, old, target, loss, gradient):
    values, olds, returns = one(value, old, target)
    values.requires_grad_()
    result = value_loss(values, olds, returns, ALL, count=1, cliprange_value=0.2)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert values.grad.item() == pytest.approx(gradient, rel=1e-5, abs=0.0)
    assert result.sums["vf_clipfrac"].item() == (1.0 if gradient == 0.0 else 0.0)
    assert result.sums["value"].item() == pytest.approx(value)
    assert result.sums["value_loss"].item() == pytest.approx(loss, rel=1e-5)


def test_entropy_bonus():
    entropy = torch.tensor([[1.0, 2.0, 4.0]], requires_grad=True)
    result = entropy_bonus(entropy, torch.tensor([[True, True, False]]), count=5, coef=0.1)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-0.1 * 3 / 5)
    assert result.sums["entropy"].item() == 3.0
    np.testing.assert_allclose(entropy.grad, [[-0.02, -0.02, 0.0]], atol=1e-7)


def batch(seed=1, shape=(4, 6)):
    rng = np.random.default_rng(seed)
    tensors = [torch.tensor(rng.normal(size=shape), dtype=torch.float32) for _ in range(3)]
    return tensors, torch.tensor(rng.random(shape) < 0.6)


LOSSES = {
    "policy": lambda x, y, z, mask, count: policy_loss(x, y, z, mask, count=count, cliprange=0.2, dual_clip=2.0),
    "value": lambda x, y, z, mask, count: value_loss(x, y, z, mask, count=count, cliprange_value=0.2),
    "policy, per response": lambda x, y, z, mask, count: policy_loss(
        x, y, z, mask, count=count, cliprange=0.2, cliprange_high=0.3, per_response=True
    ),
    "entropy": lambda x, y, z, mask, count: entropy_bonus(x, mask, count=count, coef=0.3),
    "kl": lambda x, y, z, mask, count: kl_loss(
        x, y, z, mask, count=count, coef=0.2, estimator="k3", use_bias_correction=True, per_response=True
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_parts_add_up_to_the_whole(name):
    """With a global count, rows may be cut into parts of any size."""
    (x, y, z), mask = batch()
    count = float(mask.sum())
    results = []
    for parts in ([slice(0, 4)], [slice(0, 1), slice(1, 4)], [slice(i, i + 1) for i in range(4)]):
        leaf = x.clone().requires_grad_()
        found = [LOSSES[name](leaf[p], y[p], z[p], mask[p], count) for p in parts]
        total = sum(f.loss for f in found)
        total.backward()
        sums = {key: sum(f.sums[key].item() for f in found) for key in found[0].sums}
        results.append((total.item(), leaf.grad, sums))
    whole = results[0]
    for other in results[1:]:
        assert other[0] == pytest.approx(whole[0], rel=1e-5)
        torch.testing.assert_close(other[1], whole[1])
        assert other[2] == pytest.approx(whole[2], rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("garbage", [1e30, float("nan")])
def test_what_stands_at_masked_positions_changes_nothing(name, garbage):
    (x, y, z), mask = batch(2)
    gradients = []
    for fill in (0.0, garbage):
        tensors = [torch.where(mask, value, fill) for value in (x, y, z)]
        tensors[0].requires_grad_()
        result = LOSSES[name](*tensors, mask, 10.0)
        result.loss.backward()
        gradients.append((result.loss.item(), tensors[0].grad[mask], result.sums))
    assert gradients[0][0] == gradients[1][0]
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert gradients[0][2] == gradients[1][2]


def test_what_is_logged_carries_no_gradient():
    (x, y, z), mask = batch(3)
    x.requires_grad_()
    for make in LOSSES.values():
        for name, value in make(x, y, z, mask, 1.0).sums.items():
            assert not value.requires_grad, name
