"""The mismatch between sampling and training in 16 bits: its size, and importance weights that correct for it.

Decoding and full forward passes round differently, so the sampling policy differs slightly from the policy whose
log-probs are recomputed. PPO's ratio compares the recomputed policy with the trained one and hides this difference,
which makes training off-policy (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
Training"). In float32 the log-probs recorded by the built-in sampler are used directly, and there is no mismatch.

Shapes: B responses, T response tokens; masks are bool.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.config.ppo import PPOConfig
from stages.models.distributed import World
from stages.ppo.advantages import masked_moments, masked_sum
from stages.ppo.experience import Experience, TokenScores
from stages.ppo.kl import k3, log_ratio


def importance_weights(logp_BT: Tensor, sampled_logp_BT: Tensor, clip_max: float) -> Tensor:
    """`min(p / q, clip_max)` of each token (B, T), p the recomputed policy and q the sampling policy; detached.

    Truncated importance sampling (Ionides 2008; Yao et al. 2025, equation 4), per token.
    """
    return log_ratio(logp_BT, sampled_logp_BT).exp().clamp(max=clip_max).detach()


def with_mismatch(data: Experience, config: PPOConfig, world: World) -> Experience:
    """Adds the mismatch metrics (docs/ppo.md) to experience with recomputed log-probs and, with
    `config.importance_clip`, the importance weights. Returns it unchanged if the sampler recorded no
    log-probs."""
    sampled = TokenScores.sampled(data.episodes)
    if sampled is None:
        return data
    sampled_BT = sampled.logp_BT
    logp, sampled_logp, mask = data.logp_BT.cpu(), sampled_BT.cpu(), data.episodes.mask_BT.cpu()
    _, variance = masked_moments(log_ratio(logp, sampled_logp), mask, world.sum)
    sums = torch.stack([mask.sum(), masked_sum(k3(sampled_logp, logp), mask)])
    count, divergence = world.sum(sums.double()).tolist()
    metrics = {
        "sampling/kl_k3": divergence / count,
        "sampling/logp_difference_std": float(variance) ** 0.5,
    }
    clip_max = config.importance_clip
    weights = None if clip_max is None else importance_weights(data.logp_BT, sampled_BT, clip_max)
    return replace(data, weights_BT=weights, metrics=data.metrics | metrics)
