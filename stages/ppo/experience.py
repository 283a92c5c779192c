"""Turns episodes into experience: log-probs, values, rewards, advantages and returns.

Step numbers follow docs/ppo.md. Shapes: B responses, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.ppo import PPOConfig
from stages.models.actor import Actor
from stages.models.bank import Bank
from stages.models.distributed import World
from stages.models.microbatch import MicroBatch
from stages.ppo.advantages import masked_moments, masked_sum, token_rewards, whiten
from stages.ppo.estimators import AdvantageEstimator, Groups, estimator_of
from stages.ppo.kl import k1, k3
from stages.sampling import episodes as sequences
from stages.sampling.episodes import Episodes


@dataclass(frozen=True)
class Experience:
    """Episodes and their (B, T) tensors, zero where masked, on the episodes' device.

    Attributes:
        logp_BT, ref_logp_BT: log-probs under the policy before the update and under the reference, nats.
        values_BT: the critic's values; zeros without a critic.
        advantages_BT: whitened over the valid tokens of the whole batch, unless `config.whitens` is false.
        returns_BT: the critic's regression targets.
        metrics: see docs/ppo.md.
        tokens: number of valid tokens of the whole batch.
        kl_coef: the KL coefficient of this update, beta.
        weights_BT: importance weights of the policy loss (stages/ppo/mismatch.py); None: all 1.
    """

    episodes: Episodes
    logp_BT: Tensor
    ref_logp_BT: Tensor
    values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    metrics: dict[str, float]
    tokens: float
    kl_coef: float
    weights_BT: Tensor | None = None


@dataclass(frozen=True)
class TokenScores:
    """Per-token outputs of a role's forward pass, (B, T), zero where masked.

    `entropy_BT` and `values_BT` are zero when not requested.
    """

    logp_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor

    @classmethod
    def sampled(cls, episodes: Episodes) -> TokenScores | None:
        """The values recorded while sampling; None if the sampler recorded none."""
        record, mask = episodes.sampled, episodes.mask_BT
        if record is None:
            return None
        recorded = (record.logp_BT, record.entropy_BT, record.values_BT)
        return cls(*(torch.where(mask, values_BT[:, : mask.shape[1]], 0.0) for values_BT in recorded))


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
    """Log-probs and, on request, entropies and values of the scalar head under a role, in one pass.

    Args:
        micro: the micro-batch size, reduced when memory runs out; None: starts from the config's.
    """
    logp_BT, entropy_BT, values_BT = (torch.zeros(episodes.mask_BT.shape, device=episodes.device) for _ in range(3))

    def one_pass(actor: Actor, rows: Tensor, part: Episodes) -> None:
        hidden = part.hidden(actor)
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
    """V (B, T) under a separate value role."""
    values_BT = torch.zeros(episodes.mask_BT.shape, device=episodes.device)

    def one_pass(actor: Actor, rows: Tensor, part: Episodes) -> None:
        values_BT[rows] = sequences.values(actor, part, part.hidden(actor))

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
    """Calls `one_pass(actor, rows, episodes)` for micro-batches that cover all episodes.

    The default size is a minibatch, so that these passes do not raise the memory peak of training.
    """
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
    estimator: AdvantageEstimator | None = None,
    rows_B: Tensor | None = None,
    reuse: bool = False,
    micro: MicroBatch | None = None,
) -> Experience:
    """Runs steps 3 to 5. Forward passes run on the device. Rewards and advantages are computed on the CPU: their
    tensors are small, sums are in float64, and GAE is a loop over time.

    Args:
        scores_B: raw scores of the reward model, for the metrics.
        rewards_B: normalised and clipped scores, minus the penalty for a missing stop token.
        kl_coef: the KL coefficient, beta.
        estimator: computes the advantages; None: that of the config, without earlier batches.
        rows_B: the episodes' rows of the whole batch; None: they are the whole batch.
        reuse: use the log-probs recorded while sampling, if any, instead of a pass of the policy.
        micro: as in `score_tokens`.
    """
    # 3. Log-probs under policy and reference, and values.
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
    # 4. Rewards: the KL penalty on every token, unless it is in the loss; the score on the last valid one.
    kl = torch.where(mask, k1(logp, ref_logp), 0.0)
    penalty = kl_coef * kl if config.kl_loss is None else torch.zeros_like(kl)
    rewards = token_rewards(penalty, rewards_B.to(kl), mask)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False, reduce=world.sum)
    # 5. Advantages, whitened over all valid tokens of the batch; returns use the unwhitened ones.
    rows_B = torch.arange(len(mask)) if rows_B is None else rows_B
    groups = Groups.of(rows_B, config.batch_size, config.num_generations, world.sum)
    advantages, returns = (estimator or estimator_of(config))(rewards, values, mask, groups)
    white = whiten(advantages, mask, reduce=world.sum) if config.whitens else advantages
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
    metrics = _metrics(total, kl_coef)
    if config.compares:
        metrics["objective/equal_rewards"] = float(groups.equal(rewards_B).double().mean())
    if config.critic is not None:
        _, error = masked_moments(returns - values, mask, world.sum)
        _, spread = masked_moments(returns, mask, world.sum)
        metrics["val/explained_variance"] = float(1 - error / spread.clamp(min=1e-8))
    white, returns = torch.stack([white, returns]).to(episodes.device)
    return Experience(episodes, *passes, white, returns, metrics, total["tokens"], kl_coef)


def _metrics(total: dict[str, float], kl_coef: float) -> dict[str, float]:
    """Means over the episodes of all processes, from sums over them."""
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
