"""The consensus of annotators, against pandas, SciPy and choix; weights of rows; what is counted."""

import itertools
import json
import random

import choix
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from data.annotators.measures import measure_annotators
from data.annotators.sample import sample_rankings
from data.schema import MergedRanking
from data.tables.consensus import PRIOR, strengths
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.config.load import load_recipe
from pipeline.errors import DataError, RecipeError

WEIGHED = {"weight": "_trust"}


def read(tmp_path, rows, consensus="none", format="long", columns=None, dropped=None, say=None, **values):
    """The rankings of single annotators, and the merged ones by prompt."""
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RankingTableConfig(path=str(path), format=format, columns=columns or {}, consensus=consensus, **values)
    rankings = list(read_rankings(config, Dropped() if dropped is None else dropped, say))
    merged = [ranking for ranking in rankings if isinstance(ranking, MergedRanking)]
    assert rankings[len(rankings) - len(merged) :] == merged
    return rankings[: len(rankings) - len(merged)], {r.prompt[0]["content"]: r for r in merged}


def sparse(seed=0, prompts=12):
    """Ratings of which two thirds of the annotators gave only one to a prompt."""
    rng = random.Random(seed)
    bias = {"ana": 0, "ben": 2, "eve": -1, "kim": 1}
    trust = {"ana": 1.0, "ben": 0.25, "eve": 2.0, "kim": 0.7}
    rows = [
        {
            "prompt": f"Q{p}",
            "completion": f"answer {a}",
            "annotator": who,
            "rating": max(1, min(9, round(rng.gauss(4 + a + bias[who], 1.5)))),
            "_trust": trust[who],
        }
        for p in range(prompts)
        for who in bias
        for a in rng.sample(range(4), rng.choice([1, 1, 2, 3]))
    ]
    rng.shuffle(rows)
    return rows


def expected(scores):
    """(completion -> score, completion -> dense rank) by prompt of a Series with the index prompt, completion."""
    rounded = scores.round(9)
    return {
        prompt: (
            group.droplevel(0).to_dict(),
            rounded[prompt].rank(method="dense", ascending=False).astype(int).to_dict(),
        )
        for prompt, group in scores.groupby(level=0)
        if len(group) > 1
    }


def check(merged, wanted):
    assert merged.keys() == wanted.keys()
    for prompt, (scores, ranks) in wanted.items():
        ranking = merged[prompt]
        assert dict(zip(ranking.completions, ranking.ranks, strict=True)) == ranks
        assert dict(zip(ranking.completions, ranking.ratings, strict=True)) == pytest.approx(scores, abs=1e-9)
        assert ranking.annotator == "consensus"


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("method", ["mean", "zscore"])
def test_means_of_ratings_equal_pandas(tmp_path, method, weighed):
    rows = sparse()
    table = pd.DataFrame(rows)
    if method == "zscore":
        by_annotator = table.groupby("annotator").rating
        table["rating"] = (table.rating - by_annotator.transform("mean")) / by_annotator.transform("std", ddof=0)
    table["weight"] = table._trust if weighed else 1.0
    table["total"] = table.rating * table.weight
    sums = table.groupby(["prompt", "completion"])[["total", "weight"]].sum()
    _, merged = read(tmp_path, rows, method, columns=WEIGHED if weighed else {})
    check(merged, expected(sums.total / sums.weight))


@pytest.mark.parametrize("weighed", [False, True])
def test_bradley_terry_equals_an_independent_fit(tmp_path, weighed):
    rows = sparse(1)
    table = pd.DataFrame(rows).rename(columns={"_trust": "weight"})
    single, merged = read(tmp_path, rows, "bradley_terry", columns=WEIGHED if weighed else {})
    compared = 0
    for prompt, group in table.groupby("prompt"):
        pairs = [
            (a.completion, b.completion, np.sign(a.rating - b.rating), a.weight if weighed else 1.0)
            for _, own in group.groupby("annotator")
            for a, b in itertools.combinations(own.itertuples(), 2)
        ]
        names = sorted({name for pair in pairs for name in pair[:2]})
        if prompt not in merged or set(merged[prompt].completions) != set(names):
            continue  # answers that no annotator compared, or two sets of them
        compared += 1
        at = {name: place for place, name in enumerate(names)}

        def loss(theta, pairs=pairs, at=at):
            total = PRIOR * (theta**2).sum()
            for a, b, sign, weight in pairs:
                gap = theta[at[a]] - theta[at[b]]
                total += weight * ((1 + sign) * np.logaddexp(0, -gap) + (1 - sign) * np.logaddexp(0, gap)) / 2
            return total

        theta = minimize(loss, np.zeros(len(names)), method="BFGS", options={"gtol": 1e-8}).x
        ranking = merged[prompt]
        fitted = dict(zip(ranking.completions, ranking.ratings, strict=True))
        assert [fitted[name] for name in names] == pytest.approx(theta, abs=1e-4)
    assert compared >= 8
    assert len(single) >= compared


