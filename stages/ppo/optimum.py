"""The optimum of PPO's objective at a KL coefficient, estimated from scored samples of the reference.

The policy that maximises E[r(x, y)] - beta KL(pi || ref) is

    pi*(y | x) = ref(y | x) exp(r(x, y) / beta) / Z(x)

(Korbak et al. 2022, arXiv:2205.11275, equation 3; Rafailov et al. 2023, arXiv:2305.18290, equation 4). With N
samples of the reference per prompt and weights w = softmax(r / beta), its KL is log N + sum w log w and its score
sum w r, up to a bias that falls with 1/N. The jackknife removes its first order (Efron and Tibshirani 1993, section
10.5). So a KL target determines beta before training.

Shapes: P prompts, N samples per prompt, G values of beta, R bootstrap resamples. All tensors are on the CPU and
float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 129
WIDEST, NARROWEST = 20.0, 0.005
"""The grid's values of beta, in standard deviations of the scores."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Curve:
    """The optimum at each beta, in descending order of beta, so ascending order of KL.

    Attributes:
        beta_G: KL coefficients.
        kl_PG: KL of the optimum from the reference, nats per response.
        score_PG: its expected score.
        plain_PG: KL without the jackknife: the difference tells what N samples cannot resolve.
    """

    beta_G: Tensor
    kl_PG: Tensor
    score_PG: Tensor
    plain_PG: Tensor

    @classmethod
    def of(cls, scores_PN: Tensor) -> Curve:
        """From scores of at least two samples per prompt, as PPO optimises them."""
        scores_PN = scores_PN.double()
        spread = float((scores_PN - scores_PN.mean(1, keepdim=True)).pow(2).mean() ** 0.5)
        beta_G = (
            torch.logspace(0, 1, GRID, base=NARROWEST / WIDEST, dtype=torch.float64) * WIDEST * max(spread, 1e-9)
        )
        points = [_tilted(scores_PN, float(beta)) for beta in beta_G]
        return cls(beta_G, *(torch.stack(columns, 1) for columns in zip(*points, strict=True)))

    def beta_at(self, kl: float, rows_RP: Tensor | None = None) -> Tensor:
        """The beta (R,) whose optimum has this KL, nats per response: a mean over the prompts of each resample."""
        kl_RG = self.kl_PG.mean(0)[None] if rows_RP is None else self.kl_PG[rows_RP].mean(1)
        return torch.stack([_crossing(row, self.beta_G.log(), kl).exp() for row in kl_RG])

    def at(self, beta: float) -> tuple[float, float]:
        """KL and score of the optimum at this beta."""
        log_beta = torch.tensor(beta).double().log()
        return tuple(  # type: ignore[return-value]
            float(_interpolate(log_beta, self.beta_G.log().flip(0), column_PG.mean(0).flip(0)))
            for column_PG in (self.kl_PG, self.score_PG)
        )

    def score_at(self, kl: float) -> float:
        """The score of the optimum with this KL, nats per response."""
        return self.at(float(self.beta_at(kl)))[1]

    @property
    def reach(self) -> float:
        """The largest KL, nats per response, that the samples resolve: the jackknife adds at most a tenth there."""
        kl_G, plain_G = self.kl_PG.mean(0), self.plain_PG.mean(0)
        resolved = kl_G - plain_G <= RESOLVED * kl_G
        last = int(resolved.int().cumprod(0).sum()) - 1
        return float(kl_G[max(last, 0)])


RESOLVED = 0.1
"""Share of the KL that the jackknife may add where samples resolve it."""


def _tilted(scores_PN: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """KL and score (P,) of the optimum at beta, by the jackknife, and the KL without it."""
    z_PN = (scores_PN / beta).sort(1, descending=True).values
    z_PN = z_PN - z_PN[:, :1]
    kl_P, mean_P = _moments(z_PN)
    # Leave each sample out. The largest is excluded directly: subtracting its weight would cancel.
    count = z_PN.shape[1]
    first_kl_P, first_mean_P = _moments(z_PN[:, 1:] - z_PN[:, 1:2])
    first_mean_P = first_mean_P + z_PN[:, 1]
    weights_PN = z_PN.exp()
    total_PN = weights_PN.sum(1, keepdim=True) - weights_PN[:, 1:]
    mean_PN = ((weights_PN * z_PN).sum(1, keepdim=True) - weights_PN[:, 1:] * z_PN[:, 1:]) / total_PN
    kl_PN = mean_PN - (total_PN / (count - 1)).log()
    left_kl_P = (first_kl_P + kl_PN.sum(1)) / count
    left_mean_P = (first_mean_P + mean_PN.sum(1)) / count
    top_P = scores_PN.max(1).values
    score_P = top_P + beta * (count * mean_P - (count - 1) * left_mean_P)
    # Neither can exceed what the samples hold by more than the jackknife's own error; a score has a hard limit.
    return count * kl_P - (count - 1) * left_kl_P, score_P.minimum(top_P), kl_P


def _moments(z_PN: Tensor) -> tuple[Tensor, Tensor]:
    """KL and mean of z (P,) under weights softmax(z). The largest z of each row is 0 and comes first."""
    weights_PN = z_PN.exp()
    total_P = weights_PN.sum(1)
    mean_P = (weights_PN * z_PN).sum(1) / total_P
    return mean_P - (total_P / z_PN.shape[1]).log(), mean_P


def _crossing(kl_G: Tensor, log_beta_G: Tensor, kl: float) -> Tensor:
    """log beta where the KL first reaches `kl`; the last one where it never does."""
    above = (kl_G >= kl).nonzero()
    if not len(above):
        return log_beta_G[-1]
    i = int(above[0])
    if i == 0:
        return log_beta_G[0]
    share = (kl - kl_G[i - 1]) / (kl_G[i] - kl_G[i - 1])
    return log_beta_G[i - 1] + share * (log_beta_G[i] - log_beta_G[i - 1])


def _interpolate(x: Tensor, x_G: Tensor, y_G: Tensor) -> Tensor:
    """Linear interpolation at `x`; `x_G` ascends."""
    i = int(torch.searchsorted(x_G, x).clamp(1, len(x_G) - 1))
    share = ((x - x_G[i - 1]) / (x_G[i] - x_G[i - 1])).clamp(0, 1)
    return y_G[i - 1] + share * (y_G[i] - y_G[i - 1])
