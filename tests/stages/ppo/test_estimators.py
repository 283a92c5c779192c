"""Advantage estimators against their definitions, in numpy."""

import numpy as np
import pytest
import torch

from pipeline.config.ppo import METHODS, PPOConfig
from stages.ppo.advantages import gae, whiten
from stages.ppo.estimators import EPSILON, ESTIMATORS, Groups, estimator_of

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)


def draw(seed, shape=(4, 5)):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def rewards(seed=6):
    return torch.where(MASK, draw(seed), 0.0)


def groups(size, rows=4, reduce=lambda sums: sums):
    return Groups.of(torch.arange(rows), rows, size, reduce)


def estimate(name, rewards_BT, size, mask=MASK, **values):
    config = PPOConfig(advantage_estimator=name, num_generations=size, **values)
    advantages, _ = estimator_of(config)(rewards_BT, torch.zeros_like(rewards_BT), mask, groups(size, len(mask)))
    return advantages.numpy()


def returns_of(rewards_BT, gamma):
    returns = np.zeros((4, 5))
    for row, length in enumerate(MASK.sum(1).tolist()):
        for t in range(length):
            returns[row, t] = sum(gamma ** (s - t) * rewards_BT[row, s].item() for s in range(t, length))
    return returns


def test_every_estimator_of_the_recipe_exists():
    assert set(ESTIMATORS) == set(METHODS)


def test_gae_is_an_estimator():
    values = draw(5)
    config = PPOConfig(gamma=0.9, lam=0.5)
    actual = estimator_of(config)(rewards(), values, MASK, groups(1))
    for tensor, expected in zip(actual, gae(rewards(), values, MASK, 0.9, 0.5), strict=True):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize(("size", "baseline"), [(1, None), (2, None), (4, None), (2, "batch"), (4, "group")])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_is_the_return_less_a_mean(gamma, size, baseline):
    """Of the prompt's responses or of the batch; without `baseline`, of the batch with one response per prompt."""
    returns = returns_of(rewards(), gamma)
    if size == 1 or baseline == "batch":
        means = np.full(4, returns[:, 0].mean())
    else:
        means = returns[:, 0].reshape(-1, size).mean(1).repeat(size)
    actual = estimate("reinforce", rewards(), size, gamma=gamma, baseline=baseline)
    np.testing.assert_allclose(actual, (returns - means[:, None]) * MASK.numpy(), atol=1e-5)


def test_the_running_baseline_is_the_mean_of_earlier_batches_and_resumes():
    config = PPOConfig(advantage_estimator="reinforce", baseline="running", normalize_advantages=False)
    first = estimator_of(config)
    returns = [returns_of(rewards(seed), 1.0) for seed in range(3)]
    means = [returns[0][:, 0].mean(), returns[0][:, 0].mean(), np.mean([r[:, 0] for r in returns[:2]])]
    for seed in range(2):
        advantages, _ = first(rewards(seed), torch.zeros(4, 5), MASK, groups(1))
        np.testing.assert_allclose(advantages, (returns[seed] - means[seed]) * MASK.numpy(), atol=1e-5)
    second = estimator_of(config)
    second.load_state_dict(first.state_dict())
    resumed, _ = second(rewards(2), torch.zeros(4, 5), MASK, groups(1))
    np.testing.assert_allclose(resumed, (returns[2] - means[2]) * MASK.numpy(), atol=1e-5)


def test_normalised_reinforce_is_reinforce_plus_plus():
    """(A - mean A) / std A over all tokens of the batch, whatever the baseline (Hu et al. 2025)."""
    returns = returns_of(rewards(), 1.0)[MASK.numpy()]
    white = whiten(torch.from_numpy(estimate("reinforce", rewards(), 1)), MASK)[MASK]
    np.testing.assert_allclose(white, (returns - returns.mean()) / returns.std(), atol=1e-5)


