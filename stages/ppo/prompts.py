"""Draws the prompts of each batch, and divides a batch's rows among processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from stages.models.distributed import World
from stages.sampling.sampler import Share

Prompt = TypeVar("Prompt")


class PromptQueue(Generic[Prompt]):
    """Yields prompts in a random order, reshuffled after each full pass.

    Args:
        generator: draws each permutation.
    """

    def __init__(self, prompts: Sequence[Prompt], generator: torch.Generator) -> None:
        self.prompts, self.generator = prompts, generator
        self.order, self.cursor = torch.arange(0), 0

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts."""
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
    """Divides the rows of a batch among the processes. The responses to a prompt may be on several processes.

    Args:
        batch_size: rows in the whole batch.
        group_size: responses per prompt, in consecutive rows.
    """

    def __init__(self, batch_size: int, group_size: int, world: World) -> None:
        self.rows = world.mine(batch_size)
        self.batch_size, self.group_size = batch_size, group_size

    @property
    def share(self) -> Share:
        """This process's rows."""
        return Share(self.rows, self.batch_size)

    def of(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompt of each of this process's rows. `prompts`: those of the whole batch, one per group."""
        return [prompts[row // self.group_size] for row in self.rows.tolist()]

    def mini_batches(self, count: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Shuffles the whole batch and splits it into `count` minibatches. Yields this process's rows of each, as
        indices into its share."""
        order = torch.randperm(self.batch_size, generator=generator)
        for part in order.split(self.batch_size // count):
            yield torch.searchsorted(self.rows, part[torch.isin(part, self.rows)])
