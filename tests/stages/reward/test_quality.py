import numpy as np
import pytest

from data.schema import Ranking, prompt_key
from stages.reward.quality import calibration, quality, spearman


def ranking(prompt, completions, ranks, annotator="ann"):
    return Ranking([{"role": "user", "content": prompt}], completions, ranks, annotator, human=False)


def table(prompt, values):
    key = prompt_key([{"role": "user", "content": prompt}])
    return {(key, text): value for text, value in values.items()}


def test_accuracy_by_hand():
    rankings = [
        ranking("p", ["aaa", "bb", "c" * 9], [1, 2, 3]),  # ab wrong, ac right, bc right
        ranking("p", ["aaa", "bb"], [1, 1], "bob"),  # a tie: no pair
        ranking("q", ["dddd", "e" * 8], [2, 1], "bob"),  # equal scores: half
    ]
    scores = table("p", {"aaa": 1.0, "bb": 2.0, "c" * 9: 0.0}) | table("q", {"dddd": 5.0, "e" * 8: 5.0})
    metrics, tables = quality(rankings, scores, seed=0)
    assert metrics["pairs"] == 4
    assert metrics["prompts"] == 2
    assert metrics["accuracy"] == pytest.approx(2.5 / 4)
    assert metrics["length_accuracy"] == pytest.approx(2 / 4)  # ab right, ac wrong, bc wrong, ed right
    assert metrics["accuracy_by_annotator"] == {"ann": pytest.approx(2 / 3), "bob": 0.5}
    assert metrics["score_mean"] == pytest.approx(13 / 5)
    assert metrics["score_std"] == pytest.approx(np.std([1, 2, 0, 5, 5]))
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    assert metrics["accuracy_by_prompt"] == pytest.approx((2 / 3 + 0.5) / 2)
    assert metrics["above_length"] == pytest.approx((2 - 1 + 0.5 - 1) / 4)  # p: 2 of 3 against 1, q: half against 1
    assert metrics["score_spread"] == pytest.approx((np.std([1, 2, 0]) + 0.0) / 2)
    assert tables["by_annotator"] == [
        {"annotator": "ann", "pairs": 3, "accuracy": pytest.approx(2 / 3)},
        {"annotator": "bob", "pairs": 1, "accuracy": 0.5},
    ]
    assert [row["count"] for row in tables["by_prompt"]] == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert sum(row["count"] for row in tables["scores"]) == 5


def test_completions_without_a_score_are_left_out():
    rankings = [ranking("p", ["a", "b", "c"], [1, 2, 3])]
    scores = table("p", {"a": 1.0, "b": 0.0})
    metrics, _ = quality(rankings, scores, seed=0)
    assert (metrics["pairs"], metrics["accuracy"]) == (1, 1.0)


def test_interval_is_over_prompts():
    """Many pairs of one prompt are one observation: with all of them in one prompt there is no spread."""
    many = [ranking("p", ["a", "b"], [1, 2]) for _ in range(50)]
    split = [ranking(str(i), ["a", "b"], [1, 2] if i % 2 else [2, 1]) for i in range(50)]
    scores = table("p", {"a": 1.0, "b": 0.0})
    for i in range(50):
        scores |= table(str(i), {"a": 1.0, "b": 0.0})
    one, _ = quality(many, scores, seed=0)
    assert (one["accuracy_low"], one["accuracy_high"]) == (1.0, 1.0)
    several, _ = quality(split, scores, seed=0)
    assert several["accuracy"] == 0.5
    # The exact 95 % interval of a share of 50 fair draws is 0.5 -+ 1.96 * 0.5 / sqrt(50).
    assert several["accuracy_low"] == pytest.approx(0.361, abs=0.03)
    assert several["accuracy_high"] == pytest.approx(0.639, abs=0.03)


def test_nothing_to_measure():
    metrics, tables = quality([ranking("p", ["a", "b"], [1, 1])], table("p", {"a": 1.0, "b": 0.0}), 0)
    assert (metrics, tables) == ({"pairs": 0}, {"reliability": []})