def test_two_responses_of_rloo_are_compared_with_each_other():
    """With K = 2 the advantages are R1 - R2 and R2 - R1, on all tokens."""
    actual = estimate("rloo", rewards(), 2)
    total = rewards().sum(1).numpy()
    for row, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        np.testing.assert_allclose(actual[row], (total[row] - total[other]) * MASK[row].numpy(), atol=1e-6)


@pytest.mark.parametrize("scale", [None, "none", "group", "batch"])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_a_whole_response_is_compared_with_its_group(name, size, scale):
    total = rewards().sum(1).numpy().astype(float)
    expected = np.zeros(4)
    for row in range(4):
        group = total[row // size * size :][:size]
        others = np.delete(group, row % size)
        baseline = others.mean() if name == "rloo" else group.mean()
        divisor = {"none": 1.0, "group": group.std(ddof=1) + EPSILON, "batch": total.std(ddof=1) + EPSILON}
        expected[row] = (total[row] - baseline) / divisor[scale or {"rloo": "none", "grpo": "group"}[name]]
    actual = estimate(name, rewards(), size, scale_rewards=scale)
    np.testing.assert_allclose(actual, expected[:, None] * MASK.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("name", ["rloo", "grpo"])
@pytest.mark.parametrize("value", [0.1, -7.3, 0.0])
def test_equal_rewards_give_no_advantage(name, scale, value):
    equal = torch.zeros(4, 5)
    equal[:, 0] = value
    assert not estimate(name, equal, 4, scale_rewards=scale).any()


@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo"])
def test_prompts_do_not_affect_each_other(name):
    """Advantages of a prompt's responses do not depend on the rewards of other prompts."""
    other = rewards()
    other[:2] += 100 * MASK[:2]
    np.testing.assert_array_equal(estimate(name, rewards(), 2)[2:], estimate(name, other, 2)[2:])


@pytest.mark.parametrize("garbage", [1e9, float("nan")])
@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo"])
def test_masked_positions_and_values_do_not_change_advantages(name, garbage):
    dirty = torch.where(MASK, rewards(), garbage)
    config = PPOConfig(advantage_estimator=name, num_generations=2)
    clean, _ = estimator_of(config)(rewards(), torch.zeros(4, 5), MASK, groups(2))
    actual, _ = estimator_of(config)(dirty, draw(9), MASK, groups(2))
    assert torch.equal(clean, actual)
    assert not actual[~MASK].any()


@pytest.mark.parametrize(
    "values",
    [
        {"advantage_estimator": "rloo"},
        {"advantage_estimator": "grpo"},
        {"advantage_estimator": "grpo", "scale_rewards": "batch"},
        {"advantage_estimator": "reinforce"},
        {"advantage_estimator": "reinforce", "baseline": "batch"},
    ],
)
def test_a_group_may_be_split_over_processes(values):
    """Rows 0 and 2 on one process and 1 and 3 on the other, with two responses per prompt."""
    config = PPOConfig(num_generations=2, **values)
    expected, _ = estimator_of(config)(rewards(), torch.zeros(4, 5), MASK, groups(2))
    sums = {0: [], 1: []}
    for turn in range(4):  # each round of sums needs those of the other process before
        actual = torch.zeros(4, 5)
        for rank in range(2):
            rows, own = torch.tensor([rank, rank + 2]), []

            def reduce(local, rank=rank, own=own):
                own.append(local)
                others = sums[1 - rank]
                return local + others[len(own) - 1] if len(own) <= len(others) else local

            part = Groups.of(rows, 4, 2, reduce)
            actual[rows], _ = estimator_of(config)(rewards()[rows], torch.zeros(2, 5), MASK[rows], part)
            sums[rank] = own
        assert turn < 3 or torch.allclose(actual, expected, atol=1e-6)


def test_groups_with_equal_rewards():
    part = groups(2)
    assert part.equal(torch.tensor([0.1, 0.1, 0.1, 0.2])).tolist() == [True, False]
    assert groups(4).equal(torch.tensor([0.1] * 4)).tolist() == [True]
