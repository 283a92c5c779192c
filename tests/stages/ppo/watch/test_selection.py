"""Which point's policy is selected, and when the run is over-optimised."""

import math
from itertools import product

import numpy as np
import pytest

from stages.ppo.watch import selection


def point(update, judged, scores=None):
    scores = [0.0] * len(judged) if scores is None else scores
    means = {"judge": sum(judged) / len(judged), "score": sum(scores) / len(scores)}
    return {"update": update, "judged": judged, "scores": scores, **means}


def along(*levels, prompts=40, noise=0.02):
    """Evaluations whose judge and score have these mean levels, with a little noise of their own."""
    generator = np.random.default_rng(0)
    return [
        point(
            4 * i,
            (judge + noise * generator.normal(size=prompts)).tolist(),
            (score + noise * generator.normal(size=prompts)).tolist(),
        )
        for i, (judge, score) in enumerate(levels)
    ]


# --- The test over prompts ---


@pytest.mark.parametrize("n", [1, 3, 10])
def test_a_rise_of_every_prompt_has_the_chance_of_heads_only(n):
    assert selection.p_of_rise([0.0] * n, [1.0 + i for i in range(n)]) == pytest.approx(0.5**n)


def test_the_chance_is_the_share_of_all_exchanges():
    before, after = [0.0, 1.0, 0.5, 2.0], [1.0, 0.5, 2.5, 2.0]
    rise = sum(after) - sum(before)
    sums = [
        sum(b - a if swap else a - b for a, b, swap in zip(after, before, swaps, strict=True))
        for swaps in product((False, True), repeat=4)
    ]
    assert selection.p_of_rise(before, after) == pytest.approx(sum(s >= rise for s in sums) / 16)


def test_sums_that_differ_by_rounding_are_equal():
    """0.1 + 0.2 - 0.3 is not 0 in floating point, but counts as a rise as large as every other 0."""
    tenths = [1, 2, -3, 4, 2, -1]
    sums = [sum(t * s for t, s in zip(tenths, signs, strict=True)) for signs in product((1, -1), repeat=6)]
    expected = sum(s >= sum(tenths) for s in sums) / len(sums)
    assert selection.p_of_rise([0.0] * 6, [t / 10 for t in tenths]) == pytest.approx(expected)


def test_many_prompts_are_sampled_and_agree_with_the_normal_limit():
    differences = np.random.default_rng(3).normal(0.15, 1, size=200)
    z = differences.sum() / math.sqrt((differences**2).sum())
    expected = 0.5 * math.erfc(z / math.sqrt(2))
    found = selection.p_of_rise([0.0] * 200, differences.tolist())
    assert found == pytest.approx(expected, abs=0.01)
    assert found == selection.p_of_rise([0.0] * 200, differences.tolist())


def test_no_difference_is_no_rise():
    assert selection.p_of_rise([1.0, 2.0], [1.0, 2.0]) == 1.0


# --- The choice ---


def test_the_best_point_is_selected_and_the_earliest_of_equals():
    evaluations = [point(0, [0.0, 0.0]), point(4, [1.0, 1.0]), point(8, [0.5, 1.5]), point(12, [0.0, 1.0])]
    assert selection.selected(evaluations, "best") == 1
    assert selection.selected(evaluations, "last") is None


def test_without_a_judge_the_last_policy_is_selected():
    evaluations = [{"update": 0, "score": 1.0, "scores": [1.0]}, {"update": 4, "score": 0.0, "scores": [0.0]}]
    assert selection.selected(evaluations, "best") is None
    assert selection.regression(evaluations, 1, 0.05) is None
    assert selection.selected([], "best") is None


# --- Over-optimisation ---


def stops(levels, patience=2, **values):
    evaluations = along(*levels, **values)
    found = [
        selection.overoptimised(evaluations[: n + 1], significance=0.05, patience=patience)
        for n in range(len(evaluations))
    ]
    return next((n for n, fall in enumerate(found) if fall), None)


def test_it_stops_once_the_judge_has_fallen_at_enough_looks():
    levels = [(0.0, 0.0), (1.0, 1.0), (0.5, 2.0), (0.4, 3.0), (0.1, 4.0)]
    assert stops(levels) == 3
    assert stops(levels, patience=1) == 2
    assert stops(levels, patience=3) == 4


@pytest.mark.parametrize(
    "levels",
    [
        [(0.0, 0.0), (1.0, 1.0), (1.1, 2.0), (1.2, 3.0)],  # both rise
        [(0.0, 0.0), (1.0, 1.0), (0.5, 0.9), (0.4, 0.8)],  # both fall: unstable, not over-optimised
        [(0.0, 0.0), (1.0, 1.0), (0.5, 2.0), (1.1, 3.0), (0.5, 4.0)],  # not in a row
        [(0.0, 0.0), (1.0, 1.0), (1.0, 2.0), (1.0, 3.0)],  # level
    ],
)
def test_it_does_not_stop(levels):
    assert stops(levels) is None


def test_what_chance_explains_is_no_fall():
    levels = [(0.0, 0.0), (1.0, 1.0), (0.9, 2.0), (0.9, 3.0)]
    assert stops(levels, noise=2.0) is None
    assert stops(levels, noise=0.02) == 3
    assert stops(levels, noise=0.02, prompts=3) is None, "of three prompts nothing is known at 5 %"


def test_a_fall_says_from_what_to_what():
    evaluations = along((0.0, 0.0), (1.0, 1.0), (0.5, 2.0))
    fall = selection.regression(evaluations, 2, 0.05)
    assert (fall.best, fall.now) == (1, 2)
    assert fall.p < 0.05
    said = fall.describe(evaluations)
    assert "since update 4 the judge’s score fell from 1.0" in said
    assert "on 40 held-out prompts" in said
