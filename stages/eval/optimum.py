"""How much of the possible score PPO reached: the optimum of its objective, from the reward model's scores of
several answers of the reference to each held-out prompt (`stages.ppo.optimum`).

No policy with PPO's KL has a higher expected score than the optimum with that KL. Shapes: P prompts, N answers per
prompt, G betas, R resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data.bootstrap import interval, resample
from stages.eval.wins import Array
from stages.ppo.optimum import Curve

POINTS = 17
"""KLs of the curve, evenly spaced up to the largest that the answers resolve."""


def measure(
    scores_PN: Array, ppo_P: Array, kl_P: Array, *, unit: float, resamples: int, seed: int
) -> dict[str, Any]:
    """The optimum's gain over the reference by KL, and PPO's share of it at PPO's KL.

    Args:
        scores_PN: the reward model's scores of the reference's answers.
        ppo_P, kl_P: its scores of PPO's answers, and their log-ratios to the reference, nats.
        unit: what a gain is divided by.

    Returns `reach`, the largest KL that so many answers resolve, nats per response; `points`, each with `kl`, and
    `gain` with its interval; and `share` with its interval, None where PPO's KL is beyond `reach` or nothing can be
    gained.
    """
    curve = Curve.of(torch.from_numpy(scores_PN))
    kl_PG, score_PG = curve.kl_PG.numpy(), curve.score_PG.numpy()
    sft_P = scores_PN.mean(1)
    kls = np.linspace(0, curve.reach, POINTS)

    def gains(drawn_RP: np.ndarray) -> Array:
        return np.stack([_gain(kls, kl_PG[rows], score_PG[rows], sft_P[rows]) for rows in drawn_RP])

    def shares(drawn_RP: np.ndarray) -> Array:
        return np.array(
            [_share(*(values[rows] for values in (kl_PG, score_PG, sft_P, ppo_P, kl_P))) for rows in drawn_RP]
        )

    everything = np.arange(len(sft_P))[None]
    low, high = interval(resample(gains, len(sft_P), resamples=resamples, seed=seed))
    points = [
        {"kl": float(kl), "gain": {"value": value / unit, "low": below / unit, "high": above / unit}}
        for kl, value, below, above in zip(
            kls, gains(everything)[0].tolist(), low.tolist(), high.tolist(), strict=True
        )
    ]
    share = None
    if 0 < kl_P.mean() <= curve.reach and np.isfinite(value := shares(everything)[0]):
        below, above = interval(resample(shares, len(sft_P), resamples=resamples, seed=seed))
        share = {"value": float(value), "low": float(below), "high": float(above)}
    return {"samples": scores_PN.shape[1], "reach": curve.reach, "points": points, "share": share}


def _gain(kl: Array, kl_PG: Array, score_PG: Array, sft_P: Array) -> Array:
    """The optimum's gain over the reference at KLs of any shape."""
    sft = sft_P.mean()
    return np.interp(kl, np.append(0.0, kl_PG.mean(0)), np.append(sft, score_PG.mean(0))) - sft


def _share(kl_PG: Array, score_PG: Array, sft_P: Array, ppo_P: Array, kl_P: Array) -> float:
    """PPO's gain over the reference in parts of the optimum's at the same KL; NaN where that gains nothing."""
    possible = float(_gain(kl_P.mean(), kl_PG, score_PG, sft_P))
    return float(ppo_P.mean() - sft_P.mean()) / possible if possible > 0 else float("nan")
