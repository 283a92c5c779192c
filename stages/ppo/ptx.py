"""PPO-ptx: adds a language-modelling loss on demonstrations to PPO (Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.models.actor import Actor
from stages.models.text import IGNORED

LanguageModelBatch = tuple[Tensor, Tensor]
"""Ids and labels (B, L), right-padded; positions with the label `IGNORED` are not in the loss."""

Demonstrations = Callable[[torch.Generator], LanguageModelBatch]
"""Draws a batch, the same one on every process."""


@dataclass(frozen=True)
class PtxBatch:
    """A batch on the device, split into micro-batches.

    Attributes:
        parts: per micro-batch the ids (b, L), the indices of the predicting positions in the flattened (b, L), and
            their targets.
        count: number of tokens in the loss.
    """

    parts: list[tuple[Tensor, Tensor, Tensor]]
    count: int
    device: str

    @classmethod
    def of(cls, batch: LanguageModelBatch, size: int | None, device: str) -> PtxBatch:
        """Splits a batch into micro-batches of `size` rows; None: a single one."""
        ids_BL, labels_BL = batch[0][:, :-1], batch[1][:, 1:]
        size, keep_BL = size or len(ids_BL), labels_BL != IGNORED
        places = [part.flatten().nonzero()[:, 0] for part in keep_BL.split(size)]
        counts = [len(part) for part in places]
        # Indices are computed on the host and copied up front, so that no micro-batch synchronises with the device.
        tensors = ids_BL, torch.cat(places), labels_BL[keep_BL]
        ids, where, targets = (tensor.to(device) for tensor in tensors)
        parts = list(zip(ids.split(size), where.split(counts), targets.split(counts), strict=True))
        return cls(parts, max(1, int(keep_BL.sum())), device)

    def __len__(self) -> int:
        return len(self.parts)

    def backward(
        self, actor: Actor, backward: Callable[[Tensor], None], passes: int, chunk_size: int | None
    ) -> Tensor:
        """Backpropagates the mean negative log-likelihood per token, in nats, and returns it, detached.

        Args:
            backward: called with each micro-batch's share of the loss.
            passes: at least the number of micro-batches; extra passes repeat the last one with weight zero.
        """
        total = torch.zeros((), device=self.device)
        for number in range(passes):
            (ids, where, targets), weight = self.parts[min(number, len(self) - 1)], float(number < len(self))
            logps, _ = actor.logprobs(
                actor.hidden(ids).flatten(0, 1).index_select(0, where),
                targets,
                temperature=1.0,
                chunk_size=chunk_size,
                entropy=False,
            )
            loss = -logps.sum() * (weight / self.count)
            backward(loss)
            total += loss.detach()
        return total
