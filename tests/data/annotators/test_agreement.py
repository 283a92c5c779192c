import itertools
import math
import random
from collections import defaultdict

import numpy as np
import pytest

from data.annotators.agreement import agreement, krippendorff_alpha, overlaps
from data.annotators.measures import measure_annotators
from data.annotators.sample import sample_rankings
from data.bootstrap import bootstrap
from data.schema import Ranking
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig


def ranking(annotator, ranks, prompt="p", texts="abcdefgh"):
    k = len(ranks)
    return Ranking([{"role": "user", "content": prompt}], list(texts[:k]), ranks, annotator, human=True)


def test_two_annotators_by_hand():
    """Ann: a>b>c, Bob: a>c>b. They agree on 2 (ab, ac) of the 3 pairs that both order strictly."""
    measured = agreement([ranking("ann", [1, 2, 3]), ranking("bob", [1, 3, 2])])
    assert (measured.pairwise.value, measured.pairwise.pairs) == (2 / 3, 3)
    # each annotator predicts the other, so every pair counts twice
    assert (measured.by_others.value, measured.by_others.pairs) == (2 / 3, 6)
    assert (measured.overlaps, measured.annotators) == (1, 2)


def test_ties_do_not_count_in_shares():
    """Bob ties b and c, so only ab and ac count, and they agree on both."""
    measured = agreement([ranking("ann", [1, 2, 3]), ranking("bob", [1, 2, 2])])
    assert (measured.pairwise.value, measured.pairwise.pairs) == (1.0, 2)


def test_three_annotators_by_hand():
    """Two rank a>b, one b>a, so one of three pairs of annotators agrees.

    The others' majority is a tie for ann and bob, and the opposite for cid.
    """
    measured = agreement([ranking("ann", [1, 2]), ranking("bob", [1, 2]), ranking("cid", [2, 1])])
    assert (measured.pairwise.value, measured.pairwise.pairs) == (1 / 3, 3)
    assert (measured.by_others.value, measured.by_others.pairs) == (0.0, 1)


def test_display_order_does_not_matter():
    shown = ranking("ann", [1, 2, 3], texts="abc")
    reordered = ranking("bob", [3, 1, 2], texts="cab")
    assert agreement([shown, reordered]).pairwise.value == 1.0


def test_only_the_same_completions_of_the_same_prompt_are_compared():
    base = ranking("ann", [1, 2])
    others = [ranking("bob", [1, 2], prompt="q"), ranking("bob", [1, 2], texts="ac"), ranking("ann", [2, 1])]
    for other in others:
        assert list(overlaps([base, other])) == []
    measured = agreement([base, *others])
    assert (measured.pairwise.value, measured.pairwise.low, measured.pairwise.pairs) == (None, None, 0)
    assert (measured.alpha, measured.overlaps) == (None, 0)


def test_agreement_of_ties_is_undefined():
    measured = agreement([ranking("ann", [1, 1]), ranking("bob", [1, 1])])
    assert (measured.pairwise.value, measured.by_others.value, measured.alpha) == (None, None, None)


def test_perfect_and_opposite_agreement():
    perfect = agreement([ranking(a, [1, 2, 3], prompt=p) for p in "xyz" for a in ("ann", "bob")])
    assert perfect.alpha == pytest.approx(1.0)
    assert (perfect.pairwise.value, perfect.pairwise.low, perfect.pairwise.high) == (1.0, 1.0, 1.0)
    opposite = agreement([ranking("ann", [1, 2, 3]), ranking("bob", [3, 2, 1])])
    assert opposite.pairwise.value == 0.0
    assert opposite.alpha < 0


def test_chance_agreement_is_one_half_and_alpha_zero():
    rng = random.Random(0)
    rankings = [
        ranking(name, rng.sample(range(1, 5), 4), prompt=f"prompt {i}") for i in range(1500) for name in ("a", "b")
    ]
    measured = agreement(rankings, resamples=200)
    assert measured.pairwise.value == pytest.approx(0.5, abs=0.02)
    assert measured.pairwise.low < 0.5 < measured.pairwise.high
    assert measured.alpha == pytest.approx(0.0, abs=0.04)


