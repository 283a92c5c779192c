"""Trains a reward model on groups of rankings: objectives, the Trainer, and the accuracy curve on held-out
rankings."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from pipeline.config.reward import REWARD_TRAINER, RewardConfig
from pipeline.engine.stage import Metrics, MetricsLog, RunContext
from stages.models.distributed import World
from stages.models.microbatch import MicroBatch
from stages.models.precision import Deviation, exact
from stages.reward import likelihoods
from stages.reward.groups import Group, Order, as_pairs, collate, mean_gap, merits_of, orders_of, tie_share
from stages.reward.packing import pack
from stages.scoring.reward_model import RewardModel, ScoringModule, check_finite
from stages.training.batches import GlobalBatchTrainer
from stages.training.trainer import StageCallback, training_arguments
from stages.training.trainer import train as train_to_end

Objective = Callable[[Tensor, Order], Tensor]
"""Maps the scores (K,) of an order's completions to its loss."""

COMPARED = 8
"""Prompts on which packed and plain scores are compared before rows are packed."""
CURVE_PROMPTS = 128
"""Held-out prompts whose accuracy is logged during training."""


def objective_of(config: RewardConfig, groups: Sequence[Group]) -> Objective:
    """The loss of a ranking by `reward.objective`. It closes over statistics of all training rankings: the share of
    ties (Davidson), the mean merit gap (margins)."""
    if config.objective == "plackett_luce":
        return lambda scores, order: likelihoods.plackett_luce(scores, _ranks(scores, order))
    if config.objective == "davidson":
        share = tie_share(groups)
        nu = likelihoods.davidson_nu(min(max(share, 1e-3), 1 - 1e-3))
        return lambda scores, order: likelihoods.davidson(scores, _ranks(scores, order), math.log(nu))
    if config.objective == "regression":
        return partial(_regression, merits=config.merits)
    scale = config.margin / mean_gap(groups, config.merits) if config.margin else 0.0
    return partial(_bradley_terry, merits=config.merits, scale=scale)


def _ranks(scores: Tensor, order: Order) -> Tensor:
    return torch.tensor(order.ranks, device=scores.device)


def _bradley_terry(scores: Tensor, order: Order, *, merits: str, scale: float) -> Tensor:
    if not scale:
        return likelihoods.bradley_terry(scores, _ranks(scores, order))
    worth = scale * torch.tensor(merits_of(order, merits), device=scores.device, dtype=scores.dtype)
    return likelihoods.bradley_terry(scores, _ranks(scores, order), worth[:, None] - worth[None, :])


def _regression(scores: Tensor, order: Order, *, merits: str) -> Tensor:
    if merits == "ranks":
        targets = likelihoods.borda_targets(_ranks(scores, order))
    else:
        targets = likelihoods.rating_targets(torch.tensor(merits_of(order, merits), device=scores.device))
    return likelihoods.regression(scores, targets)


def ranking_loss(scores: Tensor, orders: Sequence[Order], objective: Objective) -> tuple[Tensor, Tensor]:
    """Mean weighted loss over rankings, and the share of strict pairs that the scores order correctly.

    Computed on the CPU: a ranking has few scores, and each would synchronise with the device.
    """
    scores, losses, correct = scores.cpu(), [], []
    for order in orders:
        chosen, ranks = scores[order.rows], _ranks(scores, order)
        losses.append(order.weight * objective(chosen, order))
        correct.append((chosen[:, None] > chosen[None, :])[ranks[:, None] < ranks[None, :]])
    return torch.stack(losses).mean(), torch.cat(correct).float().mean()


