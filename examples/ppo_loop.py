"""PPO for a language model in a single file, to read from top to bottom.

    python examples/ppo_loop.py

A tiny Llama with random weights learns to write vowels on a CPU in about a minute. The reward is a function, not a
reward model. Everything else is as in `stages/ppo`: the same maths functions and the same seven steps
(docs/ppo.md). A test checks that an update here changes the weights like an update of the trainer.

The trainer adds prompts of different lengths, a KV cache, LoRA roles on one backbone, micro-batches, several
processes, 16 bits, checkpoints, score normalisation and evaluation during training.

Shapes: B episodes, P prompt tokens, T response tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from stages.models.heads import ScalarHead
from stages.ppo.advantages import gae, token_rewards, whiten
from stages.ppo.kl import AdaptiveKL, KLController, k1
from stages.ppo.losses import policy_loss, value_loss

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz"
EOS = 0  # the line break ends a response


@dataclass
class Settings:
    """Settings with the names of a recipe's `ppo` section."""

    batch_size: int = 64
    response_length: int = 16
    num_ppo_epochs: int = 4
    num_mini_batches: int = 4
    learning_rate: float = 1e-3
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    max_grad_norm: float = 1.0


class Policy(nn.Module):
    """A language model and a value head on its last hidden states."""

    def __init__(self, lm: LlamaForCausalLM, head: ScalarHead) -> None:
        super().__init__()
        self.lm, self.head = lm, head

    def forward(self, ids: Tensor, prompt_length: int) -> tuple[Tensor, Tensor]:
        """Log-probs of the response tokens (B, T), and the value of the state before each (B, T)."""
        hidden = self.lm.model(ids).last_hidden_state[:, prompt_length - 1 : -1]
        logp = torch.log_softmax(self.lm.lm_head(hidden), -1)
        return logp.gather(-1, ids[:, prompt_length:, None])[..., 0], self.head(hidden)


@torch.no_grad()
def sample(lm: LlamaForCausalLM, prompts: Tensor, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Prompts and responses (B, P + T), and the mask of response tokens up to and including the first EOS (B, T).

    Training uses exactly the sampled tokens, never decoded text that is encoded again.
    """
    ids = prompts
    for _ in range(length):
        probs = torch.softmax(lm(ids).logits[:, -1], -1)
        ids = torch.cat([ids, torch.multinomial(probs, 1, generator=generator)], 1)
    is_eos = (ids[:, prompts.shape[1] :] == EOS).long()
    return ids, is_eos.cumsum(1) - is_eos == 0


def update(
    policy: Policy,
    reference: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    ids: Tensor,
    mask: Tensor,
    scores: Tensor,
    kl: KLController,
    settings: Settings,
    generator: torch.Generator,
) -> dict[str, float]:
    """Steps 3 to 7 on one batch of episodes and their scores (B,)."""
    prompt_length = ids.shape[1] - mask.shape[1]
    with torch.no_grad():
        # 3. Log-probs of the sampling policy and of the reference; values.
        old_logp, old_values = policy(ids, prompt_length)
        ref_logp, _ = Policy(reference, policy.head)(ids, prompt_length)
        # 4. Rewards: the KL penalty on every token, the score on the last unmasked token.
        token_kl = torch.where(mask, k1(old_logp, ref_logp), 0.0)
        rewards = token_rewards(kl.value * token_kl, scores, mask)
        # 5. Advantages, and the returns as targets of the value head.
        advantages, returns = gae(rewards, old_values, mask, settings.gamma, settings.lam)
        advantages = whiten(advantages, mask)
    # 6. Several epochs over the batch; each minibatch is one optimizer step.
    for _ in range(settings.num_ppo_epochs):
        for rows in torch.randperm(len(ids), generator=generator).chunk(settings.num_mini_batches):
            logp, values = policy(ids[rows], prompt_length)
            count = float(mask[rows].sum())
            actor = policy_loss(
                logp, old_logp[rows], advantages[rows], mask[rows], count=count, cliprange=settings.cliprange
            )
            critic = value_loss(
                values,
                old_values[rows],
                returns[rows],
                mask[rows],
                count=count,
                cliprange_value=settings.cliprange_value,
            )
            optimizer.zero_grad()
            (actor.loss + settings.vf_coef * critic.loss).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
            optimizer.step()
    # 7. Adapt the KL coefficient.
    kl_per_response = float(token_kl.sum() / len(ids))
    kl.update(kl_per_response, len(ids))
    return {"score": float(scores.mean()), "kl": kl_per_response, "kl_coef": kl.value}


def vowels(text: str) -> float:
    """The reward: the number of vowels in a response."""
    return float(sum(letter in "aeiou" for letter in text))


def main(updates: int = 40) -> list[dict[str, float]]:
    torch.manual_seed(0)
    settings, generator = Settings(), torch.Generator().manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(ALPHABET),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    lm = LlamaForCausalLM(config).eval()
    reference = copy.deepcopy(lm).requires_grad_(False)
    head = ScalarHead(config.hidden_size)
    nn.init.zeros_(head.weight)  # initial values are zero
    policy = Policy(lm, head)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    kl = AdaptiveKL(init=0.05, target=10.0, horizon=1000)
    history = []
    for number in range(updates):
        # 1. Sample responses to prompts of one letter each.
        prompts = torch.randint(2, len(ALPHABET), (settings.batch_size, 1), generator=generator)
        ids, mask = sample(lm, prompts, settings.response_length, generator)
        # 2. Score them.
        texts = ["".join(ALPHABET[i] for i in row[keep]) for row, keep in zip(ids[:, 1:], mask, strict=True)]
        scores = torch.tensor([vowels(text) for text in texts])
        metrics = update(policy, reference, optimizer, ids, mask, scores, kl, settings, generator)
        history.append(metrics)
        if number % 5 == 0 or number == updates - 1:
            numbers = "  ".join(f"{name} {value:6.3f}" for name, value in metrics.items())
            print(f"update {number:3}  {numbers}  {texts[0].strip()!r}")
    return history


if __name__ == "__main__":
    main()
