import math

import pytest

from pipeline.config.reward import GateConfig
from stages.reward.gate import gate

FIT = {
    "pairs": 100,
    "accuracy": 0.7,
    "accuracy_low": 0.66,
    "accuracy_high": 0.74,
    "length_accuracy": 0.6,
    "above_length_low": 0.05,
    "above_length_high": 0.15,
    "length_correlation": 0.4,
    "ece": 0.05,
    "score_mean": 1.0,
    "score_std": 1.2,
    "score_spread": 0.8,
    "ended_preferred": 0.9,
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"accuracy": 0.54}, ["reward.gate.min_accuracy"]),
        ({"accuracy_low": 0.5}, ["may be chance"]),
        ({"above_length_low": 0.0}, ["no better than choosing the longer"]),
        ({"length_correlation": -0.95}, ["follow length"]),
        ({"ece": 0.21}, ["calibration error is 0.210, above 0.2"]),
        ({"score_spread": 0.01}, ["all answers alike"]),
        ({"ended_preferred": 0.4}, ["only 40% of held-out answers"]),
        ({"accuracy": 0.4, "accuracy_low": 0.3, "ece": 0.5}, ["min_accuracy", "chance", "max_ece"]),
        ({"score_std": math.nan}, ["not finite"]),
        ({"score_mean": math.inf, "accuracy": 0.1}, ["not finite"]),
        ({"pairs": 0}, ["no held-out pair"]),
    ],
)
def test_each_reason(changes, words):
    found = gate(GateConfig(), FIT | changes)
    assert len(found) == len(words)
    for reason, expected in zip(found, words, strict=True):
        assert expected in reason


def test_what_was_never_measured():
    assert gate(GateConfig(), {}) == ["it was measured on no held-out pair at all"]


def test_checks_can_be_loosened():
    unfit = FIT | {"accuracy": 0.5, "accuracy_low": 0.4, "above_length_low": -0.1, "ended_preferred": 0.1}
    loose = GateConfig(min_accuracy=0, above_chance=False, above_length=False, min_ended_preferred=0)
    assert gate(loose, unfit) == []
