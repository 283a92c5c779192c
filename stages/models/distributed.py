"""Collective operations over the processes of a training run, which may be a single one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

BUCKET = 1 << 24
"""Elements per all-reduce: many small ones would each wait for the slowest process."""


class World:
    """This process's rank, the world size, and collectives. Uses the default process group if there is one."""

    def __init__(self) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.size = dist.get_world_size() if joined else 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, as a new tensor; the tensor itself on a single process."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over all processes, in place. Losses must be divided by global counts. Gradients of
        sharded parameters are already sums."""
        if self.size == 1:
            return
        for bucket in _buckets(p for p in parameters if not isinstance(p, DTensor)):
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            flat = torch.cat([p.grad.flatten() for p in bucket if p.grad is not None])
            dist.all_reduce(flat)
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad.copy_(part.view_as(parameter))  # type: ignore[union-attr]

    def most(self, count: int) -> int:
        """The largest of the processes' counts."""
        counts = torch.zeros(self.size, dtype=torch.long)
        counts[self.rank] = count
        return int(self.sum(counts).max())

    def first(self, number: float) -> float:
        """Rank 0's value of `number`."""
        return float(self.sum(torch.tensor([number if self.rank == 0 else 0.0], dtype=torch.float64))[0])

    def mine(self, count: int) -> Tensor:
        """Indices of this process's share of `count` items."""
        return torch.arange(min(self.rank, count), count, self.size)

    def wait(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            dist.barrier()

    def together(self, mine: list[Any], count: int) -> list[Any]:
        """Gathers all `count` items in order on every process, from each process's share (`mine`)."""
        if self.size == 1:
            return mine
        shares: list[Any] = [None] * self.size
        dist.all_gather_object(shares, mine)
        return [shares[i % self.size][i // self.size] for i in range(count)]


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Groups consecutive parameters of the same dtype and device, up to `BUCKET` elements."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(p.numel() for p in bucket) + parameter.numel() > BUCKET
        if bucket and (full or (parameter.dtype, parameter.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
