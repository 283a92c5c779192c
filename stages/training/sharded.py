"""A Hugging Face `Trainer` for a model sharded over processes: passes are synchronised, and checkpoints hold
unsharded tensors."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from stages.models.sharding import Shards, whole_states


class ShardedTrainer(Trainer):
    """A Trainer whose model may be sharded.

    Attributes:
        shards: the model's shards; None if it is not sharded. Must be set before training and released after it.
    """

    shards: Shards | None = None

    def idle(self, model: Any) -> Tensor:
        """A dummy forward pass through all trainable weights, for a process that has run out of examples."""
        output: Tensor = model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=self.args.device)).logits
        return output

    def pass_idly(self, model: Any, times: int) -> None:
        """Runs passes with zero gradients, which the collectives in other processes' passes need."""
        model.train()
        for _ in range(times):
            output = self.idle(model)
            output.backward(torch.zeros_like(output))

    def _whole(self, *, changes: bool = False) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.shards is None else self.shards.whole(changes=changes)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        assert self.optimizer is not None
        whole_states(self.optimizer)
        return optimizer

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        with self._whole():
            super().save_model(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.shards is not None and not self.args.should_save:
            assert self.optimizer is not None
            self.optimizer.state_dict()  # a collective: rank 0 gathers and writes the full state
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.shards is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # transformers would load the full state onto every GPU.
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        folder = Path(checkpoint)
        state = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._whole(changes=True):
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_best_model(self) -> None:
        with self._whole(changes=True):
            super()._load_best_model()
