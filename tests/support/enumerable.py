"""A PPO problem whose optimum is known exactly: every response can be enumerated.

Five tokens and at most three per response make 85 responses per prompt. So the policy's distribution, the optimum
ref(y | x) exp(r(x, y) / beta) / Z(x) and the gradient of the objective are sums, not samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any, Literal

import ppo_case
import tiny
import torch
from torch import Tensor

from pipeline.config.ppo import KLConfig, PPOConfig, ScoreConfig
from stages.models.actor import Actor
from stages.models.bank import Bank
from stages.ppo.rewards import RewardSignal
from stages.ppo.trainer import PPOTrainer
from stages.sampling import episodes as sequences
from stages.sampling.episodes import Episodes
from stages.sampling.prompts import EncodedPrompt

VOCABULARY, LENGTH = 5, 3
STOPS = frozenset({tiny.EOS})
CODEC: Any = SimpleNamespace(stop_ids=STOPS, pad_id=tiny.PAD)
PROMPTS = [EncodedPrompt([], ids, "train") for ids in ([2, 3], [4, 2, 2], [3, 3])]
RESPONSES = [
    list(ids)
    for length in range(1, LENGTH + 1)
    for ids in product(range(VOCABULARY), repeat=length)
    if tiny.EOS not in ids[:-1] and (length == LENGTH or ids[-1] == tiny.EOS)
]
"""All responses: they end with the stop token or have the full length."""

MASK = torch.arange(LENGTH) < torch.tensor([[len(ids)] for ids in RESPONSES])
"""(85, 3): which tokens of all responses are valid."""

CONFIG = {
    "value": "trunk",
    "batch_size": 256,
    "num_ppo_epochs": 2,
    "num_mini_batches": 4,
    "response_length": LENGTH,
    "learning_rate": 1e-2,
    "value_learning_rate": None,
    "score": ScoreConfig(normalization="none", clip=None),
}


def reward(prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
    """A reward that depends on the prompt, on single tokens and on their order."""
    return torch.tensor(
        [
            0.8 * list(response).count(3) - 0.5 * list(response).count(2) * (prompt.ids[0] == 4)
            + 0.9 * (response[-1] == tiny.EOS) + 0.4 * (list(response[:2]) == [4, 3])
            for prompt, response in zip(prompts, responses, strict=True)
        ]
    )  # fmt: skip


def make(kind: str = "lora", *, beta: float, seed: int = 0, distinct: bool = False, **values: Any) -> PPOTrainer:
    """`distinct`: the policy does not start as a copy of the reference."""
    config = PPOConfig(**(CONFIG | {"kl": KLConfig(kind="fixed", init=beta)} | values))
    bank = tiny.BANKS[kind](
        value=config.critic, seed=2, vocab_size=VOCABULARY, **({"distinct": True} if distinct else {})
    )
    if config.critic is not None:  # as stages.ppo.roles does
        torch.nn.init.zeros_(bank.heads["value" if config.critic == "adapter" else "policy"].weight)
    signal = RewardSignal(ppo_case.Rigged(reward), config.reward)
    return PPOTrainer(bank, config, CODEC, PROMPTS, signal, seed=seed)


def _logprobs(actor: Actor, prompt: EncodedPrompt, temperature: float) -> Tensor:
    episodes = Episodes.build([prompt.ids] * len(RESPONSES), RESPONSES, STOPS, tiny.PAD)
    logp_BT, _ = sequences.logprobs(
        actor, episodes, actor.hidden(episodes.ids_BL), temperature=temperature, chunk_size=None, entropy=False
    )
    return torch.where(episodes.mask_BT, logp_BT, 0.0).double().sum(1)


def logprobs(bank: Bank, role: str, prompt: EncodedPrompt, temperature: float = 1.0) -> Tensor:
    """log pi(y | x), (85,), of all responses to a prompt."""
    with bank.active(role) as actor:
        return _logprobs(actor, prompt, temperature)


Optimum = Callable[..., Tensor]
"""log pi*(y | x), (85,), from a bank, a prompt, the KL coefficient and the temperature."""


@torch.no_grad()
def optimum(bank: Bank, prompt: EncodedPrompt, beta: float, temperature: float = 1.0) -> Tensor:
    """log pi*(y | x), (85,)."""
    scores = reward([prompt] * len(RESPONSES), RESPONSES).double()
    return (logprobs(bank, "reference", prompt, temperature) + scores / beta).log_softmax(0)


@torch.no_grad()
def optimum_with_kl_in_the_loss(kl: Literal["reverse", "k3"], scaled: bool = False) -> Optimum:
    """log pi*(y | x), (85,), where the mean gradient of a whole response's advantage on each token balances that of
    beta times the token's KL.

    That gradient ignores that a token changes the KL of later tokens, so the policy at each prefix is the optimum
    for the expected reward Q of what follows, by backward induction. With reverse KL (k2; k1 and k3 with bias
    correction) it is ref exp(Q / beta) / Z. The mean gradient of k3 is pi - ref per logit, so there it is
    beta ref / (lambda - Q), with lambda so that it sums to 1 (Vojnovic and Yun 2025, arXiv:2502.18548).

    Args:
        scaled: advantages are divided by the standard deviation of the rewards under pi*.
    """

    def of(bank: Bank, prompt: EncodedPrompt, beta: float, temperature: float = 1.0) -> Tensor:
        ref = logprobs(bank, "reference", prompt, temperature).exp().tolist()
        scores = reward([prompt] * len(RESPONSES), RESPONSES).double().tolist()
        scale = 1.0
        for _ in range(30 if scaled else 1):
            policy = torch.zeros(len(RESPONSES), dtype=torch.float64)
            _induce([], list(range(len(RESPONSES))), ref, scores, beta * scale, kl, policy, 0.0)
            spread = (
                policy.exp() * (torch.tensor(scores) - (policy.exp() @ torch.tensor(scores).double())) ** 2
            ).sum()
            scale = float(spread.sqrt()) if scaled else 1.0
        return policy

    return of


def _induce(
    prefix: list[int],
    rows: list[int],
    ref: list[float],
    scores: list[float],
    beta: float,
    kl: str,
    policy: Tensor,
    before: float,
) -> float:
    """Writes the log-probs of `rows`, the responses that start with `prefix`, to `policy`. Returns their expected
    score."""
    if [RESPONSES[row] for row in rows] == [prefix]:
        policy[rows[0]] = before
        return scores[rows[0]]
    children = [
        (child, [row for row in rows if RESPONSES[row][: len(child)] == child])
        for child in ([*prefix, token] for token in range(VOCABULARY))
    ]
    q = torch.tensor([_induce(*child, ref, scores, beta, kl, policy, 0.0) for child in children]).double()
    p_ref = torch.tensor([sum(ref[row] for row in rows) for _, rows in children]).double()
    p_ref = p_ref / p_ref.sum()
    if kl == "reverse":
        p = (p_ref.log() + q / beta).softmax(0)
    else:
        low, high = float(q.max()), float(q.max()) + beta
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if float((beta * p_ref / (middle - q)).sum()) > 1 else (low, middle)
        p = beta * p_ref / (high - q)
    for (_, rows), probability in zip(children, p.log().tolist(), strict=True):
        policy[rows] += probability + before
    return float(p @ q)


def by_token(logp_N: Tensor) -> Tensor:
    """(85, 3): the log-prob of each response's tokens, from the log-probs (85,) of responses."""
    probabilities = logp_N.exp().tolist()
    prefixes: dict[tuple[int, ...], float] = {}
    for ids, probability in zip(RESPONSES, probabilities, strict=True):
        for length in range(len(ids) + 1):
            prefix = tuple(ids[:length])
            prefixes[prefix] = prefixes.get(prefix, 0.0) + probability
    result = torch.zeros(len(RESPONSES), LENGTH).double()
    for row, ids in enumerate(RESPONSES):
        for t in range(len(ids)):
            result[row, t] = math.log(prefixes[tuple(ids[: t + 1])] / prefixes[tuple(ids[:t])])
    return result


