import itertools
import random

import numpy as np
import pytest

from data.agreement import agreement, bootstrap, krippendorff_alpha, mid_ranks, overlaps
from data.rankings import read_rankings
from data.schema import Ranking
from data.sources import Dropped
from pipeline.config.data import RankingTableConfig


def ranking(annotator, ranks, prompt="p", texts="abcdefgh"):
    k = len(ranks)
    return Ranking([{"role": "user", "content": prompt}], list(texts[:k]), ranks, annotator, human=True)


def test_mid_ranks():
    assert mid_ranks([1, 2, 2]).tolist() == [1, 2.5, 2.5]
    assert mid_ranks([1, 1, 1, 1]).tolist() == [2.5] * 4
    assert mid_ranks([3, 1, 2]).tolist() == [3, 1, 2]


def test_by_hand():
    """Ann a>b>c and Bob a>c>b: of 3 pairs strict for both, 2 (ab, ac) are ordered alike."""
    measured = agreement([ranking("ann", [1, 2, 3]), ranking("bob", [1, 3, 2])])
    assert (measured.pairwise.value, measured.pairwise.pairs) == (2 / 3, 3)
    # each predicts the other, so the same pairs are counted from both sides
    assert (measured.by_others.value, measured.by_others.pairs) == (2 / 3, 6)
    assert (measured.overlaps, measured.annotators) == (1, 2)


def test_ties_are_left_out_of_the_shares():
    """Bob ties b and c, so that ab and ac are left, both alike."""
    measured = agreement([ranking("ann", [1, 2, 3]), ranking("bob", [1, 2, 2])])
    assert (measured.pairwise.value, measured.pairwise.pairs) == (1.0, 2)


def test_three_annotators_by_hand():
    """Two say a>b, one b>a. Of 3 pairs of annotators 1 is alike. Others: two ties, one a>b for b>a."""
    measured = agreement([ranking("ann", [1, 2]), ranking("bob", [1, 2]), ranking("cid", [2, 1])])
    assert (measured.pairwise.value, measured.pairwise.pairs) == (1 / 3, 3)
    assert (measured.by_others.value, measured.by_others.pairs) == (0.0, 1)


def test_order_of_display_does_not_matter():
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


def test_everything_tied_has_no_measure():
    measured = agreement([ranking("ann", [1, 1]), ranking("bob", [1, 1])])
    assert (measured.pairwise.value, measured.by_others.value, measured.alpha) == (None, None, None)


def test_perfect_and_opposite():
    perfect = agreement([ranking(a, [1, 2, 3], prompt=p) for p in "xyz" for a in ("ann", "bob")])
    assert perfect.alpha == pytest.approx(1.0)
    assert (perfect.pairwise.value, perfect.pairwise.low, perfect.pairwise.high) == (1.0, 1.0, 1.0)
    opposite = agreement([ranking("ann", [1, 2, 3]), ranking("bob", [3, 2, 1])])
    assert opposite.pairwise.value == 0.0
    assert opposite.alpha < 0


def test_chance_is_one_half_and_alpha_zero():
    rng = random.Random(0)
    rankings = [
        ranking(name, rng.sample(range(1, 5), 4), prompt=f"prompt {i}") for i in range(1500) for name in ("a", "b")
    ]
    measured = agreement(rankings, resamples=200)
    assert measured.pairwise.value == pytest.approx(0.5, abs=0.02)
    assert measured.pairwise.low < 0.5 < measured.pairwise.high
    assert measured.alpha == pytest.approx(0.0, abs=0.04)


def alpha_by_definition(units):
    """1 - D_o / D_e over pairable values, with Krippendorff's ordinal distance."""
    values = sorted({v for unit in units for v in unit})
    n = {v: sum(unit.count(v) for unit in units) for v in values}
    total = sum(n.values())

    def distance(c, k):
        low, high = sorted((values.index(c), values.index(k)))
        between = sum(n[values[g]] for g in range(low, high + 1))
        return (between - (n[c] + n[k]) / 2) ** 2

    observed = sum(distance(c, k) / (len(unit) - 1) for unit in units for c, k in itertools.permutations(unit, 2))
    expected = sum(n[c] * (n[k] - (c == k)) * distance(c, k) for c in values for k in values) / (total - 1)
    return 1 - observed / expected


def test_alpha_against_its_definition():
    rng = random.Random(1)
    rankings = [
        ranking(f"w{j}", [rng.randint(1, 3) for _ in range(4)], prompt=f"p{i}")
        for i in range(20)
        for j in range(rng.randint(2, 4))
    ]
    shared = list(overlaps(rankings))
    units = [list(unit) for overlap in shared for unit in overlap.ranks.T]
    assert krippendorff_alpha(shared) == pytest.approx(alpha_by_definition(units))


def test_bootstrap_interval():
    """400 prompts of one pair, share 0.7: the normal interval is 0.7 +- 1.96 sqrt(0.7 * 0.3 / 400)."""
    low, high = bootstrap([1] * 280 + [0] * 120, [1] * 400)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 400)
    assert low == pytest.approx(0.7 - half, abs=0.01)
    assert high == pytest.approx(0.7 + half, abs=0.01)
    assert bootstrap([1] * 280 + [0] * 120, [1] * 400) == (low, high)
    assert bootstrap([3, 3], [3, 3]) == (1.0, 1.0)


def test_bootstrap_draws_prompts_not_pairs():
    """Ten prompts whose 40 pairs all agree or all disagree are ten observations, not 400."""
    low, high = bootstrap([40] * 7 + [0] * 3, [40] * 10)
    assert high - low > 0.4


@pytest.mark.parametrize(
    ("name", "ratings", "pairwise", "by_others"),
    [("quality", "quality", 0.671, 0.670), ("naturalness", "natur", 0.625, 0.632)],
)
def test_e2e_workers(shared, name, ratings, pairwise, by_others):
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
    assert measured.pairwise.value == pytest.approx(pairwise, abs=0.001)
    assert measured.by_others.value == pytest.approx(by_others, abs=0.001)
    assert measured.pairwise.low < measured.pairwise.value < measured.pairwise.high
