"""What PPO makes of a scorer's numbers: one score of an ensemble's members, normalised and clipped."""

import numpy as np
import pytest
import torch
from ppo_case import Rigged, varied

from pipeline.config.ppo import AggregateConfig, ScoreConfig
from stages.models.distributed import World
from stages.ppo.rewards import RewardSignal, ScoreNormalizer, aggregate
from stages.scoring.scorer import Scorer

BATCHES = [np.random.default_rng(i).normal(3 * i - 4, 1 + i, size=5 + i).astype("float32") for i in range(4)]


def normalizer(**values):
    return ScoreNormalizer(ScoreConfig(**({"clip": None} | values)), World())


def test_running_moments_against_numpy():
    running = normalizer(normalization="running")
    for i, batch in enumerate(BATCHES):
        found = running(torch.from_numpy(batch))
        seen = np.concatenate(BATCHES[: i + 1]).astype(float)
        assert running.mean == pytest.approx(seen.mean(), rel=1e-6)
        assert running.std == pytest.approx(seen.std(), rel=1e-6)
        np.testing.assert_allclose(found, (batch - seen.mean()) / seen.std(), atol=1e-4)


def test_state_goes_on_where_it_stood():
    whole = normalizer(normalization="running")
    for batch in BATCHES:
        expected = whole(torch.from_numpy(batch))
    first, second = normalizer(normalization="running"), normalizer(normalization="running")
    for batch in BATCHES[:2]:
        first(torch.from_numpy(batch))
    second.load_state_dict(first.state_dict())
    for batch in BATCHES[2:]:
        found = second(torch.from_numpy(batch))
    assert torch.equal(found, expected)
    assert second.state_dict() == whole.state_dict()


def test_reference_moments_are_taken_once():
    fixed = normalizer(normalization="reference")
    fixed.prepare(lambda: torch.from_numpy(BATCHES[0]))
    fixed.prepare(lambda: pytest.fail("already prepared"))
    for batch in BATCHES:
        expected = (batch - BATCHES[0].mean()) / BATCHES[0].std()
        np.testing.assert_allclose(fixed(torch.from_numpy(batch)), expected, atol=1e-4)
    assert fixed.mean == pytest.approx(BATCHES[0].astype(float).mean(), rel=1e-6)


def test_without_normalization_nothing_is_sampled_or_changed():
    none = normalizer(normalization="none")
    none.prepare(lambda: pytest.fail("not wanted"))
    assert torch.equal(none(torch.from_numpy(BATCHES[2])), torch.from_numpy(BATCHES[2]))


def test_clip_is_of_the_normalised_score():
    clipped = normalizer(normalization="reference", clip=1.5)
    clipped.prepare(lambda: torch.tensor([8.0, 12.0]))  # mean 10, standard deviation 2
    assert clipped(torch.tensor([0.0, 9.0, 12.9, 14.0])).tolist() == pytest.approx([-1.5, -0.5, 1.45, 1.5])
    assert normalizer(normalization="none", clip=1.0)(torch.tensor([-7.0])).item() == -1.0


def test_equal_scores_are_finite():
    running = normalizer(normalization="running")
    assert torch.equal(running(torch.full((4,), 3.0)), torch.zeros(4))


# --- Ensembles ---

MEMBERS = np.random.default_rng(3).normal(size=(4, 6)).astype("float32")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, MEMBERS.mean(0)),
        ({"aggregate": "min"}, MEMBERS.min(0)),
        ({"aggregate": "uncertainty", "uncertainty_coef": 0.5}, MEMBERS.mean(0) - 0.5 * MEMBERS.std(0)),
        ({"aggregate": "uncertainty", "uncertainty_coef": 0.0}, MEMBERS.mean(0)),
    ],
)
def test_aggregates(values, expected):
    np.testing.assert_allclose(aggregate(torch.from_numpy(MEMBERS), AggregateConfig(**values)), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "min", "uncertainty"])
def test_members_of_one_mind_change_nothing(kind):
    same = torch.from_numpy(MEMBERS[:1]).expand(3, -1)
    found = aggregate(same, AggregateConfig(aggregate=kind, uncertainty_coef=7.0))
    np.testing.assert_allclose(found, MEMBERS[0], atol=1e-6)


class TwoMembers(Scorer):
    """One counts a response's tokens, the other counts each three times."""

    name, size = "two", 2

    def members(self, prompts, responses):
        lengths = torch.tensor([float(len(response)) for response in responses])
        return torch.stack([lengths, 3 * lengths])


RESPONSES = [[20, 1], [21, 22, 23, 1], [24]]


def test_disagreement_is_that_of_the_responses_scored_last():
    reward = RewardSignal(TwoMembers(), AggregateConfig(aggregate="min"))
    reward([None], [[5] * 100])
    assert reward([None] * 3, RESPONSES).tolist() == [2, 4, 1]
    # The standard deviation of n and 3n is n.
    assert reward.disagreement(World()) == {"objective/scores_disagreement": pytest.approx(7 / 3)}


def test_a_single_model_disagrees_with_nobody():
    reward = RewardSignal(Rigged(varied), AggregateConfig())
    assert torch.equal(reward([None] * 3, RESPONSES), varied([None] * 3, RESPONSES))
    assert reward.disagreement(World()) == {}
