"""Evaluates a trained reward model on held-out rankings, for `quality.json` and the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from data.annotators.agreement import agreement
from data.annotators.sample import sample_rankings
from data.schema import Ranking, prompt_key
from pipeline.config.reward import RewardConfig
from pipeline.engine.stage import Metrics, RunContext
from stages.reward import by_fault
from stages.reward.bag_of_words import WordScorer
from stages.reward.by_fault import Rubric
from stages.reward.groups import Encoder, Group
from stages.reward.quality import quality
from stages.scoring.reward_model import score_rows


def measure_reward_model(
    model: Any,
    groups: Mapping[str, Group],
    rankings: Callable[[], Iterable[Ranking]],
    encoder: Encoder,
    bag_of_words: WordScorer,
    rubric: Rubric | None,
    config: RewardConfig,
    ctx: RunContext,
    single: Callable[[], Iterable[Ranking]] | None = None,
) -> tuple[Metrics, Metrics]:
    """Metrics and tables of `stages.reward.quality.quality` for the model's scores (an ensemble's mean), and:

    ended_preferred: share of answers that score above their first half without a stop token;
    the agreement of the annotators, see `_ceiling`;
    for an ensemble, member_accuracy (each member's accuracy) and disagreement (standard deviation over members,
    averaged over answers);
    with a rubric, the table by_fault (`stages.reward.by_fault`).

    Args:
        groups: those of the held-out prompts.
        rankings: reads the held-out rankings from the start on each call.
        single: the same of single annotators' rankings, of which the agreement is measured; None where they are
            the same.
    """
    texts = [(key, text) for key, group in groups.items() for text in group.completions]
    rows = [row for group in groups.values() for row in group.rows]
    prompts = [group.prompt_length for group in groups.values() for _ in group.rows]
    if not rows:
        return quality([], {}, ctx.seed)
    cut = [encoder.cut(row, n) for row, n in zip(rows, prompts, strict=True)]
    with ctx.progress("reward: evaluation", total=2 * len(rows)) as bar:
        members = score_rows(model.members, rows, config.eval_batch_size, ctx.device, bar.advance)
        unended = score_rows(model, cut, config.eval_batch_size, ctx.device, bar.advance)
    scores = members.mean(0)
    by_text = dict(zip(texts, scores.tolist(), strict=True))
    words = bag_of_words([text for _, text in texts]).tolist()
    baselines = {"bag_of_words": dict(zip(texts, words, strict=True))}
    passes = 2 + (len(members) if len(members) > 1 else 0)
    with ctx.progress(
        "reward: measures", total=passes * sum(len(group.orders) for group in groups.values())
    ) as bar:

        def measured(read: Callable[[], Iterable[Ranking]] = rankings) -> Iterator[Ranking]:
            for ranking in _measured(read(), groups):
                yield ranking
                bar.advance()

        metrics, tables = quality(measured(), by_text, ctx.seed, baselines)
        metrics |= {"ended_preferred": float((scores > unended).float().mean())}
        metrics |= _ceiling(measured(single or rankings), ctx.seed)
        if len(members) > 1 and metrics["pairs"]:
            by_member = [dict(zip(texts, scores.tolist(), strict=True)) for scores in members]
            metrics["member_accuracy"] = [
                quality(measured(), scores, ctx.seed)[0]["accuracy"] for scores in by_member
            ]
            metrics["disagreement"] = float(members.std(0, unbiased=False).mean())
    if rubric is not None:
        with ctx.progress("reward: kinds of fault", total=len(texts)) as bar:
            by_kind = by_fault.accuracy_by_fault(by_text, rubric, ctx.seed, bar.advance)
        tables["by_fault"] = [asdict(row) for row in by_kind]
    return metrics, tables


def _measured(rankings: Iterable[Ranking], groups: Mapping[str, Group]) -> Iterator[Ranking]:
    """The rankings, reduced to the completions that have a row in their group; skips those with fewer than two."""
    for ranking in rankings:
        group = groups.get(prompt_key(ranking.prompt))
        places = group.places(ranking).values() if group else ()
        if len(places) > 1:
            yield replace(
                ranking,
                completions=[ranking.completions[place] for place in places],
                ranks=[ranking.ranks[place] for place in places],
                ratings=None,
                models=None,
                metadata={},
            )


def _ceiling(rankings: Iterable[Ranking], seed: int) -> Metrics:
    """Agreement of the annotators on the held-out pairs, which bounds the reward model's accuracy. Values are None
    if no two annotators ordered the same pair.

    agreement, _low, _high, _pairs: `pairwise` of data/annotators/agreement.py, with a 95 % bootstrap interval over
    prompts;
    predicted_by_others, _pairs: `by_others`.
    """
    measured = agreement(sample_rankings(rankings), seed=seed)
    return {
        "agreement": measured.pairwise.value,
        "agreement_low": measured.pairwise.low,
        "agreement_high": measured.pairwise.high,
        "agreement_pairs": measured.pairwise.pairs,
        "predicted_by_others": measured.by_others.value,
        "predicted_by_others_pairs": measured.by_others.pairs,
    }
