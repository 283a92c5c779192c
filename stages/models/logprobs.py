"""Log-probabilities of given tokens, with logits in chunks: a batch x length x vocabulary tensor never exists."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
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
        return -F.cross_entropy(logits, targets, reduction="none"), torch.zeros_like(targets, dtype=torch.float32)
    logps = torch.log_softmax(logits, dim=-1)
    return logps.gather(1, targets[:, None])[:, 0], -torch.linalg.vecdot(logps.exp(), logps)