def alpha_by_definition(shared):
    """1 - D_o / D_e over all ordered pairs of values, with squared distances of standardised mid-ranks."""
    units = []
    for overlap in shared:
        k = overlap.ranks.shape[1]
        strict = [rank - (k + 1) / 2 for rank in range(1, k + 1)]
        scale = math.sqrt(sum(value**2 for value in strict) / k)
        units += [[(rank - (k + 1) / 2) / scale for rank in unit] for unit in overlap.ranks.T.tolist()]
    values = [value for unit in units for value in unit]
    n = len(values)
    observed = sum((a - b) ** 2 / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2)) / n
    expected = sum((a - b) ** 2 for a, b in itertools.permutations(values, 2)) / (n * (n - 1))
    return 1 - observed / expected


def test_alpha_matches_its_definition():
    rng = random.Random(1)
    rankings = [
        ranking(f"w{j}", [rng.randint(1, 3) for _ in range(k)], prompt=f"p{i}")
        for i in range(20)
        for k in [rng.randint(2, 6)]
        for j in range(rng.randint(2, 4))
    ]
    shared = list(overlaps(rankings))
    assert krippendorff_alpha(shared) == pytest.approx(alpha_by_definition(shared))


@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_alpha_for_a_single_k_without_ties_is_the_ordinal_alpha(k):
    """Compared with the package `krippendorff`, with two to four annotators per item."""
    package = pytest.importorskip("krippendorff")
    rng = random.Random(k)
    rankings = [
        ranking(f"w{j}", sorted(range(1, k + 1), key=lambda rank: rank + rng.gauss(0, 1)), prompt=f"p{i}")
        for i in range(15)
        for j in range(rng.randint(2, 4))
    ]
    shared = list(overlaps(rankings))
    counts = [[list(unit).count(rank) for rank in range(1, k + 1)] for o in shared for unit in o.ranks.T]
    expected = package.alpha(
        value_counts=counts, value_domain=list(range(1, k + 1)), level_of_measurement="ordinal"
    )
    assert krippendorff_alpha(shared) == pytest.approx(expected)


# --- Chance level: annotators who rank independently at random ---


def strict(k, rng):
    return list(range(1, k + 1))


def best_or_worst(k, rng):
    """One best and the rest tied, or one worst and the rest tied."""
    return [1] + [2] * (k - 1) if rng.random() < 0.5 else [1] * (k - 1) + [2]


def some_ties(k, rng):
    return [rng.randint(1, 3) for _ in range(k)]


def at_random(rng, ks, pattern, *, ties_by_annotator, items=120):
    """Random rankings by two to four of six annotators per item; some rank an item twice. Two items share a prompt.

    With `ties_by_annotator` every annotator draws a tie pattern; otherwise the annotators of an item share one.
    """
    for i in range(items):
        k = rng.choice(ks)
        item_ranks = pattern(k, rng)
        for annotator in rng.sample("uvwxyz", rng.randint(2, 4)):
            for _ in range(rng.choice([1, 1, 2])):
                ranks = pattern(k, rng) if ties_by_annotator else item_ranks
                texts = [f"{i} {j}" for j in range(k)]
                drawn = rng.sample(ranks, k)
                yield Ranking([{"role": "user", "content": f"p{i // 2}"}], texts, drawn, annotator, human=True)


CHANCE = {
    "two and six": ([2, 6], strict, False),
    "two and six, tied by item": ([2, 6], best_or_worst, False),
    "ten, tied by item": ([10], best_or_worst, False),
    "ten, tied by annotator": ([10], best_or_worst, True),
    "two to seven, ties": ([2, 3, 4, 5, 6, 7], some_ties, True),
    "two to seven, ties by item": ([2, 3, 4, 5, 6, 7], some_ties, False),
}


