"""Shared by stages that train with a Hugging Face `Trainer`: arguments, progress, metrics, checkpoints."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pipeline.engine.stage import Metrics, Progress, RunContext
from pipeline.errors import RecipeError, StageError
from pipeline.files import sync_below, write_atomic
from stages.models.distributed import World
from stages.models.microbatch import MicroBatch, Size
from stages.models.sharding import mesh_of
from stages.training.batches import GlobalBatchTrainer

Arguments = TypeVar("Arguments", bound=TrainingArguments)

COMPLETE = "complete.json"
"""Written last into a checkpoint folder, because the Trainer's saves are not atomic. Holds the names and sizes of
the files, and state that the Trainer does not save."""


def training_arguments(kind: type[Arguments], values: dict[str, Any], ctx: RunContext, **owned: Any) -> Arguments:
    """Builds `kind` from a recipe's `trainer:` values and `owned`, the values that the stage sets.

    Raises `RecipeError` if the batch is smaller than the number of processes, and `StageError` for invalid values.
    """
    defaults: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 200,
        "logging_steps": 10,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
    }
    # trl enables activation checkpointing by default, under a name that transformers deprecates.
    checkpointing = values.get("activation_checkpointing", values.get("gradient_checkpointing", False))
    values = {name: value for name, value in values.items() if name != "gradient_checkpointing"}
    batch = values["per_device_train_batch_size"] * values.get("gradient_accumulation_steps", 1)
    if batch < World().size:
        raise RecipeError(
            f"{World().size} processes cannot share a batch of {batch}",
            where="per_device_train_batch_size",
            hint="start fewer processes, or enlarge the batch (and with it the learning rate)",
        )
    fixed: dict[str, Any] = {
        "activation_checkpointing": checkpointing,
        "output_dir": str(ctx.state_dir),
        "seed": ctx.seed,
        "data_seed": ctx.seed,
        "use_cpu": ctx.device == "cpu",
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "push_to_hub": False,
        "dataloader_pin_memory": ctx.device == "cuda",
        # A step covers the whole batch of the recipe; stages/training/batches.py divides it.
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "average_tokens_across_devices": False,
        "save_total_limit": None,
    }
    try:
        arguments = kind(**(defaults | values | fixed | owned))
        if World().size == 1 and arguments.n_gpu > 1:
            arguments._n_gpu = 1  # otherwise transformers would use DataParallel over all visible GPUs
        return arguments
    except (TypeError, ValueError) as error:
        raise StageError(f"invalid trainer values: {error}", hint="correct this stage's `trainer:`") from error


class StageCallback(TrainerCallback):
    """Reports a Trainer's steps to the stage's progress display and metrics log."""

    def __init__(self, ctx: RunContext, name: str) -> None:
        self.ctx, self.name = ctx, name
        self._latest: dict[str, float] = {}
        self._evaluation: AbstractContextManager[Progress] | None = None

    def on_train_begin(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        self._display = self.ctx.progress(self.name, total=state.max_steps, done=state.global_step)
        self._bar = self._display.__enter__()

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        self._bar.advance(1, **self._latest)

    def on_log(self, args, state, control, logs=None, **_):  # type: ignore[no-untyped-def]
        numbers = {key: value for key, value in logs.items() if isinstance(value, int | float)}
        if "train_runtime" in numbers:
            return
        self._latest = {key: numbers[key] for key in ("loss", "accuracy") if key in numbers}
        self.ctx.metrics.log(state.global_step, **numbers)

    def on_train_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        self._display.__exit__(None, None, None)

    def on_prediction_step(self, args, state, control, **values):  # type: ignore[no-untyped-def]
        if self._evaluation is None:
            batches = len(values["eval_dataloader"])
            self._evaluation = self.ctx.progress(f"{self.name}: held-out loss", total=batches)
            self._evaluation_bar = self._evaluation.__enter__()
        self._evaluation_bar.advance()

    def on_evaluate(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if self._evaluation is not None:
            self._evaluation.__exit__(None, None, None)
            self._evaluation = None


class _Checkpoints(TrainerCallback):
    """Marks a checkpoint complete after every process has written its part, and then removes older ones."""

    def __init__(self, trainer: GlobalBatchTrainer, resumed: Path | None, keep: int) -> None:
        self.trainer, self.resumed, self.keep = trainer, resumed, keep

    def on_train_begin(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if self.resumed is not None:
            states = _mark_of(self.resumed)["running"]  # one per process; their number may have changed since
            self.trainer.load_running_state(states[min(self.trainer.world.rank, len(states) - 1)])

    def on_save(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        world = self.trainer.world
        # Also a barrier: all processes have written their parts.
        running = world.together([self.trainer.running_state()], world.size)
        if world.rank == 0:
            folder = Path(args.output_dir)
            _complete(folder / f"checkpoint-{state.global_step}", running)
            best = state.best_model_checkpoint and Path(state.best_model_checkpoint).name
            for path in _checkpoints(folder)[: -self.keep]:
                if path.name != best:
                    shutil.rmtree(path)


def train(
    trainer: GlobalBatchTrainer,
    ctx: RunContext,
    values: dict[str, Any],
    micro_batch_size: Size = None,
    sharded: bool = False,
) -> Metrics:
    """Trains to the end, from the newest complete checkpoint if there is one. Returns metrics: the micro-batch size
    if it was `auto`.

    Args:
        values: the recipe's `trainer:` values.
        micro_batch_size: examples per forward pass; None: `per_device_train_batch_size`.
        sharded: whether to shard the model, which every process holds in full, during training.

    Raises `StageError` if the loss is not finite.
    """
    default = values.get("per_device_train_batch_size")
    trainer.micro = MicroBatch(default if micro_batch_size is None else micro_batch_size, "training", ctx.say)
    if trainer.world.rank == 0:
        for path in _checkpoints(ctx.state_dir):
            if not _is_complete(path):
                shutil.rmtree(path)
    trainer.world.wait()
    checkpoint = next(reversed(_checkpoints(ctx.state_dir)), None)
    # Steps after the checkpoint are repeated and logged again.
    ctx.metrics.truncate(_step(checkpoint) if checkpoint else -1)
    if checkpoint is not None:
        ctx.say(f"resuming from step {_step(checkpoint)}")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Checkpoints(trainer, checkpoint, keep=values.get("save_total_limit") or 2))
    with trainer.sharded(mesh_of(ctx.device), checkpoint, offload=ctx.offload) if sharded else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    loss = trainer.state.log_history[-1].get("train_loss", 0.0)
    if not torch.isfinite(torch.tensor(loss)):
        raise StageError(f"the training loss is {loss}", hint="lower trainer.learning_rate")
    process_share = -(-trainer.args.per_device_train_batch_size // trainer.world.size)
    return {"micro_batch_size": trainer.micro.size or process_share} if trainer.micro.auto else {}


def of_training(trainer: GlobalBatchTrainer) -> Metrics:
    """The mean loss of a finished training, and the number of trained parameters."""
    model: Any = trainer.model
    return {
        "train_loss": trainer.state.log_history[-1]["train_loss"],
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders, in the order of their steps."""
    return sorted(folder.glob("checkpoint-*"), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _complete(checkpoint: Path, running: list[dict[str, Any]]) -> None:
    sync_below(checkpoint)
    mark = {"files": _sizes(checkpoint), "running": running}
    write_atomic(checkpoint / COMPLETE, json.dumps(mark) + "\n")


def _is_complete(checkpoint: Path) -> bool:
    """Whether all files are there with their sizes. A kill may interrupt the writing or removal of a checkpoint."""
    try:
        return bool(_mark_of(checkpoint)["files"] == _sizes(checkpoint))
    except FileNotFoundError:
        return False


def _mark_of(checkpoint: Path) -> dict[str, Any]:
    mark: dict[str, Any] = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    return mark


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != COMPLETE)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
