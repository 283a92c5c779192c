import math
import random
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import kendalltau

from data.annotators.agreement import signs, tau_b
from data.annotators.measures import first_shown, longer, measure_annotators, steps
from data.annotators.sample import CompactRanking, sample_rankings
from data.bootstrap import bootstrap, share
from data.schema import Ranking


def ranking(prompt, annotator, ranks, texts=None, **metadata):
    texts = texts or [f"answer {chr(97 + i)}" for i in range(len(ranks))]
    models = metadata.pop("models", None)
    return Ranking(
        [{"role": "user", "content": prompt}], texts, list(ranks), annotator, True, models=models, metadata=metadata
    )


def measured(rankings, **more):
    return measure_annotators(sample_rankings(rankings), resamples=200, **more)


# Kendall's tau-b


def tau_by_definition(a, b):
    concordant = discordant = strict_a = strict_b = 0
    for i, j in combinations(range(len(a)), 2):
        product = (a[i] - a[j]) * (b[i] - b[j])
        concordant += product > 0
        discordant += product < 0
        strict_a += a[i] != a[j]
        strict_b += b[i] != b[j]
    return (concordant - discordant) / math.sqrt(strict_a * strict_b)


def test_tau_b_matches_scipy():
    rng = random.Random(0)
    for _ in range(50):
        k = rng.randint(2, 7)
        ranks = [[rng.randint(1, 4) for _ in range(k)] for _ in range(3)]
        table = tau_b(signs(np.array(ranks)))
        for i, j in combinations(range(3), 2):
            a, b = ranks[i], ranks[j]
            if len(set(a)) == 1 or len(set(b)) == 1:
                assert math.isnan(table[i, j])
                continue
            assert table[i, j] == pytest.approx(tau_by_definition(a, b))
            assert table[i, j] == table[j, i] == pytest.approx(kendalltau(a, b).statistic)
    assert tau_b(signs(np.array([[1, 2, 3], [1, 2, 3], [3, 2, 1]])))[0].tolist() == pytest.approx([1, 1, -1])


def test_tau_is_averaged_over_pairs_of_annotators():
    ranks_by_prompt = {"p": {"a": [1, 2, 3], "b": [1, 3, 2], "c": [1, 1, 1]}, "q": {"a": [1, 2, 2], "c": [2, 1, 3]}}
    result = measured([ranking(p, name, ranks) for p, by in ranks_by_prompt.items() for name, ranks in by.items()])
    taus = [tau_by_definition([1, 2, 3], [1, 3, 2]), tau_by_definition([1, 2, 2], [2, 1, 3])]
    assert result["tau"]["value"] == pytest.approx(np.mean(taus))
    assert result["tau"]["pairs"] == 2
    assert result["by_annotator"]["a"]["tau"]["value"] == pytest.approx(np.mean(taus))
    assert result["by_annotator"]["b"]["tau"]["value"] == pytest.approx(taus[0])


# Shares


def test_shares_are_bootstrapped_by_prompt():
    counts = [("p", 1, 2), ("p", 1, 2), ("q", 0, 1), ("r", 0, 0)]
    result = share(counts, resamples=500)
    assert (result.value, result.pairs) == (pytest.approx(2 / 5), 5)
    assert (result.low, result.high) == (0.0, 0.5)  # draws: q twice, p and q, p twice (a half)
    assert share([("p", 0, 0)]).value is None


def test_the_bootstrap_does_not_depend_on_the_chunk_size(monkeypatch):
    hits, totals = list(range(50)), [60.0] * 50
    unchunked = bootstrap(hits, totals, resamples=300)
    monkeypatch.setattr("data.bootstrap.CHUNK", 500)
    assert bootstrap(hits, totals, resamples=300) == pytest.approx(unchunked, abs=0.02)


# Consistency and biases