def logit_gradient(logp_BT: Tensor, gradient_BT: Tensor) -> float:
    """Norm of the gradient by the logits of each prefix, from that by the log-prob of each response's tokens."""
    by_prefix: dict[tuple[int, ...], Tensor] = {}
    for row, ids in enumerate(RESPONSES):
        for t, token in enumerate(ids):
            gradient = by_prefix.setdefault(tuple(ids[:t]), torch.zeros(VOCABULARY).double())
            gradient[token] += gradient_BT[row, t]
    probability: dict[tuple[int, ...], Tensor] = {}
    for row, ids in enumerate(RESPONSES):
        for t, token in enumerate(ids):
            probability.setdefault(tuple(ids[:t]), torch.zeros(VOCABULARY).double())[token] = logp_BT[row, t].exp()
    parts = [gradient - probability[prefix] * gradient.sum() for prefix, gradient in by_prefix.items()]
    return float(torch.cat(parts).norm())


def gradients(bank: Bank, beta: float) -> None:
    """Accumulates the policy's gradients of -E[r - beta log(pi / ref)], a mean over prompts."""
    references = [logprobs(bank, "reference", prompt) for prompt in PROMPTS]
    with bank.active("policy", train=True) as actor:
        for prompt, ref in zip(PROMPTS, references, strict=True):
            policy = _logprobs(actor, prompt, 1.0)
            scores = reward([prompt] * len(RESPONSES), RESPONSES).double()
            (-(policy.exp() * (scores - beta * (policy - ref))).sum() / len(PROMPTS)).backward()


@torch.no_grad()
def distance(bank: Bank, beta: float, temperature: float = 1.0, *, optimum: Optimum = optimum) -> dict[str, float]:
    """Means over prompts, nats per response: `gap`, the KL of the policy from the optimum; `kl`, its KL from the
    reference; `optimal_kl`, that of the optimum."""
    rows = []
    for prompt in PROMPTS:
        policy, ref = (logprobs(bank, role, prompt, temperature) for role in ("policy", "reference"))
        best = optimum(bank, prompt, beta, temperature)
        rows.append([float((p.exp() * (p - q)).sum()) for p, q in ((policy, best), (policy, ref), (best, ref))])
    return dict(zip(("gap", "kl", "optimal_kl"), torch.tensor(rows).mean(0).tolist(), strict=True))