def train(
    model: ScoringModule,
    config: RewardConfig,
    trainer_values: Mapping[str, Any],
    groups: list[Group],
    held_out: Sequence[Group],
    pad_id: int,
    ctx: RunContext,
    *,
    name: str,
) -> tuple[int, Metrics]:
    """Trains in place, from the newest checkpoint if there is one. Returns the number of steps and, as metrics, the
    micro-batch size if it was `auto`."""
    objective = objective_of(config, groups)
    if config.bootstrap:
        generator = torch.Generator().manual_seed(ctx.seed)
        drawn = torch.randint(len(groups), (len(groups),), generator=generator)
        groups = [groups[int(i)] for i in drawn]
    if config.objective == "bradley_terry_pairs":
        groups = list(as_pairs(groups))
    packs = config.pack_tokens and can_pack(model, groups[:COMPARED], pad_id, ctx)

    def collator(batch: Sequence[Group]) -> dict[str, Any]:
        if packs:
            return {"rows": pack(batch, pad_id, config.pack_tokens), **orders_of(batch)}
        return collate(batch, pad_id)

    values = REWARD_TRAINER | dict(trainer_values)
    trainer = RankingTrainer(
        model=model,
        args=training_arguments(TrainingArguments, values, ctx, remove_unused_columns=False),
        train_dataset=groups,
        data_collator=collator,
        callbacks=[StageCallback(ctx, name), HeldOutCurve(ctx, config, held_out[:CURVE_PROMPTS], collator, name)],
    )
    trainer.objective, trainer.center = objective, config.center_rewards_coefficient
    sharded = ctx.sharded and isinstance(model, RewardModel)
    metrics = train_to_end(trainer, ctx, values, config.micro_batch_size, sharded)
    return int(trainer.state.global_step), metrics


@torch.no_grad()
def can_pack(model: ScoringModule, groups: Sequence[Group], pad_id: int, ctx: RunContext) -> bool:
    """Whether the head reads the same hidden states from packed rows as from plain rows, up to rounding
    (`stages.models.precision`). False for encoders, and for attention that ignores the mask or depends on more than
    positions and masks.

    Scores would not do: those of an untrained head differ so little between completions that 16-bit rounding alone
    exceeds the tolerance."""
    if not isinstance(model, RewardModel):
        return False
    was_training = model.training
    model.eval()

    def states(rows: Mapping[str, Tensor]) -> Tensor:
        return model.last_states(**_on(ctx.device, rows)).cpu()

    try:
        expected = torch.cat([states(collate([group], pad_id)["rows"]) for group in groups])
        packed = torch.cat([states(pack([group], pad_id, 10**9)) for group in groups])
        strict = ctx.device == "cpu" and exact(model)
        same = Deviation.between(packed, expected).is_rounding(strict, max(1.0, float(expected.abs().max())))
    except (RuntimeError, TypeError, ValueError):
        same = False
    model.train(was_training)
    if not same:
        ctx.say("rows cannot be packed for this model: the prompt is computed again for each completion")
    return same


def _on(device: str, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in rows.items()}


class RankingTrainer(GlobalBatchTrainer):
    """A Trainer with a ranking loss, which also logs training accuracy."""

    objective: Objective
    center: float
    loss_is_scaled_for_ga = True

    def idle(self, model: Any) -> Tensor:
        ids = torch.zeros((1, 2), dtype=torch.long, device=self.args.device)
        scores: Tensor = model(ids, torch.tensor([2], device=self.args.device))
        return scores

    def length(self, example: Group) -> int:
        return sum(map(len, example.rows))

    def count(self, examples: list[Group]) -> Tensor:
        """The numbers of rankings and prompts, which the two loss terms are averaged over."""
        return torch.tensor([sum(len(group.orders) for group in examples), len(examples)])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        scores = model(**inputs["rows"]).cpu()
        loss, accuracy = ranking_loss(scores, inputs["orders"], self.objective)
        local = (len(inputs["orders"]), len(inputs["spans"]))
        rankings, prompts = local if num_items_in_batch is None else num_items_in_batch.tolist()
        loss = loss * (local[0] / rankings)
        if self.center:
            means = [likelihoods.centering(scores[start:end]) for start, end in inputs["spans"]]
            loss = loss + self.center * torch.stack(means).sum() / prompts
        if not accuracy.isnan():  # NaN without a strict pair
            self._accuracies = [*getattr(self, "_accuracies", []), float(accuracy)]
        return (loss, scores) if return_outputs else loss

    def log(self, logs, *args, **kwargs):  # type: ignore[no-untyped-def]
        if "loss" in logs:
            accuracies = getattr(self, "_accuracies", [])
            total, count = self.world.sum(
                torch.tensor([sum(accuracies), len(accuracies)], dtype=torch.double)
            ).tolist()
            if count:
                logs["accuracy"] = total / count
            self._accuracies = []
        super().log(logs, *args, **kwargs)

    def running_state(self) -> dict[str, Any]:
        return super().running_state() | {"accuracies": getattr(self, "_accuracies", [])}

    def load_running_state(self, state: dict[str, Any]) -> None:
        super().load_running_state(state)
        self._accuracies = state["accuracies"]


