"""The `sft` stage: supervised fine-tuning on demonstrations, with trl's SFTTrainer.

`Codec` encodes the demonstrations; the loss covers completions only or, with `assistant_only_loss`, every turn of
the assistant. Writes `adapter/`, or `model/` after a full fine-tune.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig as TrainerConfig  # type: ignore[attr-defined]
from trl import SFTTrainer  # type: ignore[attr-defined]

from pipeline.config.sft import SFT_TRAINER, SFTConfig
from pipeline.engine.stage import Artifact, Metrics, RunContext
from pipeline.errors import StageError
from stages.models.adapters import float32_trainables, new_adapter, trained_in_full
from stages.models.loading import load_backbone
from stages.models.text import IGNORED, load_codec
from stages.training.batches import TrlTrainer
from stages.training.conversations import check_conversations
from stages.training.demonstrations import encode_demonstrations
from stages.training.policy import save_policy
from stages.training.trainer import StageCallback, of_training, training_arguments
from stages.training.trainer import train as train_to_end


def run(config: SFTConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    base, data = inputs["base"], inputs["data"]
    codec = load_codec(base)
    every_turn = config.assistant_only_loss
    if every_turn and codec.no_turns:  # `base` of an earlier version did not check it
        raise StageError(
            "sft.assistant_only_loss needs to know where the assistant's turns of a conversation are, and the chat "
            f"template does not show it: {codec.no_turns}",
            where="base.chat_template",
            hint="set sft.assistant_only_loss to false, which trains on the last turn; or set base.chat_template "
            "to a template with {% generation %} markers around what the assistant writes",
        )
    with ctx.progress("checking prompts and answers") as bar:
        checked = check_conversations(data, codec, ctx.say, bar.advance, tables=("demonstrations",))
    with ctx.progress("reading demonstrations") as bar:
        read = partial(
            encode_demonstrations,
            data,
            codec,
            max_length=config.max_length,
            every_turn=every_turn,
            advance=bar.advance,
        )
        (rows, left_out), (held_out, unmeasured) = read("train"), read("eval")
    if not rows:
        raise left_out.error(ctx.describe, str(data.path), "add demonstrations")
    for counted in (left_out, unmeasured):
        counted.report(ctx.say)
    torch.manual_seed(ctx.seed)
    model: Any = load_backbone(base, ctx.device)
    if config.lora is None:
        trained_in_full(model, base, ctx.device)
    else:
        model = new_adapter(model, config.lora)
    values = SFT_TRAINER | config.trainer
    trainer: Any = DemonstrationTrainer(
        model=model,
        args=training_arguments(
            TrainerConfig,
            values,
            ctx,
            max_length=config.max_length,
            packing=config.packing,
            eval_packing=False,
            completion_only_loss=True,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=codec.tokenizer,
        callbacks=[StageCallback(ctx, "sft")],
    )
    float32_trainables(trainer.model)
    training_metrics = train_to_end(trainer, ctx, values, config.micro_batch_size, ctx.sharded)
    metrics: Metrics = {
        **training_metrics,
        **checked,
        "demonstrations": len(rows),
        **({"assistant_turns": sum(answers_in(row["labels"]) for row in rows)} if every_turn else {}),
        **left_out.metrics(),
        **unmeasured.metrics(),
        **of_training(trainer),
    }
    if held_out:
        metrics["eval_loss"] = trainer.evaluate()["eval_loss"]
    if trainer.world.rank == 0:
        save_policy(trainer.model, out_dir)
    return metrics


def answers_in(labels: Sequence[int]) -> int:
    """The number of answers that have labels."""
    return sum(before == IGNORED != label for before, label in pairwise([IGNORED, *labels]))


class DemonstrationTrainer(TrlTrainer, SFTTrainer):
    """trl's SFTTrainer, with steps that depend on neither micro-batch size nor number of processes."""
