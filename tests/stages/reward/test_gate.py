import math

import pytest

from pipeline.config.reward import GateConfig
from stages.reward.gate import gate, summary, warnings

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
    "bag_of_words_accuracy": 0.65,
    "above_bag_of_words_low": 0.02,
    "above_bag_of_words_high": 0.08,
    "agreement": None,
}
NO_BETTER = FIT | {"bag_of_words_accuracy": 0.72, "above_bag_of_words_low": -0.04, "above_bag_of_words_high": 0.01}


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
        (
            {"ended_preferred": 0.2},
            ["it does not prefer complete answers: only 20 % of held-out answers score higher"],
        ),
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
    assert gate(GateConfig(), {}) == ["it was measured on no held-out pair"]


def test_checks_can_be_loosened():
    unfit = FIT | {"accuracy": 0.5, "accuracy_low": 0.4, "above_length_low": -0.1, "ended_preferred": 0.1}
    loose = GateConfig(min_accuracy=0, above_chance=False, above_length=False, min_ended_preferred=0)
    assert gate(loose, unfit) == []


def test_no_better_than_a_bag_of_words_is_a_warning_or_a_reason():
    """As the recipe says: never both, never neither."""
    strict = GateConfig(above_bag_of_words=True)
    for config in (GateConfig(), None):
        (said,) = warnings(config, NO_BETTER)
        assert "no better (0.700) than a logistic regression on the words of the answers (0.720)" in said
        assert "the 95 % interval of its lead is −4 to +1 points" in said
        assert "reward.gate.above_bag_of_words" in said
    assert gate(GateConfig(), NO_BETTER) == []
    (reason,) = gate(strict, NO_BETTER)
    assert "+1 points (reward.gate.above_bag_of_words)" in reason
    assert warnings(strict, NO_BETTER) == []
    assert warnings(GateConfig(), FIT) == gate(strict, FIT) == []
    assert warnings(GateConfig(), {"pairs": 0}) == [], "nothing was measured"


def test_the_agreement_that_is_quoted_is_that_of_the_held_out_prompts():
    low = FIT | {"accuracy": 0.54, "accuracy_low": 0.51}
    (reason,) = gate(GateConfig(), low)
    assert "the agreement of two annotators on these prompts is unknown" in reason
    known = {"agreement": 0.61, "agreement_low": 0.55, "agreement_high": 0.66, "agreement_pairs": 321}
    (reason,) = gate(GateConfig(), low | known)
    assert "two annotators agree on 0.610 (0.550 to 0.660) of 321 pairs of these prompts" in reason


def test_why_nothing_was_measured():
    why = "3 of 3 held-out rankings left out: prompt and answer longer than reward.max_length = 9 tokens"
    assert gate(GateConfig(), {"pairs": 0}, why) == [f"it was measured on no held-out pair ({why})"]
    assert gate(GateConfig(), {"pairs": 0}) == ["it was measured on no held-out pair"]


def test_one_line_says_what_accuracy_is_to_be_compared_with():
    said = summary(FIT)
    assert said == (
        "of 100 held-out pairs the reward model orders 0.700 as annotators did (0.660 to 0.740), "
        "a bag of words 0.650, the longer answer 0.600; the agreement of two annotators on these prompts is unknown"
    )
    assert summary({"pairs": 0}) == ""
