"""Which prompts a batch has, and which of its rows each process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from stages.sampling.sampler import Share
from stages.training.distributed import World

Prompt = TypeVar("Prompt")


class PromptQueue(Generic[Prompt]):
    """Prompts in a random order, and in a new one each time all were used.

    Args:
        generator: drawn from when a new order is needed.
    """

    def __init__(self, prompts: Sequence[Prompt], generator: torch.Generator) -> None:
        self.prompts, self.generator = prompts, generator
        self.order, self.cursor = torch.arange(0), 0

    def take(self, count: int) -> list[Prompt]:
        """The next prompts."""
        chosen: list[int] = []
        while len(chosen) < count:
            if self.cursor == len(self.order):
                self.order, self.cursor = torch.randperm(len(self.prompts), generator=self.generator), 0
            taken = self.order[self.cursor :][: count - len(chosen)]
            self.cursor += len(taken)
            chosen += taken.tolist()
        return [self.prompts[i] for i in chosen]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.cursor = state["order"], state["cursor"]


class Shares:
    """How the rows of a batch are divided among the processes: the responses to one prompt stay together.

    Args:
        batch_size: rows of the whole batch.
        group_size: consecutive rows that are responses to one prompt.
    """

    def __init__(self, batch_size: int, group_size: int, world: World) -> None:
        groups = world.mine(batch_size // group_size)
        self.rows = (groups[:, None] * group_size + torch.arange(group_size)).flatten()
        self.batch_size, self.group_size = batch_size, group_size

    @property
    def share(self) -> Share:
        """This process's rows."""
        return Share(self.rows, self.batch_size)

    def of(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompt of each of this process's rows, from those of the whole batch, one per group."""
        return [prompts[row // self.group_size] for row in self.rows.tolist()]

    def mini_batches(self, count: int, generator: torch.Generator) -> Iterator[Tensor]:
        """This process's rows of each of `count` minibatches, as indices into its share: the whole batch in a
        random order, cut into equal parts."""
        order = torch.randperm(self.batch_size, generator=generator)
        for part in order.split(self.batch_size // count):
            yield torch.searchsorted(self.rows, part[torch.isin(part, self.rows)])