def test_self_consistency_counts_repeated_items():
    """Ann reverses one of three pairs the second time, bob none; "unknown" is not a single annotator."""
    rankings = [
        ranking("p", "ann", [1, 2, 3]),
        ranking("p", "ann", [2, 1, 3], texts=["answer a", "answer b", "answer c"], repeat=True),
        ranking("p", "bob", [1, 2, 2]),
        ranking("p", "bob", [1, 2, 3], repeat=True),
        ranking("p", "unknown", [1, 2, 3]),
        ranking("p", "unknown", [3, 2, 1]),
    ]
    result = measured(rankings)
    by = result["by_annotator"]
    assert by["ann"]["self_consistency"]["value"] == pytest.approx(2 / 3)
    assert (by["bob"]["self_consistency"]["value"], by["bob"]["self_consistency"]["pairs"]) == (1.0, 2)
    assert by["unknown"]["self_consistency"]["value"] is None
    assert result["self_consistency"]["value"] == pytest.approx(4 / 5)


def test_position_and_length_counts():
    # In the order of texts: "a" (1 character, shown last), "bbb" (shown first), "cc" (between).
    compact = CompactRanking.of(ranking("p", "ann", [2, 1, 2], texts=["bbb", "a", "cc"], shown=[0, 2, 1]))
    assert first_shown(compact) == (0, 1)  # bbb loses to a, ties with cc
    assert longer(compact) == (0, 2)  # a beats both; bbb and cc tie
    assert first_shown(CompactRanking.of(ranking("p", "ann", [1, 2]))) == (0, 0)
    assert longer(CompactRanking.of(ranking("p", "ann", [2, 1, 3], texts=["aa", "bb", "c"]))) == (2, 2)


def biased(name, pull, count=400, seed=0):
    """Rankings by noise, plus `pull` for the answer that is shown first."""
    rng = random.Random(f"{name} {seed}")
    for i in range(count):
        shown = rng.sample(range(3), 3)
        utility = [rng.gauss(0, 1) + (pull if place == 0 else 0) for place in shown]
        ranks = [sorted(utility, reverse=True).index(value) + 1 for value in utility]
        yield ranking(f"{name} {i}", name, ranks, shown=shown, seconds=float(i))


def test_position_bias_is_detected():
    result = measured([*biased("drawn", 1.0), *biased("fair", 0.0)])
    drawn, fair = (result["by_annotator"][name]["first_shown"] for name in ("drawn", "fair"))
    # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2) = 0.7602
    assert drawn["low"] < 0.7602 < drawn["high"]
    assert drawn["low"] > 0.5
    assert fair["low"] < 0.5 < fair["high"]
    assert result["first_shown"]["pairs"] == drawn["pairs"] + fair["pairs"] == 1600


def test_ranking_times_are_summarised():
    result = measured(list(biased("slow", 0.0, count=101)))
    assert result["seconds"] == {"median": 50.0, "p90": 90.0, "rankings": 101}
    assert result["by_annotator"]["slow"]["seconds"]["median"] == 50.0
    assert measured([ranking("p", "ann", [1, 2])])["seconds"] is None


def test_agreement_of_an_annotator_with_the_others():
    ranks_by_annotator = {"a": [1, 2, 3], "b": [1, 2, 3], "c": [3, 2, 1]}
    by = measured([ranking("p", name, ranks) for name, ranks in ranks_by_annotator.items()])["by_annotator"]
    assert [by[name]["agreement"]["value"] for name in "abc"] == [0.5, 0.5, 0.0]
    assert [by[name]["agreement"]["pairs"] for name in "abc"] == [6, 6, 6]


def test_the_sample_is_described():
    rankings = [ranking(f"p{i}", name, [1, 2]) for i in range(200) for name in "ab"]
    result = measure_annotators(sample_rankings(rankings, most=100), resamples=50)
    assert result["sample"]["of"] == 400
    assert result["sample"]["rankings"] == 2 * result["sample"]["prompts"] <= 100
    assert result["sample"]["share"] < 1
    assert result["by_annotator"]["a"]["rankings"] == 200
    assert result["pairwise"]["value"] == 1.0


@pytest.mark.parametrize("models", [None, ["m", "n"], ["m", "m"], ["m", ""]])
def test_the_number_of_progress_steps_is_known(models):
    rankings = [ranking(f"p{i}", name, [1, 2], models=models) for i in range(3) for name in "abc"]
    sample, called = sample_rankings(rankings), []
    measure_annotators(sample, resamples=10, advance=lambda: called.append(1))
    assert len(called) == steps(sample)
