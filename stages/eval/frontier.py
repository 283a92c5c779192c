"""The frontier of reward and KL along a run, and the onset of over-optimisation.

Gao et al. 2022 ("Scaling Laws for Reward Model Overoptimization", arXiv:2210.10760, section 3) find that a gold
judge's gain over the initial policy follows these forms, with d = sqrt(KL):

    R(d) = d (alpha - beta log d)    for reinforcement learning,
    R(d) = d (alpha - beta d)        for best-of-n.

Both are linear in alpha and beta, so the least-squares fit has a closed form. Both have a single peak if beta > 0;
beyond it the proxy still rises while the gold judge's score falls. Shapes: L evaluation steps, P prompts, R
resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data.bootstrap import interval, resample
from stages.eval.wins import Array

Form = Literal["rl", "best_of_n"]
NEAREST = 0.01
"""Nats. Steps with a lower KL do not inform the fit, because the form passes through the origin."""
FEWEST = 4
SPREAD = 2.0
"""Least ratio of the highest KL to the lowest: fitting two coefficients needs points at different distances."""
SURE = 0.975
FAR = 5.0
"""log d beyond which a peak counts as absent: 22,000 nats."""
CURVE = 33


@dataclass(frozen=True)
class Fit:
    """Coefficients (R,) of R fits."""

    form: Form
    alpha: Array
    beta: Array

    def gain(self, kl: Array) -> Array:
        """R(sqrt(kl)) for KL in nats, broadcast over coefficients and KLs."""
        first, second = features(np.sqrt(kl), self.form)
        return self.alpha * first + self.beta * second

    def peak(self) -> Array:
        """The KL (R,) at which R(d) is highest; infinite where it never falls."""
        ratio = self.alpha / np.where(self.beta > 0, self.beta, np.nan)
        d = np.exp(np.minimum(ratio - 1, FAR)) if self.form == "rl" else np.maximum(ratio / 2, 0)
        return np.where(d < np.exp(FAR), d**2, np.inf)


def features(d: Array, form: Form) -> tuple[Array, Array]:
    """The regressors of alpha and beta."""
    if form == "best_of_n":
        return d, -(d**2)
    return d, -d * np.log(np.where(d > 0, d, 1.0))  # the limit at 0 is 0


def fit(kl_RL: Array, gain_RL: Array, form: Form) -> Fit:
    """Least-squares fit of each row, by the normal equations. Steps with a KL of at most `NEAREST` are ignored."""
    used = kl_RL > NEAREST
    x, y = (np.where(used, column, 0.0) for column in features(np.sqrt(np.maximum(kl_RL, 0.0)), form))
    target = np.where(used, gain_RL, 0.0)
    xx, xy, yy = (x * x).sum(-1), (x * y).sum(-1), (y * y).sum(-1)
    xt, yt = (x * target).sum(-1), (y * target).sum(-1)
    determinant = xx * yy - xy * xy
    safe = np.where(np.abs(determinant) > 1e-12, determinant, np.nan)
    return Fit(form, (yy * xt - xy * yt) / safe, (xx * yt - xy * xt) / safe)


def too_few(kl_L: Array) -> str | None:
    """Why the form cannot be fitted to steps at these KLs; None if it can."""
    far = kl_L[kl_L > NEAREST]
    if len(far) < FEWEST:
        return f"{len(far)} evaluation points are away from the reference, and the form needs {FEWEST}"
    if far.max() < SPREAD * far.min():
        return f"the evaluation points are too close: all between {far.min():.2f} and {far.max():.2f} nats"
    return None


def overoptimisation(kl_LP: Array, gain_LP: Array, *, form: Form, resamples: int, seed: int) -> dict[str, Any]:
    """Fits the form, and estimates the KL beyond which further optimisation lowers the judge's score.

    Args:
        kl_LP: log-ratio of each step's answer to each prompt, nats; or its mean, repeated, if unknown per prompt.
        gain_LP: the judge's score of the answer minus that of the reference's answer.

    Returns only `reason` if the form cannot be fitted. Otherwise `alpha`, `beta` and `peak_kl` with intervals from
    resampled prompts (None for an infinite bound), `set_in` (whether the peak lies before the farthest step in all
    but
    2.5 % of resamples), `share` (of resamples in which it does), `lost` (the fitted loss from the peak to the
    farthest step; 0 without a peak) and `curve`, pairs of KL and gain.
    """
    kl_L, gain_L = kl_LP.mean(1), gain_LP.mean(1)
    if reason := too_few(kl_L):
        return {"reason": reason}

    def means(drawn_RP: Array) -> Array:
        return np.stack([kl_LP[:, drawn_RP].mean(2).T, gain_LP[:, drawn_RP].mean(2).T], axis=1)

    draws_R2L = resample(means, kl_LP.shape[1], resamples=resamples, seed=seed)
    kl_RL = draws_R2L[:, 0]
    drawn = fit(kl_RL, draws_R2L[:, 1], form)
    fitted = fit(kl_L[None], gain_L[None], form)
    farthest = float(kl_L.max())
    peaks, peak = drawn.peak(), float(fitted.peak()[0])
    ends = np.sort(peaks)
    low, high = (float(ends[int(q * (len(ends) - 1))]) for q in (0.025, 0.975))
    share = float((peaks < kl_RL.max(1)).mean())
    lost = fitted.gain(np.array([min(peak, farthest)])) - fitted.gain(np.array([farthest]))
    kls = np.linspace(0, farthest, CURVE)
    return {
        "reason": None,
        "form": "d (alpha - beta log d)" if form == "rl" else "d (alpha - beta d)",
        "alpha": _interval(fitted.alpha[0], drawn.alpha),
        "beta": _interval(fitted.beta[0], drawn.beta),
        "peak_kl": {"value": _finite(peak), "low": _finite(low), "high": _finite(high)},
        "farthest": farthest,
        "set_in": peak < farthest and share >= SURE,
        "share": share,
        "lost": float(lost[0]),
        "curve": [[float(kl), float(gain)] for kl, gain in zip(kls, fitted.gain(kls), strict=True)],
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _interval(value: float, draws: Array) -> dict[str, float]:
    low, high = interval(draws)
    return {"value": float(value), "low": float(low), "high": float(high)}