def test_the_length_baseline_counts_characters_and_half_of_a_tie():
    """The better answer has more characters, as many, and fewer; words and tokens would say otherwise."""
    pairs = [("extraordinarily", "a b c d"), ("a b", "abc"), ("no", "yes, it is"), ("\u4f60\u597d\u554a", "hi")]
    rankings = [ranking(str(i), [better, worse], [1, 2]) for i, (better, worse) in enumerate(pairs)]
    scores = {}
    for i, (better, worse) in enumerate(pairs):
        scores |= table(str(i), {better: 1.0, worse: 0.0})
    metrics, _ = quality(rankings, scores, seed=0)
    assert metrics["length_accuracy"] == (1 + 0.5 + 0 + 1) / 4
    assert metrics["above_length"] == pytest.approx(1.5 / 4)


def test_a_baseline_is_compared_on_the_same_pairs():
    """Of ten prompts the scores are right on eight and the baseline on six, all of these among the eight: what the
    scores are better by is 0.2 with the interval of a share of two in ten, whatever the pairs have in common."""
    scores, baseline, rankings = {}, {}, []
    for i in range(10):
        rankings.append(ranking(str(i), ["a", "b"], [1, 2]))
        scores |= table(str(i), {"a": 1.0 if i < 8 else -1.0, "b": 0.0})
        baseline |= table(str(i), {"a": 1.0 if i < 6 else -1.0, "b": 0.0})
    metrics, _ = quality(rankings, scores, 0, {"words": baseline})
    assert metrics["words_accuracy"] == pytest.approx(0.6)
    assert metrics["above_words"] == pytest.approx(0.2)
    # Binomial(10, 0.2) / 10: P(0) = 0.11, P(<= 4) = 0.967, P(<= 5) = 0.994.
    assert metrics["above_words_low"] == pytest.approx(0.0)
    assert metrics["above_words_high"] == pytest.approx(0.5, abs=0.11)


def test_equal_answers_are_no_pair():
    rankings = [ranking("p", ["a", "b", "a"], [1, 2, 3])]
    metrics, _ = quality(rankings, table("p", {"a": 1.0, "b": 0.0}), seed=0)
    assert (metrics["pairs"], metrics["accuracy"]) == (2, 0.5), "a over b and b over a"


def test_calibration_by_hand():
    """Margins log 3 and -log 3: p = 0.75 and 0.25, seen from both sides; observed one half in both bins."""
    ece, brier, rows = calibration(np.log([3.0, 1 / 3]))
    assert ece == pytest.approx(0.25)
    assert brier == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert [row["count"] for row in rows] == [2, 2]
    assert [row["predicted"] for row in rows] == pytest.approx([0.25, 0.75])
    assert [row["observed"] for row in rows] == pytest.approx([0.5, 0.5])


def test_calibrated_margins_have_no_error():
    """Three of four won at p = 0.75."""
    ece, brier, _ = calibration(np.log([3.0, 3.0, 3.0, 1 / 3]))
    assert ece == pytest.approx(0.0, abs=1e-12)
    assert brier == pytest.approx(0.75 * 0.25)


def test_certain_and_right():
    ece, brier, rows = calibration(np.array([50.0, 60.0]))
    assert (ece, brier) == (pytest.approx(0.0, abs=1e-12), pytest.approx(0.0, abs=1e-12))
    assert sum(row["count"] for row in rows) == 4


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 1000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3], [5, 5, 5], 0.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 1 - 6 * 4 / (5 * 24)),  # 1 - 6 sum d^2 / n(n^2 - 1)
        ([1, 1, 2], [1, 2, 3], np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1]),  # ties: mean ranks
    ],
)
def test_spearman(x, y, expected):
    assert spearman(np.array(x, float), np.array(y, float)) == pytest.approx(expected)