def test_strengths_equal_choix():
    rng = random.Random(2)
    wins = [tuple(rng.sample(range(4), 2)) for _ in range(12)]
    matrix = np.zeros((4, 4))
    for winner, loser in wins:
        matrix[winner, loser] += 1
    assert strengths(matrix) == pytest.approx(choix.opt_pairwise(4, wins, alpha=PRIOR, tol=1e-10), abs=1e-5)
    one_sided = np.triu(np.ones((3, 3)), 1)  # nobody contradicts anybody
    first, second, third = strengths(one_sided)
    assert first > second > third
    assert second == pytest.approx(0, abs=1e-9)


def test_partial_overlaps_are_ordered_through_a_chain(tmp_path):
    rows = [
        {"prompt": "Q", "completion": text, "annotator": who, "rank": rank}
        for who, order in (("ana", ["red", "green"]), ("ben", ["green", "blue"]), ("eve", ["black", "white"]))
        for rank, text in enumerate(order, 1)
    ]
    _, merged = read(tmp_path, rows, "bradley_terry")
    assert merged["Q"].completions == ["black", "white"]  # the last of two: nothing connects them with the others
    path = tmp_path / "t.jsonl"
    config = RankingTableConfig(path=str(path), format="long", columns={}, consensus="bradley_terry")
    chain = next(r for r in read_rankings(config, Dropped()) if isinstance(r, MergedRanking))
    assert dict(zip(chain.completions, chain.ranks, strict=True)) == {"red": 1, "green": 2, "blue": 3}


def test_lone_ratings_are_merged_and_not_counted_as_lost(tmp_path):
    rows = sparse()
    alone, merging, lines = Dropped(), Dropped(), []
    without, _ = read(tmp_path, rows, dropped=alone)
    single, merged = read(tmp_path, rows, "mean", dropped=merging, say=lines.append)
    assert single == without
    table = pd.DataFrame(rows)
    lone = (table.groupby(["prompt", "annotator"]).size() == 1).sum()
    assert alone.rows_out == {"fewer than 2 completions left": lone}
    assert not merging.counts
    assert len(merged) == table.prompt.nunique()
    assert f"consensus (mean) of 12 prompts: 12 merged rankings from {len(rows)} ratings" in lines[-1]


def test_the_figures_of_single_annotators_do_not_change(tmp_path):
    rows = sparse(3)
    without, _ = read(tmp_path, rows)
    for method in ("mean", "zscore", "bradley_terry"):
        single, merged = read(tmp_path, rows, method)
        assert merged
        assert single == without
        assert measure_annotators(sample_rankings(single), resamples=10) == measure_annotators(
            sample_rankings(without), resamples=10
        )


def test_a_table_of_lone_ratings_only_has_a_consensus(tmp_path):
    rows = [
        {"prompt": "Q", "completion": "red", "annotator": "ana", "rating": 2},
        {"prompt": "Q", "completion": "green", "annotator": "ben", "rating": 5},
        {"prompt": "R", "completion": "red", "annotator": "ana", "rating": 1},
    ]
    with pytest.raises(DataError, match="every group of this table has 1") as caught:
        read(tmp_path, rows)
    assert "consensus: mean" in caught.value.hint
    dropped = Dropped()
    single, merged = read(tmp_path, rows, "mean", dropped=dropped)
    assert not single
    assert merged["Q"].ranks == [2, 1]
    assert dropped.rows_out == {"fewer than 2 completions left": 1}
    with pytest.raises(DataError, match="no ranking is left"):
        read(tmp_path, rows[2:], "mean")


def test_an_annotator_who_rates_all_alike_says_nothing(tmp_path):
    rows = [
        {"prompt": "Q", "completion": text, "annotator": who, "rating": rating}
        for who, ratings in (("ana", [9, 9, None]), ("ben", [1, 2, 3]))
        for text, rating in zip(["red", "green", "blue"], ratings, strict=True)
    ]
    lines = []
    _, merged = read(tmp_path, rows, "zscore", say=lines.append)
    z = (np.array([1, 2, 3]) - 2) / np.std([1, 2, 3])
    assert merged["Q"].ratings == pytest.approx([z[0] / 2, 0, z[2]])
    assert "1 annotator rated all answers alike" in lines[-1]


def test_equal_answers_of_a_prompt_are_one(tmp_path):
    rows = [
        {"prompt": "Q", "completion": text, "annotator": "ana", "rating": rating}
        for text, rating in ((" red", 1), ("red ", 4), ("green", 2))
    ]
    _, merged = read(tmp_path, rows, "mean")
    assert merged["Q"].ratings == [2.5, 2]


