"""PPO-ptx: the language-modelling loss on demonstrations beside PPO's (Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.models.actor import Actor
from stages.models.text import IGNORED

LanguageModelBatch = tuple[Tensor, Tensor]
"""Ids and labels (B, L), right-padded; labels of `IGNORED` are left out."""

Demonstrations = Callable[[torch.Generator], LanguageModelBatch]
"""Draws a batch. Every process draws the same one."""


@dataclass(frozen=True)
class PtxBatch:
    """A batch in micro-batches, on the device.

    Attributes:
        parts: of each micro-batch the ids (b, L), the places of the predicting positions in the flattened (b, L),
            and their targets.
        count: tokens in the loss.
    """

    parts: list[tuple[Tensor, Tensor, Tensor]]
    count: int
    device: str

    @classmethod
    def of(cls, batch: LanguageModelBatch, size: int | None, device: str) -> PtxBatch:
        """In micro-batches of `size` rows; None: one."""
        ids_BL, labels_BL = batch[0][:, :-1], batch[1][:, 1:]
        size, keep_BL = size or len(ids_BL), labels_BL != IGNORED
        places = [part.flatten().nonzero()[:, 0] for part in keep_BL.split(size)]
        counts = [len(part) for part in places]
        # Found on the host and copied before the first pass: no micro-batch makes the host wait.
        tensors = ids_BL, torch.cat(places), labels_BL[keep_BL]
        ids, where, targets = (tensor.to(device) for tensor in tensors)
        parts = list(zip(ids.split(size), where.split(counts), targets.split(counts), strict=True))
        return cls(parts, max(1, int(keep_BL.sum())), device)

    def __len__(self) -> int:
        return len(self.parts)

    def backward(
        self, actor: Actor, backward: Callable[[Tensor], None], passes: int, chunk_size: int | None
    ) -> Tensor:
        """Backward of the mean negative log-likelihood per token; returns it, detached.

        Args:
            backward: called with each micro-batch's share of the loss.
            passes: at least the number of micro-batches; more repeat the last one with weight zero.
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
