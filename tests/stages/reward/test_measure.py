"""What is measured of a reward model on held-out rankings, beside what others make of the same pairs."""

import contextlib

import numpy as np
import pytest
import tiny
import torch

from data.schema import Ranking
from pipeline.config.reward import RewardConfig
from stages.reward.bag_of_words import fit
from stages.reward.groups import TokenEncoder, group_rankings
from stages.reward.measure import measure_reward_model


class LengthModel:
    """Scores a row by its number of tokens, negated for the second member."""

    def __init__(self, members=1):
        self.signs = torch.tensor([[1.0], [-0.5]][:members])

    def members(self, ids_BL, lengths_B):
        return self.signs * lengths_B[None, :].float()

    def __call__(self, ids_BL, lengths_B):
        return self.members(ids_BL, lengths_B).mean(0)


def ranking(prompt, completions, ranks, annotator="ann"):
    return Ranking(tiny.user(prompt), completions, ranks, annotator, human=False)


def measured(rankings, context, *, model=None, words=(), max_length=40, rubric=None, ctx=None):
    encoder = TokenEncoder(tiny.codec())
    groups, _ = group_rankings(rankings, encoder, max_length)
    config = RewardConfig(lora=tiny.LORA)
    scorer = fit(list(words))
    return measure_reward_model(
        model or LengthModel(), groups, lambda: iter(rankings), encoder, scorer, rubric, config, ctx or context()
    )[0]


def test_agreement_is_that_of_the_pairs_that_are_measured(context):
    """Of p two annotators order ab and ac alike and bc not; bc is measured too. q has one annotator."""
    given = [
        ranking("p", ["a", "bb", "ccc"], [1, 2, 3]),
        ranking("p", ["a", "bb", "ccc"], [1, 3, 2], "bob"),
        ranking("q", ["a", "bb"], [2, 1]),
    ]
    found = measured(given, context)
    assert found["pairs"] == 7
    assert (found["agreement"], found["agreement_pairs"]) == (pytest.approx(2 / 3), 3)
    assert (found["agreement_low"], found["agreement_high"]) == (found["agreement"],) * 2, "one prompt"
    assert found["predicted_by_others"] == pytest.approx(2 / 3)


def test_agreement_leaves_out_what_is_too_long_to_be_measured(context):
    long = "c" * 30
    given = [ranking("p", ["a", "bb", long], [1, 2, 3]), ranking("p", ["a", "bb", long], [1, 3, 2], "bob")]
    found = measured(given, context, max_length=12)
    assert (found["pairs"], found["agreement"], found["agreement_pairs"]) == (2, 1.0, 1)


def test_agreement_that_is_not_known_is_none(context):
    found = measured([ranking("p", ["a", "bb"], [1, 2]), ranking("q", ["a", "bb"], [1, 2], "bob")], context)
    assert [found[name] for name in ("agreement", "agreement_low", "agreement_high", "predicted_by_others")] == [
        None
    ] * 4
    assert found["agreement_pairs"] == 0


def test_the_interval_of_agreement_is_over_prompts(context):
    """Half of 60 prompts are agreed on: 0.5 with about 1.96 * 0.5 / sqrt(60) on each side, however many pairs."""
    given = []
    for i in range(60):
        ranks = [1, 2, 3] if i % 2 else [3, 2, 1]
        given += [ranking(f"{i}", ["a", "bb", "ccc"], [1, 2, 3])]
        given += [ranking(f"{i}", ["a", "bb", "ccc"], ranks, "bob")]
    found = measured(given, context)
    assert (found["agreement"], found["agreement_pairs"]) == (0.5, 180)
    half = 1.96 * 0.5 / np.sqrt(60)
    assert found["agreement_low"] == pytest.approx(0.5 - half, abs=0.03)
    assert found["agreement_high"] == pytest.approx(0.5 + half, abs=0.03)


def test_the_bag_of_words_is_measured_on_the_same_pairs(context):
    """The model prefers the longer answer, the words say the truth: 2 of 4 pairs against 4."""
    given = [ranking(f"{i}", ["good", "bad, bad"] if i % 2 else ["good good", "bad"], [1, 2]) for i in range(4)]
    found = measured(given, context, words=[("good x", "bad x"), ("good y", "bad y")])
    assert (found["accuracy"], found["bag_of_words_accuracy"]) == (0.5, 1.0)
    assert found["above_bag_of_words"] == -0.5
    assert found["above_bag_of_words_low"] <= -0.5 <= found["above_bag_of_words_high"]


def test_each_member_is_measured_too(context):
    given = [ranking("p", ["bb", "a"], [1, 2]), ranking("q", ["bb", "a"], [1, 2])]
    found = measured(given, context, model=LengthModel(2))
    assert found["member_accuracy"] == [1.0, 0.0]
    assert found["disagreement"] > 0


def test_evaluation_shows_its_progress(training_context):
    """Answers are scored whole and cut in half; the total is known, so that rate and time left are."""
    ctx, notes = training_context()
    opened = {}

    @contextlib.contextmanager
    def progress(name, total=None, done=0):
        opened[name] = total
        yield notes

    object.__setattr__(ctx, "progress", progress)
    measured([ranking("p", ["a", "bb", "ccc"], [1, 2, 3])], None, ctx=ctx)
    assert opened == {"reward: evaluation": 6, "reward: measures": 2}
    assert notes.advanced == 8
