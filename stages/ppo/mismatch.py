"""What sampling and training compute differently in 16 bits: how much it is, and weights that correct for it.

The policy that sampled is not quite the policy whose log-probs are recomputed in full passes: other shapes of the
same products round otherwise. PPO's ratio is between the recomputed policy and the one being trained, so the
difference makes it off-policy without showing (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
Off-Policy RL Training"). In float32 the log-probs noted while sampling are used as they are, and there is no
difference.

Shapes: B responses, T response tokens; masks are bool.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.config.ppo import PPOConfig
from stages.ppo.advantages import masked_moments, masked_sum
from stages.ppo.experience import Experience, TokenScores
from stages.ppo.kl import k3, log_ratio
from stages.training.distributed import World


def importance_weights(logp_BT: Tensor, sampled_logp_BT: Tensor, clip_max: float) -> Tensor:
    """`min(p / q, clip_max)` of each token, p the recomputed policy and q the one that sampled it; no gradient.

    Truncated importance sampling (Ionides 2008; Yao et al. 2025, equation 4), per token.
    """
    return log_ratio(logp_BT, sampled_logp_BT).exp().clamp(max=clip_max).detach()


def measured(data: Experience, config: PPOConfig, world: World) -> Experience:
    """Experience whose log-probs were recomputed, with the difference to those noted while sampling in its metrics
    (docs/ppo.md) and, with `ppo.importance_sampling_clip_max`, the weights of its tokens. Unchanged where the
    sampler noted none."""
    sampled = TokenScores.sampled(data.episodes)
    if sampled is None:
        return data
    sampled_BT = sampled.logp_BT
    logp, noted, mask = data.logp_BT.cpu(), sampled_BT.cpu(), data.episodes.mask_BT.cpu()
    _, variance = masked_moments(log_ratio(logp, noted), mask, world.sum)
    sums = torch.stack([mask.sum(), masked_sum(k3(noted, logp), mask)])
    count, divergence = world.sum(sums.double()).tolist()
    metrics = {
        "sampling/kl_k3": divergence / count,
        "sampling/logp_difference_std": float(variance) ** 0.5,
    }
    clip_max = config.importance_sampling_clip_max
    weights = None if clip_max is None else importance_weights(data.logp_BT, sampled_BT, clip_max)
    return replace(data, weights_BT=weights, metrics=data.metrics | metrics)
