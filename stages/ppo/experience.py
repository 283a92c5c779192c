"""From episodes to what an update learns from: log-probs, values, rewards, advantages.

The numbered steps are those of docs/ppo.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.ppo import PPOConfig
from stages.models.bank import Bank
from stages.models.microbatch import MicroBatch
from stages.ppo.advantages import gae, masked_moments, masked_sum, token_rewards, whiten
from stages.ppo.kl import k1, k3
from stages.sampling import episodes as trajectory
from stages.sampling.decoding import Record
from stages.sampling.episodes import Episodes
from stages.training.distributed import World


@dataclass(frozen=True)
class Experience:
    """Episodes and their (B, T) tensors, zero where masked, on the episodes' device. Scores (B,), as the reward
    model gave them, and KL (B,) are on the CPU."""

    episodes: Episodes
    logp_BT: Tensor
    ref_logp_BT: Tensor
    values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    scores_B: Tensor
    kl_B: Tensor
    metrics: dict[str, float]
    weights_BT: Tensor | None = None
    """Of the policy loss (stages/ppo/mismatch.py); None: all 1."""


@torch.no_grad()
def score_tokens(
    bank: Bank,
    role: str,
    episodes: Episodes,
    config: PPOConfig,
    *,
    entropy: bool = False,
    with_values: bool = False,
    micro: MicroBatch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs and, where wanted (else zero), entropies and the scalar head's values (B, T) under a role, in one
    pass. `micro`: what holds the micro-batch that fits; None: as the config says."""

    def passes(size: int | None) -> tuple[Tensor, Tensor, Tensor]:
        shape, device = episodes.mask_BT.shape, episodes.ids_BL.device
        logps, entropies, values = (torch.zeros(shape, device=device) for _ in range(3))
        for rows, part in episodes.micro_batches(torch.arange(len(episodes)), size or _minibatch(config)):
            hidden = actor.hidden(part.ids_BL)
            logps[rows], entropies[rows] = trajectory.logprobs(
                actor,
                part,
                hidden,
                temperature=config.temperature,
                chunk_size=config.logits_chunk_size,
                entropy=entropy,
            )
            if with_values:
                values[rows] = trajectory.values(actor, part, hidden)
        return logps, entropies, values

    with bank.active(role) as actor:
        return (micro or MicroBatch(config.micro_batch_size)).run(passes, len(episodes))


@torch.no_grad()
def value_tokens(
    bank: Bank, role: str, episodes: Episodes, config: PPOConfig, *, micro: MicroBatch | None = None
) -> Tensor:
    """V (B, T) under a value role of its own."""

    def passes(size: int | None) -> Tensor:
        values = torch.zeros(episodes.mask_BT.shape, device=episodes.ids_BL.device)
        for rows, part in episodes.micro_batches(torch.arange(len(episodes)), size or _minibatch(config)):
            values[rows] = trajectory.values(actor, part, actor.hidden(part.ids_BL))
        return values

    with bank.active(role) as actor:
        return (micro or MicroBatch(config.micro_batch_size)).run(passes, len(episodes))


def _minibatch(config: PPOConfig) -> int:
    """What training takes at once by default: a pass over the whole batch should not set the peak of memory."""
    return config.batch_size // config.num_mini_batches


def build(
    bank: Bank,
    episodes: Episodes,
    scores_B: Tensor,
    rewards_B: Tensor,
    config: PPOConfig,
    kl_coef: float,
    world: World,
    record: Record | None = None,
    micro: MicroBatch | None = None,
) -> Experience:
    """Steps 3 to 5. The model's passes run on the device; rewards and advantages are computed on the CPU: their
    tensors are small, sums are in float64, and GAE is a loop over time.

    Args:
        record: of the sampling of these episodes; None: the policy is asked again.
        scores_B: raw scores of the reward model, for the log.
        rewards_B: what enters the reward: normalised, clipped, less the penalty for a missing stop token.
        kl_coef: beta.
        micro: as for `score_tokens`.
    """
    mask = episodes.mask_BT
    # 3. What the policy and the reference say of the tokens, and what they are worth.
    trunk = config.value == "trunk"
    if record is None:
        logp, entropy, values = score_tokens(
            bank, "policy", episodes, config, entropy=True, with_values=trunk, micro=micro
        )
    else:
        logp, entropy, values = (
            torch.where(mask, noted[:, : mask.shape[1]], 0.0)
            for noted in (record.logp_BT, record.entropy_BT, record.values_BT)
        )
    ref_logp, _, _ = score_tokens(bank, "reference", episodes, config, micro=micro)
    if not trunk:
        values = value_tokens(bank, "value", episodes, config, micro=micro)
    passes = (logp, ref_logp, values)
    logp, ref_logp, values, entropy = torch.stack([*passes, entropy]).cpu()
    mask = mask.cpu()
    # 4. Rewards: the KL penalty on every token, the score on the last valid one.
    kl = torch.where(mask, k1(logp, ref_logp), 0.0)
    rewards = token_rewards(kl_coef * kl, rewards_B.to(kl), mask)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False, reduce=world.sum)
    # 5. Advantages, whitened over all valid tokens of the batch; returns are of the unwhitened ones.
    advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
    white = whiten(advantages, mask, reduce=world.sum)
    kl_B = kl.sum(1)
    metrics = _describe(mask, scores_B, rewards_B, kl, entropy, values, returns, logp, ref_logp, kl_coef, world)
    white, returns = torch.stack([white, returns]).to(episodes.mask_BT.device)
    return Experience(episodes, *passes, white, returns, scores_B, kl_B, metrics)


def _describe(
    mask: Tensor,
    scores_B: Tensor,
    rewards_B: Tensor,
    kl: Tensor,
    entropy: Tensor,
    values: Tensor,
    returns: Tensor,
    logp: Tensor,
    ref_logp: Tensor,
    kl_coef: float,
    world: World,
) -> dict[str, float]:
    sums = {
        "episodes": torch.tensor(float(len(mask))),
        "tokens": mask.sum(),
        "kl": kl.sum(),
        "k3": masked_sum(k3(logp, ref_logp), mask),
        "entropy": entropy.sum(),
        "score": scores_B.sum(),
        "score_square": (scores_B.double() ** 2).sum(),
        "reward": rewards_B.sum(),
    }
    total = dict(zip(sums, world.sum(torch.stack([s.double() for s in sums.values()])).tolist(), strict=True))
    n = total["episodes"]
    mean_score = total["score"] / n
    _, error = masked_moments(returns - values, mask, world.sum)
    _, spread = masked_moments(returns, mask, world.sum)
    return {
        "objective/kl": total["kl"] / n,
        "objective/kl_k3": total["k3"] / n,
        "objective/kl_coef": kl_coef,
        "objective/entropy": total["entropy"] / total["tokens"],
        "objective/scores": mean_score,
        "objective/scores_std": max(0.0, total["score_square"] / n - mean_score**2) ** 0.5,
        "objective/non_score_reward": -kl_coef * total["kl"] / n,
        "objective/rlhf_reward": (total["reward"] - kl_coef * total["kl"]) / n,
        "response/length": total["tokens"] / n,
        "val/explained_variance": float(1 - error / spread.clamp(min=1e-8)),
    }
