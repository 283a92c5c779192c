import math
import random

import pytest

from data.annotators.sample import CompactRanking
from data.annotators.strengths import strengths
from data.schema import Ranking


def judged(prompt, models, ranks):
    texts = [f"{i} by {model}" for i, model in enumerate(models)]
    prompt = [{"role": "user", "content": prompt}]
    return CompactRanking.of(Ranking(prompt, texts, ranks, "ann", True, models=models))


def test_two_models_by_hand():
    """a wins 30 of 40: its log odds over b are log 3, half on each side of the mean."""
    rows = strengths([judged(f"p{i}", ["a", "b"], [1, 2] if i < 30 else [2, 1]) for i in range(40)])
    assert [row["model"] for row in rows] == ["a", "b"]
    assert rows[0]["strength"] == pytest.approx(math.log(3) / 2, abs=0.01)
    assert rows[1]["strength"] == pytest.approx(-math.log(3) / 2, abs=0.01)
    assert (rows[0]["win_rate"], rows[0]["pairs"]) == (0.75, 40)
    # The standard error of a log odds at 30 of 40 is sqrt(1 / 30 + 1 / 10) = 0.365.
    assert rows[0]["high"] - rows[0]["low"] == pytest.approx(2 * 1.96 * 0.365 / 2, rel=0.25)


def test_known_strengths_are_recovered():
    true = {"weak": -1.0, "plain": 0.0, "strong": 1.0}
    rng = random.Random(0)
    rows = []
    for i in range(2000):
        models = rng.sample(list(true), 2)
        first = rng.random() < 1 / (1 + math.exp(true[models[1]] - true[models[0]]))
        rows.append(judged(f"p{i}", models, [1, 2] if first else [2, 1]))
    estimates = {row["model"]: row for row in strengths(rows)}
    for model, strength in true.items():
        assert estimates[model]["strength"] == pytest.approx(strength, abs=0.15)
        assert estimates[model]["low"] < strength < estimates[model]["high"]


def test_ties_count_half_and_answers_of_the_same_model_do_not_count():
    rows = strengths([judged(f"p{i}", ["a", "a", "b"], [1, 2, 1]) for i in range(10)])
    # a's first answer ties with b and its second loses to it: 0.5 of 2.
    assert [(row["model"], row["win_rate"], row["pairs"]) for row in rows] == [("b", 0.75, 20), ("a", 0.25, 20)]


def test_a_model_that_never_loses_has_a_finite_strength():
    rows = strengths([judged(f"p{i}", ["a", "b"], [1, 2]) for i in range(20)])
    assert all(math.isfinite(row[name]) for row in rows for name in ("strength", "low", "high"))
    assert rows[0]["strength"] > 2


def test_rankings_without_two_models_have_no_strengths():
    plain = CompactRanking.of(Ranking([{"role": "user", "content": "p"}], ["x", "y"], [1, 2], "ann", True))
    assert strengths([plain]) == []
    assert strengths([judged("p", ["a", "a"], [1, 2])]) == []
    assert strengths([judged("p", ["a", ""], [1, 2])]) == []
