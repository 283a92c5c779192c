"""Consistency checks during a run: quantities that must agree before the first optimizer step."""

from __future__ import annotations

from pipeline.errors import StageError
from stages.models.bank import Bank
from stages.models.precision import Deviation, spread_of
from stages.ppo.experience import Experience, TokenScores

OTHER_MODEL = 0.3
"""Root mean square of the differences, as a fraction of the spread, from which log-probs are another model's: three
times `ROUGH`, because another engine's kernels and its 16-bit adapters add to the rounding."""


def same_start(data: Experience, exact: bool) -> None:
    """Raises `StageError` if a policy that starts as a copy of the reference has different log-probs."""
    mask = data.episodes.mask_BT.cpu()
    deviation = Deviation.between(data.logp_BT.cpu()[mask], data.ref_logp_BT.cpu()[mask])
    if not deviation.is_rounding(exact):
        raise StageError(
            f"policy and reference differ before the first step, in nats per token: {deviation}",
            hint="the policy must start as a copy of the reference; run the stages before PPO again",
        )


def first_ratio(data: Experience, sums: dict[str, float], count: float, exact: bool) -> None:
    """Raises `StageError` if the policy's ratio to itself is not 1 before the first step of an update.

    Args:
        sums: those of `policy_loss` over the first minibatch.
        count: its number of valid tokens.
    """
    ratio, k3 = sums["ratio"] / count, sums["approxkl"] / count
    relative = 0.0
    if not exact:
        # k3 is half the square of a small difference of log-probs.
        relative = abs(2 * k3) ** 0.5 / spread_of(data.logp_BT.cpu()[data.episodes.mask_BT.cpu()])
    if not Deviation(abs(ratio - 1), relative).is_rounding(exact):
        raise StageError(
            f"the policy's ratio to itself is {ratio:.4f}, not 1, before the first step of an update (KL "
            f"{k3:.2g} nats per token)",
            hint="the model's output is random or depends on the batch; report this with the recipe",
        )


def same_sampler(data: Experience) -> None:
    """Raises `StageError` if another engine samples from another model than the policy: without its adapter, for
    example, or from a base that it reads differently. Rounding alone stays far below `OTHER_MODEL`."""
    sampled = TokenScores.sampled(data.episodes)
    assert sampled is not None
    mask = data.episodes.mask_BT.cpu()
    deviation = Deviation.between(sampled.logp_BT.cpu()[mask], data.logp_BT.cpu()[mask])
    if not deviation.relative <= OTHER_MODEL:
        raise StageError(
            f"the sampler's log-probs are not the policy's, in nats per token: {deviation}",
            where="ppo.sampler",
            hint="set ppo.sampler to builtin, and report this with the recipe and the versions of the packages",
        )


class FrozenRoles:
    """Stores checksums of the frozen roles' weights."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._checksums = {role: bank.checksum(role) for role in bank.roles if role not in bank.trainable}

    def check(self) -> None:
        """Raises `StageError` if a frozen role has changed."""
        for role, checksum in self._checksums.items():
            if self._bank.checksum(role) != checksum:
                raise StageError(
                    f"the frozen role {role!r} has changed during training", hint="report this with the recipe"
                )
