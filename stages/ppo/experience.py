"""From episodes to what an update learns from: log-probs, values, rewards, advantages.

The numbered steps are those of docs/ppo.md. Shapes: B responses, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.ppo import PPOConfig
from stages.models.actor import Actor
from stages.models.bank import Bank
from stages.models.microbatch import MicroBatch
from stages.ppo.advantages import ESTIMATORS, masked_moments, masked_sum, token_rewards, whiten
from stages.ppo.kl import k1, k3
from stages.sampling import episodes as sequences
from stages.sampling.episodes import Episodes
from stages.training.distributed import World


@dataclass(frozen=True)
class Experience:
    """Episodes and their (B, T) tensors, zero where masked, on the episodes' device.

    Attributes:
        logp_BT, ref_logp_BT: log-probs of the policy that sampled and of the reference.
        values_BT: of the critic; zeros without one.
        advantages_BT: whitened over the valid tokens of the whole batch.
        returns_BT: what the critic learns.
        metrics: docs/ppo.md.
        weights_BT: of the policy loss (stages/ppo/mismatch.py); None: all 1.
    """

    episodes: Episodes
    logp_BT: Tensor
    ref_logp_BT: Tensor
    values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    metrics: dict[str, float]
    weights_BT: Tensor | None = None


@dataclass(frozen=True)
class TokenScores:
    """What a role's forward pass says of each response token, (B, T), zero where masked.

    `entropy_BT` and `values_BT` are zero where they were not asked for.
    """

    logp_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor

    @classmethod
    def sampled(cls, episodes: Episodes) -> TokenScores | None:
        """As noted while sampling; None where the sampler did not record it."""
        record, mask = episodes.sampled, episodes.mask_BT
        if record is None:
            return None
        noted = (record.logp_BT, record.entropy_BT, record.values_BT)
        return cls(*(torch.where(mask, values_BT[:, : mask.shape[1]], 0.0) for values_BT in noted))


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
) -> TokenScores:
    """Log-probs and, where wanted, entropies and the scalar head's values under a role, in one pass.

    Args:
        micro: holds the micro-batch size that fits; None: as the config says.
    """
    logp_BT, entropy_BT, values_BT = (torch.zeros(episodes.mask_BT.shape, device=episodes.device) for _ in range(3))

    def one_pass(actor: Actor, rows: Tensor, part: Episodes) -> None:
        hidden = actor.hidden(part.ids_BL)
        logp_BT[rows], entropy_BT[rows] = sequences.logprobs(
            actor,
            part,
            hidden,
            temperature=config.temperature,
            chunk_size=config.logits_chunk_size,
            entropy=entropy,
        )
        if with_values:
            values_BT[rows] = sequences.values(actor, part, hidden)

    _passes(bank, role, episodes, config, micro, one_pass)
    return TokenScores(logp_BT, entropy_BT, values_BT)


@torch.no_grad()
def value_tokens(
    bank: Bank, role: str, episodes: Episodes, config: PPOConfig, *, micro: MicroBatch | None = None
) -> Tensor:
    """V (B, T) under a value role of its own."""
    values_BT = torch.zeros(episodes.mask_BT.shape, device=episodes.device)

    def one_pass(actor: Actor, rows: Tensor, part: Episodes) -> None:
        values_BT[rows] = sequences.values(actor, part, actor.hidden(part.ids_BL))

    _passes(bank, role, episodes, config, micro, one_pass)
    return values_BT


def _passes(
    bank: Bank,
    role: str,
    episodes: Episodes,
    config: PPOConfig,
    micro: MicroBatch | None,
    one_pass: Callable[[Actor, Tensor, Episodes], None],
) -> None:
    """`one_pass(actor, rows, their episodes)` for micro-batches that together are all episodes. By default as many
    as training takes at once: a pass over the whole batch should not set the peak of memory."""
    minibatch = config.batch_size // config.num_mini_batches

    def passes(size: int | None) -> None:
        for rows, part in episodes.micro_batches(torch.arange(len(episodes)), size or minibatch):
            one_pass(actor, rows, part)

    with bank.active(role) as actor:
        (micro or MicroBatch(config.micro_batch_size)).run(passes, len(episodes))


def build(
    bank: Bank,
    episodes: Episodes,
    scores_B: Tensor,
    rewards_B: Tensor,
    config: PPOConfig,
    kl_coef: float,
    world: World,
    *,
    reuse: bool = False,
    micro: MicroBatch | None = None,
) -> Experience:
    """Steps 3 to 5. The model's passes run on the device; rewards and advantages are computed on the CPU: their
    tensors are small, sums are in float64, and GAE is a loop over time.

    Args:
        scores_B: raw scores of the reward model, for the log.
        rewards_B: what enters the reward: normalised, clipped, less the penalty for a missing stop token.
        kl_coef: beta.
        reuse: take what was noted while sampling, where it was, for the policy's own pass.
        micro: as for `score_tokens`.
    """
    # 3. Log-probs of policy and reference, values of the critic.
    policy = TokenScores.sampled(episodes) if reuse else None
    if policy is None:
        with_values = config.critic == "trunk"
        policy = score_tokens(bank, "policy", episodes, config, entropy=True, with_values=with_values, micro=micro)
    reference = score_tokens(bank, "reference", episodes, config, micro=micro)
    values_BT = policy.values_BT
    if config.critic == "adapter":
        values_BT = value_tokens(bank, "value", episodes, config, micro=micro)
    passes = (policy.logp_BT, reference.logp_BT, values_BT)
    logp, ref_logp, values, entropy = torch.stack([*passes, policy.entropy_BT]).cpu()
    mask = episodes.mask_BT.cpu()
    # 4. Rewards: the KL penalty on every token, the score on the last valid one.
    kl = torch.where(mask, k1(logp, ref_logp), 0.0)
    rewards = token_rewards(kl_coef * kl, rewards_B.to(kl), mask)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False, reduce=world.sum)
    # 5. Advantages, whitened over all valid tokens of the batch; returns are of the unwhitened ones.
    estimator = ESTIMATORS[config.advantage_estimator](config.gamma, config.lam)
    advantages, returns = estimator(rewards, values, mask, config.num_generations, world.sum)
    white = whiten(advantages, mask, reduce=world.sum)
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
    metrics = _metrics(sums, kl_coef, world)
    if estimator.critic:
        _, error = masked_moments(returns - values, mask, world.sum)
        _, spread = masked_moments(returns, mask, world.sum)
        metrics["val/explained_variance"] = float(1 - error / spread.clamp(min=1e-8))
    white, returns = torch.stack([white, returns]).to(episodes.device)
    return Experience(episodes, *passes, white, returns, metrics)


def _metrics(sums: dict[str, Tensor], kl_coef: float, world: World) -> dict[str, float]:
    """From sums over this process's episodes to means over all."""
    total = dict(zip(sums, world.sum(torch.stack([s.double() for s in sums.values()])).tolist(), strict=True))
    episodes, tokens = total["episodes"], total["tokens"]
    mean_score = total["score"] / episodes
    return {
        "objective/kl": total["kl"] / episodes,
        "objective/kl_k3": total["k3"] / episodes,
        "objective/kl_coef": kl_coef,
        "objective/entropy": total["entropy"] / tokens,
        "objective/scores": mean_score,
        "objective/scores_std": max(0.0, total["score_square"] / episodes - mean_score**2) ** 0.5,
        "objective/non_score_reward": -kl_coef * total["kl"] / episodes,
        "objective/rlhf_reward": (total["reward"] - kl_coef * total["kl"]) / episodes,
        "response/length": tokens / episodes,
    }
