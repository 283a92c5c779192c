import random

import numpy as np
import pytest

from data.annotators.agreement import overlaps
from data.annotators.reliability import PRIOR, reliability, weights
from data.schema import Ranking

SURE = {"s": 0.95, "t": 0.85, "u": 0.75, "v": 0.65, "coin": 0.5}


def pair(prompt, annotator, right):
    ranks = [1, 2] if right else [2, 1]
    return Ranking([{"role": "user", "content": prompt}], ["x", "y"], ranks, annotator, True)


def simulated(probabilities, items, each=2, seed=0):
    """Each item is ranked by `each` annotators, who order it correctly with probability `probabilities[name]`."""
    rng = random.Random(seed)
    return [
        pair(f"p{i}", name, rng.random() < probabilities[name])
        for i in range(items)
        for name in rng.sample(sorted(probabilities), each)
    ]


@pytest.mark.parametrize("each", [2, 4])
def test_known_reliabilities_are_recovered(each):
    shared = list(overlaps(simulated(SURE, 6000, each)))
    s, pairs = reliability(shared)
    for name, p in SURE.items():
        assert s[name] == pytest.approx(2 * p - 1, abs=0.08)
    assert sum(pairs.values()) == 6000 * each * (each - 1)
    trust = weights(shared, SURE)
    assert sorted(trust, key=lambda name: -trust[name]) == list(SURE)
    assert trust["coin"] < 0.15
    assert trust["s"] > 1.3


def test_a_contrarian_gets_almost_no_weight():
    trust = weights(overlaps(simulated({**SURE, "coin": 0.1}, 3000, 3)), SURE)
    assert trust["coin"] == pytest.approx(PRIOR / (PRIOR + 3600), abs=0.02)


def test_weights_average_to_about_one():
    shared = list(overlaps(simulated(SURE, 4000, 3)))
    _, pairs = reliability(shared)
    trust = weights(shared, SURE)
    assert np.average([trust[n] for n in SURE], weights=[pairs[n] for n in SURE]) == pytest.approx(1.0, abs=0.02)


def test_few_pairs_hardly_change_a_weight():
    """A random annotator with only four shared pairs keeps a weight near one."""
    known = simulated({name: p for name, p in SURE.items() if name != "coin"}, 2000, 2)
    few = [pair(f"p{i}", "coin", i % 2 == 0) for i in range(4)]
    trust = weights(overlaps([*known, *few]), SURE)
    assert 0.7 < trust["coin"] < 1.1


def test_annotators_that_cannot_be_told_apart_get_equal_weights():
    two = [pair(f"p{i}", name, i % 3 > 0 or name == "a") for i in range(300) for name in "ab"]
    trust = weights(overlaps(two), "abc")
    assert trust == pytest.approx({"a": 1.0, "b": 1.0, "c": 1.0}, abs=0.01)
    coins = simulated(dict.fromkeys("ab", 0.5), 40, 2, seed=1)
    opposed = [pair(f"q{i}", name, name == "a") for i in range(40) for name in "ab"]
    assert weights(overlaps([*coins, *opposed]), "ab") == {"a": 1.0, "b": 1.0}
    assert weights([], "ab") == {"a": 1.0, "b": 1.0}
