"""Log-probabilities of target tokens. Logits are computed in chunks, never as a (batch, length, vocabulary)
tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Project = Callable[[Tensor], Tensor]
"""Hidden states (N, H) -> logits (N, V). The logits must be a new tensor, because they are overwritten."""


def token_logprobs(
    hidden_NH: Tensor,
    targets_N: Tensor,
    project: Project,
    *,
    temperature: float = 1.0,
    chunk_size: int = 4096,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, float32, (N,) each.

    Args:
        hidden_NH: last hidden states at the positions that predict the targets.
        project: the language-model head, including scaling and soft-capping.
        temperature: divides the logits, as in sampling.
        chunk_size: positions whose logits are in memory at once. With more than one chunk, the backward pass
            recomputes them.
        entropy: if false, the entropies are zeros and cost nothing.
    """
    chunks = list(zip(hidden_NH.split(chunk_size), targets_N.split(chunk_size), strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        parts = [_chunk(hidden, targets, project, temperature, entropy) for hidden, targets in chunks]
    else:
        parts = [checkpoint(_chunk, h, t, project, temperature, entropy, use_reentrant=False) for h, t in chunks]
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def _chunk(
    hidden: Tensor, targets: Tensor, project: Project, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor]:
    return ChosenLogprob.apply(project(hidden).float(), targets, temperature, entropy)


class ChosenLogprob(Function):
    """`log_softmax(logits / temperature)` at one target per row, and the entropy of each row: (N, V) and (N,) ->
    (N,) and (N,).

    Computed in place in the logits' memory, as is the gradient: `grad (onehot - p)` for the log-prob and
    `-grad p (log p + entropy)` for the entropy. PyTorch raises `RuntimeError` for a second backward pass.

    Args:
        entropy: if false, the entropies are zeros, which saves a second pass over the vocabulary.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, targets_N: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        below_NV = logits_NV.detach()
        if temperature != 1:
            below_NV.div_(temperature)
        below_NV.sub_(below_NV.amax(-1, keepdim=True))
        chosen_N1 = below_NV.gather(1, targets_N[:, None])
        probs_NV = below_NV.exp() if entropy else below_NV.exp_()
        total_N1 = probs_NV.sum(-1, keepdim=True)
        probs_NV.div_(total_N1)
        log_total_N = total_N1.log_()[:, 0]
        entropy_N = log_total_N.new_zeros(log_total_N.shape)
        if entropy:
            entropy_N = log_total_N - below_NV.mul_(probs_NV).sum(-1)
        ctx.save_for_backward(probs_NV, targets_N, entropy_N)
        ctx.temperature, ctx.entropy = temperature, entropy
        return chosen_N1[:, 0] - log_total_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, entropy_grad_N: Tensor) -> tuple[Tensor | None, ...]:
        probs_NV, targets_N, entropy_N = ctx.saved_tensors
        grad_N = grad_N / ctx.temperature
        factor_N = -grad_N
        weighted_NV = None
        if ctx.entropy:
            entropy_grad_N = entropy_grad_N / ctx.temperature
            factor_N = factor_N - entropy_grad_N * entropy_N
            weighted_NV = torch.xlogy(probs_NV, probs_NV).mul_(entropy_grad_N[:, None])
        grad_NV = probs_NV.mul_(factor_N[:, None])
        if weighted_NV is not None:
            grad_NV.sub_(weighted_NV)
        return grad_NV.scatter_add_(1, targets_N[:, None], grad_N[:, None]), None, None, None
