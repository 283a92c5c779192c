"""A Hugging Face `Trainer` that can train a sharded copy of its model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from stages.models import checkpoint
from stages.models.sharding import Mesh, Twin, load_optimizer, sharded_parameters

STATE = "sharded.pt"
"""The file in a checkpoint folder that replaces transformers' files for model, optimizer and scheduler."""


class ShardedTrainer(Trainer):
    """A Trainer whose model may be sharded.

    Attributes:
        mesh: the processes that share the model; None if it is not sharded.
    """

    mesh: Mesh | None = None

    @contextlib.contextmanager
    def sharded(self, mesh: Mesh, resumed: Path | None, *, offload: bool = False) -> Iterator[None]:
        """Replaces the model by a sharded copy for the duration of the context.

        Args:
            resumed: the checkpoint folder that training will resume from.
        """
        original: Any = self.model
        if resumed is not None:
            self._load_from_checkpoint(str(resumed))
        twin = Twin(original, mesh, offload=offload)
        self.model = self.model_wrapped = twin.module
        self.mesh = mesh
        yield
        twin.restore()
        self.model = self.model_wrapped = original
        self.mesh = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.mesh is None:
            super().save_model(output_dir, _internal_call)
            return
        folder, trainer = Path(output_dir or str(self.args.output_dir)), _of(self)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {n: p.detach() for n, p in sharded_parameters(trainer.model).items() if p.requires_grad}
        state = {"model": weights, "optimizer": trainer.optimizer.state_dict()}
        checkpoint.save(folder / STATE, state | {"scheduler": trainer.lr_scheduler.state_dict()})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.mesh is None:  # otherwise `save_model` has saved them
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # A sharded model gets its parts below. A whole checkpoint was loaded before it was sharded.
        if self.mesh is None and not Path(resume_from_checkpoint, STATE).exists():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        folder, trainer = Path(checkpoint_folder or ""), _of(self)
        if checkpoint_folder is not None and (folder / STATE).exists():
            state = checkpoint.load(folder / STATE, self.mesh)
            parameters = sharded_parameters(trainer.model)
            with torch.no_grad():
                for name, tensor in state["model"].items():
                    parameters[name].copy_(tensor)
        elif checkpoint_folder is not None and self.mesh is not None:
            # transformers would load the whole state onto every GPU.
            whole = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
            state = {"optimizer": whole, "scheduler": torch.load(folder / SCHEDULER_NAME, weights_only=True)}
        else:
            super()._load_optimizer_and_scheduler(checkpoint_folder)
            return
        load_optimizer(trainer.optimizer, state["optimizer"])
        trainer.lr_scheduler.load_state_dict(state["scheduler"])


def _of(trainer: Trainer) -> Any:
    """The trainer during training, when it has a model, an optimizer and a scheduler."""
    return trainer
