"""Solves the KL coefficient for a KL target, from scored samples of the reference (`stages.ppo.optimum`).

The samples are scored exactly as PPO scores: the same temperature, length, aggregation, normalisation, clipping and
penalty for a missing stop token. Shapes: P prompts, N samples per prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config.ppo import MOST_SAMPLES, KLConfig
from pipeline.errors import StageError
from stages.ppo.optimum import RESAMPLES, Curve

TARGETS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""KLs of the table, nats per response, as far as the samples resolve them."""

Sample = Callable[[Sequence[int]], Tensor]
"""Draws one response per entry, to training prompts by index. Returns what PPO would optimise for them, on every
process."""


@dataclass(frozen=True)
class Point:
    """The optimum with a certain KL.

    Attributes:
        kl: from the reference, nats per response.
        beta, beta_low, beta_high: the KL coefficient, with its 95 % bootstrap interval over prompts.
        score: what PPO optimises, expected under the optimum.
    """

    kl: float
    beta: float
    beta_low: float
    beta_high: float
    score: float


@dataclass(frozen=True)
class Solution:
    """A solved KL coefficient.

    Attributes:
        target: the optimum at the KL target.
        table: optima at other KLs, ascending.
        num_prompts, num_generations: what was sampled.
        reach: the largest KL that so many samples resolve, nats per response.
        reference_score: mean score of the reference.
    """

    target: Point
    table: Sequence[Point]
    num_prompts: int
    num_generations: int
    reach: float
    reference_score: float

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Solution:
        return cls(
            **{
                **state,
                "target": Point(**state["target"]),
                "table": [Point(**row) for row in state["table"]],
            }
        )

    def lines(self) -> list[str]:
        """The table, for the terminal."""
        point = self.target
        return [
            f"ppo: KL coefficient {point.beta:.3g} (95 % interval {point.beta_low:.3g} to {point.beta_high:.3g}), "
            f"solved for a KL of {point.kl:g} nats per response from {self.num_generations} samples for each of "
            f"{self.num_prompts} prompts",
            "   KL   beta  expected score (0 is the reference's mean)",
            *(
                f"{row.kl:5.2f}  {row.beta:5.3f}  {row.score - self.reference_score:5.2f}"
                + ("  <- kl.target" if row is point else "")
                for row in sorted([*self.table, point], key=lambda row: row.kl)
            ),
        ]


def solve(config: KLConfig, prompts: int, sample: Sample, generator: torch.Generator) -> Solution:
    """Samples and solves. The same on every process.

    Args:
        prompts: how many training prompts there are.
        generator: draws which of them are used, and the bootstrap.

    Raises `StageError` when even `MOST_SAMPLES` samples per prompt do not resolve the target, or when all scores of
    every prompt are equal.
    """
    chosen = torch.randperm(prompts, generator=generator)[: config.num_prompts].tolist()
    scores_PN = torch.zeros(len(chosen), 0)
    count = config.num_generations
    while True:
        rows = [i for i in chosen for _ in range(count - scores_PN.shape[1])]
        scores_PN = torch.cat([scores_PN, sample(rows).view(len(chosen), -1)], 1)
        if bool((scores_PN == scores_PN[:, :1]).all()):
            raise StageError(
                "the reward gives all answers to a prompt the same score: no KL coefficient has an optimum "
                "away from the reference",
                hint="see why with the reward stage's probes in the report, or set ppo.kl.kind: fixed",
            )
        curve = Curve.of(scores_PN)
        if curve.reach >= config.target or count == MOST_SAMPLES:
            break
        count = min(2 * count, MOST_SAMPLES)
    if curve.reach < config.target:
        raise StageError(
            f"ppo.kl.target: {config.target:g} nats per response cannot be solved: {MOST_SAMPLES} samples per "
            f"prompt resolve an optimum of at most {curve.reach:.2g} nats",
            hint="lower ppo.kl.target, or set ppo.kl.kind: adaptive",
        )
    rows_RP = torch.randint(len(chosen), (RESAMPLES, len(chosen)), generator=generator)
    kls = [kl for kl in TARGETS if kl <= curve.reach and kl != config.target]
    return Solution(
        target=_point(curve, config.target, rows_RP),
        table=[_point(curve, kl, rows_RP) for kl in kls],
        num_prompts=len(chosen),
        num_generations=count,
        reach=curve.reach,
        reference_score=float(scores_PN.double().mean()),
    )


def _point(curve: Curve, kl: float, rows_RP: Tensor) -> Point:
    beta = float(curve.beta_at(kl))
    low, high = curve.beta_at(kl, rows_RP).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return Point(kl, beta, low, high, curve.score_at(kl))
