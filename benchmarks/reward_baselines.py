"""Baselines for a reward model on a recipe's held-out prompts: "the longer answer wins" and a bag of words. Also
prints the annotators' agreement on these prompts.

    python benchmarks/reward_baselines.py --recipe recipes/e2e-human.yaml --seeds 5

The recipe's split comes first, then splits drawn as in benchmarks/reward_losses.py.
"""

from __future__ import annotations

import argparse

import numpy as np

from data.annotators.agreement import Share, agreement
from data.schema import Ranking
from data.splits import group_of, split_of, split_of_prompt
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.config.load import load_recipe
from stages.reward.bag_of_words import fit


def pairs_of(rankings: list[Ranking]) -> list[tuple[str, str]]:
    """(better, worse) texts of all strict pairs of different answers."""
    return [
        (r.completions[better], r.completions[worse])
        for r in rankings
        for better, worse in r.pairs()
        if r.completions[better] != r.completions[worse]
    ]


def accuracy(margins: np.ndarray) -> float:
    return float(((margins > 0) + 0.5 * (margins == 0)).mean())


def with_interval(share: Share) -> str:
    if share.value is None or share.low is None or share.high is None:
        return "n/a"
    return f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f}, {share.pairs} pairs)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=0)
    arguments = parser.parse_args()
    config = load_recipe(arguments.recipe, arguments.set).recipe.data
    assert isinstance(config.rankings, RankingTableConfig), "the recipe has no data.rankings, or several criteria"
    rankings = list(read_rankings(config.rankings, Dropped()))
    overall = agreement(rankings)
    alpha = "n/a" if overall.alpha is None else f"{overall.alpha:.3f}"
    print(
        f"all prompts: pairwise {with_interval(overall.pairwise)}, "
        f"by_others {with_interval(overall.by_others)}, alpha {alpha}"
    )
    for seed in (None, *range(arguments.seeds)):
        sides: dict[str, list[Ranking]] = {"train": [], "eval": []}
        for r in rankings:
            group = f"{seed} {group_of(r.prompt)}"
            side = split_of_prompt(r.prompt, config.eval_fraction) if seed is None else ""
            sides[side or split_of(group, config.eval_fraction)].append(r)
        better, worse = zip(*pairs_of(sides["eval"]), strict=True)
        score = fit(pairs_of(sides["train"]))
        longer = np.array([len(a) - len(b) for a, b in zip(better, worse, strict=True)])
        print(
            f"{'recipe' if seed is None else f'split {seed}'}: {len(better)} held-out pairs, "
            f"longer {accuracy(longer):.3f}, bag of words {accuracy(score(better) - score(worse)):.3f}, "
            f"annotators agree on {with_interval(agreement(sides['eval']).pairwise)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
