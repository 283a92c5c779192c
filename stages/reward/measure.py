"""Measures a finished reward model on held-out rankings: what `quality.json` and the gate are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from data.schema import Ranking
from pipeline.config.reward import RewardConfig
from pipeline.stage import Metrics, RunContext
from stages.reward.groups import Encoder, Group
from stages.reward.model import score_rows
from stages.reward.quality import quality


def measure(
    model: Any,
    groups: Mapping[str, Group],
    rankings: Iterable[Ranking],
    encoder: Encoder,
    config: RewardConfig,
    ctx: RunContext,
) -> tuple[Metrics, Metrics]:
    """`stages.reward.quality.quality` of the model's scores (an ensemble's mean), and besides:

    ended_preferred: share of answers that score above themselves cut in half, which end without a stop token; of an
    ensemble: member_accuracy, each member's, and disagreement, the mean standard deviation over members.
    """
    texts = [(key, text) for key, group in groups.items() for text in group.completions]
    rows = [row for group in groups.values() for row in group.rows]
    prompts = [group.prompt_length for group in groups.values() for _ in group.rows]
    if not rows:
        return quality([], {}, {}, ctx.seed)
    members = score_rows(model.members, rows, config.eval_batch_size, ctx.device)
    scores = members.mean(0)
    lengths = dict(zip(texts, (float(len(row) - n) for row, n in zip(rows, prompts, strict=True)), strict=True))
    rankings = list(rankings) if len(members) > 1 else rankings
    metrics, tables = quality(rankings, dict(zip(texts, scores.tolist(), strict=True)), lengths, ctx.seed)
    cut = [encoder.cut(row, n) for row, n in zip(rows, prompts, strict=True)]
    unended = score_rows(model, cut, config.eval_batch_size, ctx.device)
    metrics["ended_preferred"] = float((scores > unended).float().mean())
    if len(members) > 1 and metrics["pairs"]:
        alone = [dict(zip(texts, found.tolist(), strict=True)) for found in members]
        metrics["member_accuracy"] = [quality(rankings, own, lengths, ctx.seed)[0]["accuracy"] for own in alone]
        metrics["disagreement"] = float(members.std(0, unbiased=False).mean())
    return metrics, tables
