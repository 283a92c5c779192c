"""What every stage that trains with a Hugging Face `Trainer` shares: arguments, progress, metrics, checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from pipeline.errors import StageError
from pipeline.stage import RunContext

Arguments = TypeVar("Arguments", bound=TrainingArguments)

COMPLETE = "complete"
"""Written last into a checkpoint folder: the Trainer's own saves are not atomic."""


def training_arguments(kind: type[Arguments], values: dict[str, Any], ctx: RunContext, **owned: Any) -> Arguments:
    """Builds `kind` from a recipe's `trainer:` values and what the runner owns. Raises `StageError`."""
    defaults: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 200,
        "save_total_limit": 2,
        "logging_steps": 10,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
    }
    # trl turns checkpointing on by itself, under the name that transformers is about to drop.
    checkpointing = values.get("activation_checkpointing", values.get("gradient_checkpointing", False))
    values = {name: value for name, value in values.items() if name != "gradient_checkpointing"}
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
    }
    try:
        return kind(**(defaults | values | fixed | owned))
    except (TypeError, ValueError) as error:
        raise StageError(
            f"the trainer refuses its values: {error}", mend="correct this stage's `trainer:`"
        ) from error


class StageCallback(TrainerCallback):
    """Feeds a Trainer's steps to the stage's progress and metrics, and marks its checkpoints complete."""

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

    def on_save(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    def on_train_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        self._display.__exit__(None, None, None)


def train(trainer: Trainer, ctx: RunContext) -> None:
    """Trains to the end, from the newest complete checkpoint if there is one. Raises `StageError` on NaN."""
    checkpoint = _latest_checkpoint(ctx.state_dir)
    if checkpoint is not None:
        step = int(checkpoint.name.rpartition("-")[2])
        ctx.say(f"resuming from step {step}")
        ctx.metrics.truncate(step)
    trainer.remove_callback(_printer())
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    loss = trainer.state.log_history[-1].get("train_loss", 0.0)
    if not torch.isfinite(torch.tensor(loss)):
        raise StageError(f"the training loss is {loss}", mend="lower trainer.learning_rate")


def _latest_checkpoint(folder: Path) -> Path | None:
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in found:
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)
    complete = [path for path in found if path.exists()]
    return complete[-1] if complete else None


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
