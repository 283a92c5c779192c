import numpy as np
import pytest
import torch

from stages.ppo.advantages import gae, masked_moments, masked_sum, token_rewards, whiten

MASKS = {
    "full": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "lengths": [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]],
    "holes": [[1, 0, 1, 0, 1], [0, 1, 1, 0, 1]],
}


@pytest.fixture(params=MASKS)
def mask(request):
    return torch.tensor(MASKS[request.param], dtype=torch.bool)


def draw(seed, shape=(2, 5)):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def by_definition(rewards, values, mask, gamma, lam):
    """A_k = sum over l of (gamma lam)^l delta_(k+l), along each row's valid tokens only."""
    advantages = np.zeros(mask.shape)
    for row in range(len(mask)):
        valid = np.flatnonzero(mask[row].numpy())
        r = rewards[row].numpy()[valid].astype(float)
        v = np.append(values[row].numpy()[valid].astype(float), 0.0)
        deltas = r + gamma * v[1:] - v[:-1]
        for k, t in enumerate(valid):
            advantages[row, t] = sum((gamma * lam) ** i * d for i, d in enumerate(deltas[k:]))
    return advantages


def test_undiscounted_advantage_is_reward_to_go_less_value(mask):
    rewards, values = draw(0), draw(1)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    kept = rewards.numpy() * mask.numpy()
    to_go = kept[:, ::-1].cumsum(1)[:, ::-1] * mask.numpy()
    np.testing.assert_allclose(returns, to_go, atol=1e-5)
    np.testing.assert_allclose(advantages, (to_go - values.numpy()) * mask.numpy(), atol=1e-5)


def test_lam_zero_is_the_td_error(mask):
    rewards, values = draw(2), draw(3)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.0)
    for row in range(2):
        valid = mask[row].nonzero()[:, 0].tolist()
        for t, successor in zip(valid, [*valid[1:], None], strict=True):
            later = 0.0 if successor is None else values[row, successor].item()
            expected = rewards[row, t].item() + 0.9 * later - values[row, t].item()
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-6), (row, t)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0)])
def test_general_case_by_definition(mask, gamma, lam):
    rewards, values = draw(4), draw(5)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    expected = by_definition(rewards, values, mask, gamma, lam)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, expected + values.numpy() * mask.numpy(), atol=1e-5)


@pytest.mark.parametrize("garbage", [1e9, float("nan"), float("inf")])
def test_what_stands_at_masked_positions_changes_nothing(mask, garbage):
    if mask.all():
        mask = mask.clone()
        mask[0, 3] = False
    rewards, values = draw(6), draw(7)
    dirty_rewards, dirty_values = (torch.where(mask, x, garbage) for x in (rewards, values))
    clean = gae(rewards, values, mask, 0.9, 0.8)
    dirty = gae(dirty_rewards, dirty_values, mask, 0.9, 0.8)
    for expected, found in zip(clean, dirty, strict=True):
        assert torch.equal(expected, found)
        assert (found[~mask] == 0).all()
    assert torch.equal(whiten(rewards, mask), whiten(dirty_rewards, mask))
    assert torch.equal(masked_sum(rewards, mask), masked_sum(dirty_rewards, mask))
    score = torch.tensor([1.0, 2.0])
    assert torch.equal(token_rewards(rewards, score, mask), token_rewards(dirty_rewards, score, mask))


@pytest.mark.parametrize(("shift_mean", "mean"), [(True, 0.0), (False, 3.0)])
def test_whitening_against_numpy(mask, shift_mean, mean):
    values = draw(8) * 5
    kept = values[mask].numpy().astype(float)
    values = values + 3.0 - float(kept.mean())
    white = whiten(values, mask, shift_mean=shift_mean)
    found = white[mask].numpy().astype(float)
    assert found.mean() == pytest.approx(mean, abs=1e-5)
    assert found.std() == pytest.approx(1.0, abs=1e-5)
    assert (white[~mask] == 0).all()
    np.testing.assert_allclose(found, (kept - kept.mean()) / kept.std() + mean, atol=1e-5)


def test_whitening_is_over_the_batch_and_not_by_row():
    values = torch.tensor([[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]])
    white = whiten(values, torch.ones(2, 3, dtype=torch.bool))
    assert white[0].mean() < -0.9
    assert white[1].mean() > 0.9


def test_whitening_of_equal_values_is_finite():
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert torch.equal(whiten(torch.full((1, 4), 7.0), mask), torch.zeros(1, 4))


def test_moments_over_processes():
    """Two processes that add up what each says see the moments of both shares together."""
    values, mask = draw(9, (4, 5)), torch.from_numpy(np.random.default_rng(9).random((4, 5)) < 0.6)
    said = []
    masked_moments(values[:2], mask[:2], lambda x: said.append(x) or x)
    kept = values[mask].numpy().astype(float)
    other_square = ((values[:2][mask[:2]].numpy().astype(float) - kept.mean()) ** 2).sum()
    replies = iter([said[0], torch.tensor([other_square])])
    found_mean, found_variance = masked_moments(values[2:], mask[2:], lambda x: x + next(replies))
    assert found_mean.item() == pytest.approx(kept.mean(), abs=1e-6)
    assert found_variance.item() == pytest.approx(kept.var(), rel=1e-5)


def test_score_stands_at_the_last_valid_token_and_the_penalty_on_all():
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, 0, 0]]).bool()
    penalty = torch.arange(1.0, 21.0).view(4, 5) / 100
    rewards = token_rewards(penalty, torch.tensor([10.0, 20.0, 30.0, 40.0]), mask)
    expected = -penalty.numpy() * mask.numpy()
    for row, (last, score) in enumerate([(2, 10), (0, 20), (4, 30), (2, 40)]):
        expected[row, last] += score
    np.testing.assert_allclose(rewards, expected, atol=1e-6)


def test_rewards_leave_their_inputs_alone():
    penalty, mask = torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    token_rewards(penalty, torch.tensor([5.0]), mask)
    assert torch.equal(penalty, torch.ones(1, 2))
