"""Log-probabilities of given tokens, with logits in chunks: a batch x length x vocabulary tensor never exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Project = Callable[[Tensor], Tensor]
"""Hidden states (N, H) -> logits (N, V)."""


def positions_at_once(vocabulary: int, device: torch.device) -> int:
    """A chunk size whose logits take 4 MB on a CPU, about its caches, and 256 MB elsewhere; but no fewer than 256
    positions, for a matrix product of fewer starves."""
    return max(256, 2 ** (20 if device.type == "cpu" else 26) // vocabulary)


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
        project: the language-model head, soft-capping and the like included.
        temperature: divides the logits, as in sampling.
        chunk_size: positions whose logits exist at once. With more than one chunk they are recomputed in the
            backward pass instead of kept.
        entropy: without it the entropies are zeros, and cost nothing.
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
    logits = project(hidden).float()
    if temperature != 1:
        logits = logits / temperature
    if not entropy:
        return ChosenLogprob.apply(logits, targets), torch.zeros_like(targets, dtype=torch.float32)
    logps = torch.log_softmax(logits, dim=-1)
    return logps.gather(1, targets[:, None])[:, 0], -torch.linalg.vecdot(logps.exp(), logps)


class ChosenLogprob(Function):
    """`log_softmax(logits)` at one target a row, (N, V) and (N,) -> (N,). Its gradient `grad (onehot - p)` is made
    in one pass over the kept probabilities and in their place, a third of what `F.cross_entropy` takes on a CPU.
    A second backward pass through it is an error of PyTorch's."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        highest, at = logits_NV.max(-1, keepdim=True)
        probs_NV = torch.softmax(logits_NV, dim=-1)
        ctx.save_for_backward(probs_NV, targets_N)
        # log p = logit - highest + log p(highest), whose probability is never too small for a logarithm.
        logp_N1 = logits_NV.gather(1, targets_N[:, None]) - highest + probs_NV.gather(1, at).log()
        return logp_N1[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        probs_NV, targets_N = ctx.saved_tensors
        grad_NV = probs_NV.mul_(-grad_N[:, None])
        return grad_NV.scatter_add_(1, targets_N[:, None], grad_N[:, None]), None
