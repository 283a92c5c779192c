"""How much of the possible score PPO reached."""

import math

import numpy as np
import pytest

from stages.eval import optimum


def normal(prompts=400, samples=64, seed=0):
    return 2 + np.random.default_rng(seed).standard_normal((prompts, samples))


def measure(scores, ppo_gain, kl, **values):
    prompts = len(scores)
    ppo = np.full(prompts, scores.mean() + ppo_gain)
    return optimum.measure(
        scores, ppo, np.full(prompts, kl), **({"unit": 1.0, "resamples": 200, "seed": 0} | values)
    )


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_share_is_that_of_the_closed_form(share):
    """The optimum of N(m, 1) with a KL of k gains sqrt(2 k)."""
    kl = 0.5
    result = measure(normal(), share * math.sqrt(2 * kl), kl)
    assert result["share"]["value"] == pytest.approx(share, rel=0.03)
    assert result["share"]["low"] < result["share"]["value"] < result["share"]["high"]


def test_the_curve_starts_at_sft_and_rises_up_to_what_the_answers_resolve():
    result = measure(normal(), 0.5, 0.3, unit=2.0)
    points = result["points"]
    assert (points[0]["kl"], points[-1]["kl"]) == (0, result["reach"])
    assert abs(points[0]["gain"]["value"]) < 0.02
    gains = [point["gain"]["value"] for point in points]
    assert gains == sorted(gains)
    middle = points[len(points) // 2]
    assert middle["gain"]["value"] == pytest.approx(math.sqrt(2 * middle["kl"]) / 2, rel=0.05)
    assert middle["gain"]["low"] < middle["gain"]["value"] < middle["gain"]["high"]


@pytest.mark.parametrize("kl", [0.0, 9.0])
def test_there_is_no_share_without_a_kl_or_beyond_what_the_answers_resolve(kl):
    assert measure(normal(), 1.0, kl)["share"] is None


def test_there_is_no_share_where_nothing_can_be_gained():
    assert measure(np.ones((40, 16)), 0.0, 0.1)["share"] is None