def test_ratings_that_sum_in_another_order_tie(tmp_path):
    ratings = {"red": [0.1, 0.2, 0.3], "green": [0.3, 0.2, 0.1]}
    rows = [
        {"prompt": "Q", "completion": text, "annotator": f"w{i}", "rating": rating}
        for text, given in ratings.items()
        for i, rating in enumerate(given)
    ]
    assert read(tmp_path, rows, "mean")[1]["Q"].ranks == [1, 1]


def test_orders_without_ratings_need_bradley_terry(tmp_path):
    rows = [{"prompt": "Q", "a": "x", "b": "y", "winner": "A"}]
    columns = {"completions": ["a", "b"], "preference": "winner"}
    for method in ("mean", "zscore"):
        with pytest.raises(RecipeError, match=r"merges ratings, and the answers at .*:1 are ordered") as caught:
            read(tmp_path, rows, method, "wide", columns)
        assert "bradley_terry" in caught.value.hint
    assert read(tmp_path, rows, "bradley_terry", "wide", columns)[1]["Q"].ranks == [1, 2]


def test_net_wins_are_merged_over_annotators(tmp_path):
    rows = [
        {"prompt": "Q", "a": better, "b": worse, "winner": "A", "annotator": who}
        for who, order in (("ana", "xyz"), ("ben", "xyz"), ("eve", "zyx"))
        for better, worse in itertools.combinations(order, 2)
    ]
    columns = {"completions": ["a", "b"], "preference": "winner"}
    single, merged = read(tmp_path, rows, "bradley_terry", "wide", columns, combine="net_wins")
    assert [r.annotator for r in single] == ["ana", "ben", "eve"]
    assert dict(zip(merged["Q"].completions, merged["Q"].ranks, strict=True)) == {"x": 1, "y": 2, "z": 3}


# Weights


@pytest.mark.parametrize("weight", [0, -1, "0", "high", None, "", True, float("inf")])
@pytest.mark.parametrize("format", ["long", "pairs"])
def test_weights_that_are_no_weights_are_refused_with_the_row(tmp_path, weight, format):
    good = {"prompt": "Q", "annotator": "ana", "_trust": 1}
    if format == "long":
        rows = [good | {"completion": "x", "rating": 1}, good | {"completion": "y", "rating": 2, "_trust": weight}]
    else:
        rows = [good | {"chosen": "x", "rejected": "y"}, good | {"chosen": "x", "rejected": "y", "_trust": weight}]
    with pytest.raises(DataError, match="'_trust'") as caught:
        read(tmp_path, rows, format=format, columns=WEIGHED)
    assert caught.value.where.endswith("t.jsonl:2")


def test_a_ranking_has_one_weight(tmp_path):
    rows = [
        {"prompt": "Q", "completion": "x", "rating": 1, "_trust": 0.5},
        {"prompt": "Q", "completion": "y", "rating": 2, "_trust": "0.50"},
    ]
    [ranking], _ = read(tmp_path, rows, columns=WEIGHED)
    assert ranking.weight == 0.5
    [ranking], _ = read(tmp_path, rows)
    assert (ranking.weight, ranking.metadata) == (1.0, {})
    rows[1]["_trust"] = 2
    with pytest.raises(DataError, match=r"has the weight 2, and its ranking, at .*, 0\.5") as caught:
        read(tmp_path, rows, columns=WEIGHED)
    assert caught.value.where.endswith("t.jsonl:2")


def test_weights_survive_our_own_schema(tmp_path):
    ranking = {
        "prompt": [{"role": "user", "content": "Q"}],
        "completions": ["x", "y"],
        "ranks": [1, 2],
        "annotator": "ana",
        "human": True,
        "metadata": {"weight": 0.5},
    }
    [read_again], _ = read(tmp_path, [ranking], format="native")
    assert read_again.weight == 0.5
    with pytest.raises(DataError, match=r"'metadata\.weight' must hold a weight above 0"):
        read(tmp_path, [ranking | {"metadata": {"weight": 0}}], format="native")


RECIPE = """
name: r
base: {pretrain: {corpus: {task: venues, size: 10}}}
data:
  demonstrations: {task: venues, size: 10}
  rankings: {path: t.csv, format: long, %s}
reward: {%s}
"""


@pytest.mark.parametrize(
    ("table", "reward", "what"),
    [
        ("consensus: mean, combine: net_wins", "", r"data\.rankings\.consensus.*use bradley_terry"),
        ("consensus: mean", "annotator_weights: reliability", r"reward\.annotator_weights.*merges them"),
    ],
)
def test_values_that_exclude_each_other(tmp_path, table, reward, what):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE % (table, reward))
    with pytest.raises(RecipeError, match=what):
        load_recipe(path)