class HeldOutCurve(TrainerCallback):
    """Logs the accuracy on held-out rankings at `reward.eval_points` evenly spaced steps, the last one included.

    Args:
        collator: that of the training batches, whose `rows` are the model's inputs.
        name: of the training phase, for the progress display.
    """

    def __init__(
        self,
        ctx: RunContext,
        config: RewardConfig,
        groups: Sequence[Group],
        collator: Callable[[Sequence[Group]], Mapping[str, Any]],
        name: str,
    ) -> None:
        self.ctx, self.config, self.collator, self.name = ctx, config, collator, name
        self.groups = sorted(groups, key=lambda group: max(map(len, group.rows)))  # similar lengths, little padding

    def on_step_end(self, args, state, control, model=None, **_):  # type: ignore[no-untyped-def]
        points = self.config.eval_points
        due = {round(state.max_steps * (i + 1) / points) for i in range(points)}
        if self.groups and state.global_step in due:
            was_training = model.training
            model.eval()
            accuracy = self._accuracy(model)
            model.train(was_training)
            if not math.isnan(accuracy):
                self.ctx.metrics.log(state.global_step, eval_accuracy=accuracy)

    @torch.no_grad()
    def _accuracy(self, model: ScoringModule) -> float:
        """The share of strict pairs that the scores order correctly; NaN without a strict pair."""
        scores: list[Tensor] = []
        most = max(len(group.rows) for group in self.groups)
        size = MicroBatch.of(max(1, self.config.eval_batch_size // most))
        with self.ctx.progress(f"{self.name}: held-out rankings", total=len(self.groups)) as bar:

            def score(part: range) -> None:
                rows = self.collator(self.groups[part.start : part.stop])["rows"]
                scores.append(model(**_on(self.ctx.device, rows)).cpu())
                bar.advance(len(part))

            size.each(range(len(self.groups)), score)
        scores_N = torch.cat(scores)
        check_finite(scores_N)
        return float(ranking_loss(scores_N, orders_of(self.groups)["orders"], lambda s, _: s.sum())[1])


def run_phase(
    model: ScoringModule,
    fit: Callable[[RunContext], tuple[int, Metrics]],
    ctx: RunContext,
    name: str,
    *,
    seed: int,
    offset: int,
) -> tuple[int, Metrics]:
    """Runs one training phase of the stage, with its own seed, state folder and metric names.

    Its steps are logged after the `offset` steps of the earlier phases. The result is saved in the state folder, so
    that a resumed stage loads it instead of training again. Returns the result of `fit`.
    """
    folder = ctx.state_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    phase = replace(ctx, seed=seed, state_dir=folder, metrics=ShiftedMetrics(ctx.metrics, name, offset))
    finished = folder / "finished.pt"
    if finished.exists():
        result = torch.load(finished, map_location=ctx.device, weights_only=True)
        model.load_state_dict(result["model"])
        return int(result["steps"]), result["found"]
    steps, metrics = fit(phase)
    if World().rank == 0:
        temporary = finished.with_suffix(".tmp")
        torch.save({"model": model.state_dict(), "steps": steps, "found": metrics}, temporary)
        os.replace(temporary, finished)
    return steps, metrics


class ShiftedMetrics(MetricsLog):
    """Logs a phase's metrics as `phase/loss`, at steps that continue those of the previous phase."""

    def __init__(self, log: MetricsLog, name: str, offset: int) -> None:
        self._log, self._prefix, self._offset = log, f"{name}/" if name else "", offset

    def log(self, step: int, **values: Any) -> None:
        self._log.log(step + self._offset, **{f"{self._prefix}{name}": value for name, value in values.items()})

    def truncate(self, step: int) -> None:
        # Step 0 of this phase is the last step of the previous phase, whose metrics stay.
        self._log.truncate(max(step, 0) + self._offset if self._offset else step)