@pytest.mark.parametrize("case", CHANCE)
def test_random_annotators_agree_at_chance_level(case):
    """Every measure is at its chance level, within four standard errors of the simulation."""
    ks, pattern, ties_by_annotator = CHANCE[case]
    samples = defaultdict(list)
    for seed in range(12):
        rng = random.Random(f"{case} {seed}")
        measured = measure_annotators(
            sample_rankings(at_random(rng, ks, pattern, ties_by_annotator=ties_by_annotator)), resamples=2
        )
        samples["alpha"].append(measured["alpha"])
        samples["tau"].append(measured["tau"]["value"])
        for name in ("pairwise", "by_others", "self_consistency"):
            samples[name].append(measured[name]["value"] - 0.5)
        for name in "uvwxyz":
            samples[f"agreement of {name}"].append(measured["by_annotator"][name]["agreement"]["value"] - 0.5)
    for name, values in samples.items():
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        assert abs(np.mean(values)) < 4 * error + 1e-3, (name, np.mean(values), error)
        assert error < 0.05, name


@pytest.mark.parametrize("case", CHANCE)
def test_identical_annotators_agree_perfectly(case):
    ks, pattern, _ = CHANCE[case]
    rng = random.Random(case)
    rankings = []
    for i in range(40):
        k = rng.choice(ks)
        ranks = rng.sample(ties := pattern(k, rng), k)
        if len(set(ties)) > 1:
            rankings += [ranking(name, ranks, prompt=f"p{i}", texts="abcdefghij") for name in "uvw"]
    measured = agreement(rankings, resamples=2)
    assert measured.alpha == pytest.approx(1.0)
    assert measured.tau.value == pytest.approx(1.0)
    assert (measured.pairwise.value, measured.by_others.value) == (1.0, 1.0)


def test_identical_answers_count_as_tied():
    """Two systems answered "x". Their order in a ranking depends on the columns and expresses no preference."""
    measured = agreement(
        [ranking("ann", [1, 3, 2], texts=["x", "x", "y"]), ranking("bob", [3, 2, 1], texts=["x", "x", "y"])]
    )
    assert measured.pairwise.pairs == 0, "ann ties all three: one x beats y and the other loses to it"
    measured = agreement(
        [ranking("ann", [1, 2, 3], texts=["x", "x", "y"]), ranking("bob", [2, 3, 1], texts=["x", "y", "x"])]
    )
    assert (measured.pairwise.value, measured.pairwise.pairs) == (1.0, 2)


def test_the_bootstrap_interval_matches_the_normal_interval():
    """400 prompts with one pair each, share 0.7: the normal interval is 0.7 +- 1.96 sqrt(0.7 * 0.3 / 400)."""
    low, high = bootstrap([1] * 280 + [0] * 120, [1] * 400)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 400)
    assert low == pytest.approx(0.7 - half, abs=0.01)
    assert high == pytest.approx(0.7 + half, abs=0.01)
    assert bootstrap([1] * 280 + [0] * 120, [1] * 400) == (low, high)
    assert bootstrap([3, 3], [3, 3]) == (1.0, 1.0)


def test_the_bootstrap_draws_prompts_not_pairs():
    """Ten prompts whose 40 pairs each all agree or all disagree are ten observations, not 400."""
    low, high = bootstrap([40] * 7 + [0] * 3, [40] * 10)
    assert high - low > 0.4


@pytest.mark.parametrize(
    ("name", "ratings", "pairwise", "by_others"),
    [("quality", "quality", 0.67278, 0.67162), ("naturalness", "natur", 0.62633, 0.63492)],
)
def test_agreement_of_e2e_workers(shared, name, ratings, pairwise, by_others):
    """The figures were counted from the files without this package, less the answers that a worker rated twice."""
    config = RankingTableConfig(
        path=str(shared / "e2e_rankings" / f"{name}.csv"),
        format="wide",
        columns={
            "prompt": "mr",
            "completions": [f"ref{i}" for i in range(1, 6)],
            "ratings": [f"{ratings}{i}" for i in range(1, 6)],
            "annotator": "_worker_id",
        },
    )
    measured = agreement(read_rankings(config, Dropped()), resamples=200)
    assert measured.pairwise.value == pytest.approx(pairwise, abs=1e-5)
    assert measured.by_others.value == pytest.approx(by_others, abs=1e-5)
    assert measured.pairwise.low < measured.pairwise.value < measured.pairwise.high
