"""What every stage that trains with a Hugging Face `Trainer` shares: arguments, progress, metrics, checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pipeline.engine.stage import Metrics, RunContext
from pipeline.errors import RecipeError, StageError
from pipeline.files import sync_below, write_atomic
from stages.models.microbatch import MicroBatch, Size
from stages.models.sharding import Shards
from stages.training.batches import GlobalBatchTrainer
from stages.training.distributed import World

Arguments = TypeVar("Arguments", bound=TrainingArguments)

COMPLETE = "complete.json"
"""Written last into a checkpoint folder, since the Trainer's own saves are not atomic: its files and their sizes,
and what the Trainer leaves out."""


def training_arguments(kind: type[Arguments], values: dict[str, Any], ctx: RunContext, **owned: Any) -> Arguments:
    """Builds `kind` from a recipe's `trainer:` values and what the runner owns. Raises `StageError`."""
    defaults: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 200,
        "logging_steps": 10,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
    }
    # trl turns checkpointing on by itself, under the name that transformers is about to drop.
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
        # An optimizer step is what the recipe says, however it is divided: see stages/training/batches.py.
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "average_tokens_across_devices": False,
        "save_total_limit": None,
    }
    try:
        made = kind(**(defaults | values | fixed | owned))
        if World().size == 1 and made.n_gpu > 1:
            made._n_gpu = 1  # or one process would spread each batch over every card that it sees (DataParallel)
        return made
    except (TypeError, ValueError) as error:
        raise StageError(
            f"the trainer refuses its values: {error}", hint="correct this stage's `trainer:`"
        ) from error


class StageCallback(TrainerCallback):
    """Feeds a Trainer's steps to the stage's progress and metrics."""

    def __init__(self, ctx: RunContext, name: str) -> None:
        self.ctx, self.name = ctx, name
        self._latest: dict[str, float] = {}

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


class _Checkpoints(TrainerCallback):
    """Marks a checkpoint complete once every process has written its part, and only then removes older ones."""

    def __init__(self, trainer: GlobalBatchTrainer, resumed: Path | None, keep: int) -> None:
        self.trainer, self.resumed, self.keep = trainer, resumed, keep

    def on_train_begin(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if self.resumed is not None:
            kept = _mark_of(self.resumed)["running"]  # of each process; there may have been fewer of them then
            self.trainer.load_running_state(kept[min(self.trainer.world.rank, len(kept) - 1)])

    def on_save(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        world = self.trainer.world
        running = world.together([self.trainer.running_state()], world.size)  # all have written when all are here
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
    """Trains to the end, from the newest complete checkpoint if there is one. Returns what was found on the way:
    the micro-batch, if it was to be.

    Args:
        values: the recipe's `trainer:` values.
        micro_batch_size: examples that go through the model at once; None: `per_device_train_batch_size`.
        sharded: whether the model, of which every process has the whole, is divided among them for the time.

    Raises `StageError` when the loss is not finite.
    """
    own = values.get("per_device_train_batch_size")
    trainer.micro = MicroBatch(own if micro_batch_size is None else micro_batch_size, "training", ctx.say)
    if trainer.world.rank == 0:
        for path in _checkpoints(ctx.state_dir):
            if not _is_complete(path):
                shutil.rmtree(path)
    trainer.world.wait()
    checkpoint = next(reversed(_checkpoints(ctx.state_dir)), None)
    # What was logged after the checkpoint, or before there was one, is about to be logged again.
    ctx.metrics.truncate(_step(checkpoint) if checkpoint else -1)
    if checkpoint is not None:
        ctx.say(f"resuming from step {_step(checkpoint)}")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Checkpoints(trainer, checkpoint, keep=values.get("save_total_limit") or 2))
    model: Any = trainer.model
    trainer.shards = Shards(model, device=ctx.device) if sharded else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.shards is not None:
        trainer.shards.release()
        trainer.shards = None
    loss = trainer.state.log_history[-1].get("train_loss", 0.0)
    if not torch.isfinite(torch.tensor(loss)):
        raise StageError(f"the training loss is {loss}", hint="lower trainer.learning_rate")
    whole = -(-trainer.args.per_device_train_batch_size // trainer.world.size)
    return {"micro_batch_size": trainer.micro.size or whole} if trainer.micro.auto else {}


def _checkpoints(folder: Path) -> list[Path]:
    """In the order of their steps."""
    return sorted(folder.glob("checkpoint-*"), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _complete(checkpoint: Path, running: list[dict[str, Any]]) -> None:
    sync_below(checkpoint)
    mark = {"files": _sizes(checkpoint), "running": running}
    write_atomic(checkpoint / COMPLETE, json.dumps(mark) + "\n")


def _is_complete(checkpoint: Path) -> bool:
    """Whether all that the mark names is there: a kill may come while a checkpoint is written, or removed."""
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
