"""The processes that share one training run; one process alone is the simple case of it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class World:
    """Rank, size, and sums over all processes. Uses the default process group when there is one."""

    def __init__(self) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.size = dist.get_world_size() if joined else 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, a new tensor; on one process the tensor itself."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up gradients over all processes, in place. Losses must be divided by global counts."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def mine(self, count: int) -> Tensor:
        """Indices of this process's share of `count` things."""
        return torch.arange(self.rank, count, self.size)
