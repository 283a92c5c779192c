"""The gains by the judge (`gold`) and by the proxy along PPO, against the KL from the reference; the same for
best-of-n.

Both are gains over the reference's answers, in standard deviations over those answers, so that they share an axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config.evaluate import EvalConfig
from pipeline.engine.stage import Artifact, RunContext
from stages.eval import best_of_n, wins
from stages.eval.frontier import overoptimisation
from stages.eval.wins import Array
from stages.models.text import Codec
from stages.ppo.artifact import POINTS
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.judge import ScoringJudge


@dataclass(frozen=True)
class Scales:
    """Standard deviations of the judge's and of the proxy's scores over the reference's answers."""

    gold: float
    proxy: float


def spread(values: Array) -> float:
    """The standard deviation; 1 when all values are equal."""
    return float(values.std()) or 1.0


def frontier(
    judge: ScoringJudge,
    policies: Mapping[int, Artifact],
    codec: Codec,
    scales: Scales,
    config: EvalConfig,
    ctx: RunContext,
) -> dict[str, Any] | None:
    """`points` (evaluation points) of the last round, each with `update`, `kl`, `proxy` and `gold` (values and
    intervals over the prompts), and the `fit` of the gold gain. None with fewer than two evaluation points.

    The judge's gains are over the first point of the first round, which evaluates the reference; the proxy's are
    over the first point of the same round, since another round's reward model has another scale.
    """
    number, policy = max(policies.items())
    rows = list(policy.jsonl(POINTS))
    if len(rows) < 2:
        return None
    start = next(iter(policies[min(policies)].jsonl(POINTS))) if number > 1 else rows[0]
    points = [*rows, start]
    with ctx.progress("eval: evaluation points", total=sum(len(point["prompts"]) for point in points)) as bar:
        judge.scorer.on_batch = bar.advance
        *judged, judged_start = [_judged(judge, point, codec) for point in points]
    judged_LP = np.stack(judged)
    gold_LP = (judged_LP - judged_start) / scales.gold
    scores_LP = np.array([row["scores"] for row in rows])
    proxy_LP = (scores_LP - scores_LP[0]) / scales.proxy
    kl_LP = np.array([row["kls"] for row in rows])

    def intervals(values_LP: Array) -> list[wins.Interval]:
        return [wins.mean(values_P, config.bootstrap, ctx.seed) for values_P in values_LP]

    return {
        "judge": judge.name,
        "round": number,
        "prompts": judged_LP.shape[1],
        "points": [
            {"update": row["update"], "kl": kl, "proxy": proxy, "gold": gold}
            for row, kl, proxy, gold in zip(
                rows, intervals(kl_LP), intervals(proxy_LP), intervals(gold_LP), strict=True
            )
        ],
        "fit": overoptimisation(kl_LP, gold_LP, form="rl", resamples=config.bootstrap, seed=ctx.seed),
    }


def _judged(judge: ScoringJudge, point: Mapping[str, Any], codec: Codec) -> Array:
    """(P,): the judge's scores of an evaluation point's answers."""
    prompts = [EncodedPrompt(messages, codec.prompt(messages), "eval") for messages in point["prompts"]]
    return np.array(judge.scores(prompts, point["response_ids"]))


def best_of_n_ladder(
    scores_PN: Array, judged_PN: Array, scales: Scales, config: EvalConfig, seed: int
) -> dict[str, Any]:
    """Best-of-n's gains for n = 1, 2, 4, ..., each unbiased over all subsets of the N samples: `rows` of `n`, `kl`
    (the bound), `proxy` and `gold`; and the `fit` of the gold gain.

    Args:
        scores_PN: the proxy's, by which the best is selected.
        judged_PN: the judge's.
    """
    count = scores_PN.shape[1]
    rows, golds = [], []
    for n in best_of_n.ladder(count):
        weights = best_of_n.weights(scores_PN, n)
        gold = ((weights - 1 / count) * judged_PN).sum(1) / scales.gold
        proxy = ((weights - 1 / count) * scores_PN).sum(1) / scales.proxy
        golds.append(gold)
        rows.append(
            {
                "n": n,
                "kl": best_of_n.kl_bound(n),
                "proxy": wins.mean(proxy, config.bootstrap, seed),
                "gold": wins.mean(gold, config.bootstrap, seed),
            }
        )
    kl_LP = np.repeat([[row["kl"]] for row in rows], len(scores_PN), axis=1)
    fit = overoptimisation(kl_LP, np.stack(golds), form="best_of_n", resamples=config.bootstrap, seed=seed)
    return {"samples": count, "rows": rows, "fit": fit}
