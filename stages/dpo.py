"""The `dpo` stage: direct preference optimisation on the rankings, with trl's DPOTrainer. A baseline for PPO.

1. Extract and encode the strict pairs of the training rankings.
2. Compute the log-prob of each distinct answer under the reference, the SFT model, once.
3. Train from the SFT model: its adapter, or all weights if SFT trained all weights. Without an SFT stage the base
   model takes its place, with a new adapter or all weights (`dpo.lora`).
4. Evaluate the implicit reward, beta log(policy / reference), on held-out pairs.

Writes `adapter/`, or `model/` after a full fine-tune.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig as TrainerConfig  # type: ignore[attr-defined]
from trl import DPOTrainer  # type: ignore[attr-defined]
from trl.trainer.dpo_trainer import DataCollatorForPreference

from data.bootstrap import share
from data.schema import Ranking, Split, read_rankings_file
from pipeline.config.dpo import DPO_TRAINER, DPOConfig
from pipeline.engine.rounds import by_round
from pipeline.engine.stage import Artifact, Metrics, RunContext
from stages.artifacts import learned_file
from stages.criteria import of_criterion
from stages.left_out import of_split
from stages.models.actor import Actor
from stages.models.adapters import causal_lm, load_actor
from stages.models.microbatch import MicroBatch
from stages.models.text import Codec, load_codec
from stages.reward.groups import Order, TokenEncoder, group_rankings
from stages.reward.left_out import NO_STRICT_PAIR, RankingsLeftOut
from stages.sampling.episodes import response_logprobs
from stages.training.batches import TrlTrainer
from stages.training.policy import restore, save_policy, trainable_policy, trainables
from stages.training.trainer import StageCallback, of_training, training_arguments
from stages.training.trainer import train as train_to_end


@dataclass(frozen=True)
class Pair:
    """Ids of a prompt and two answers to it, the answers' log-probs under the reference, nats, and the weight of
    the ranking in the loss; the mean over all rankings is 1."""

    key: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0
    weight: float = 1.0


def run(config: DPOConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    base, sft = inputs["base"], inputs.get("sft")
    codec = load_codec(base)
    # 1.
    with ctx.progress("reading rankings") as bar:
        pairs, left_out = read_pairs(inputs, codec, config, "train", bar.advance)
        held_out, unmeasured = read_pairs(inputs, codec, config, "eval", bar.advance)
    if not pairs:
        raise left_out.error(ctx.describe, str(inputs["data"].path), NO_STRICT_PAIR)
    for counted in (left_out, unmeasured):
        counted.report(ctx.say)
    # 2.
    reference = load_actor(base, sft, ctx.device)
    scoring = MicroBatch(config.precompute_ref_batch_size, "dpo", ctx.say)
    with ctx.progress("dpo reference", total=len(distinct(pairs)) + len(distinct(held_out))) as bar:
        pairs = with_reference(pairs, reference, codec, scoring, bar.advance)
        held_out = with_reference(held_out, reference, codec, scoring, bar.advance)
    del reference
    # 3.
    torch.manual_seed(ctx.seed)
    model = trainable_policy(base, sft, config.lora, ctx.device)
    start = trainables(model)
    values = DPO_TRAINER | config.trainer
    trainer: Any = PreferenceTrainer(
        model=model,
        args=training_arguments(
            TrainerConfig,
            values,
            ctx,
            beta=config.beta,
            max_length=None,
            precompute_ref_log_probs=True,
        ),
        train_dataset=as_dataset(pairs),
        data_collator=Collator(codec.pad_id),
        processing_class=codec.tokenizer,
        callbacks=[StageCallback(ctx, "dpo")],
    )
    trainer.weighted = len({pair.weight for pair in pairs}) > 1
    restore(trainer.model, start)
    training_metrics = train_to_end(trainer, ctx, values, config.micro_batch_size, ctx.sharded)
    metrics: Metrics = {
        **training_metrics,
        "pairs": len(pairs),
        **left_out.metrics(),
        **unmeasured.metrics(),
        "prompts": len({pair.key for pair in pairs}),
        **of_training(trainer),
    }
    # 4.
    if held_out:
        with ctx.progress("dpo: held-out pairs", total=2 * len(held_out)) as bar:
            policy = Actor(causal_lm(trainer.model).eval())
            metrics |= measure(held_out, policy, codec, config.beta, scoring, bar.advance)
    if trainer.world.rank == 0:
        save_policy(trainer.model, out_dir)
    return metrics


def read_pairs(
    inputs: Mapping[str, Artifact],
    codec: Codec,
    config: DPOConfig,
    split: Split,
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[Pair], RankingsLeftOut]:
    """The strict pairs of a split's rankings, of all rounds, and counts of the rankings left out. `advance` is
    called for each ranking."""

    def rankings() -> Iterator[Ranking]:
        for artifact in by_round(inputs, "rank").values():
            ranked = of_criterion(artifact, config.criterion, "dpo.criterion")
            for ranking in read_rankings_file(learned_file(ranked)):
                if ranking.split == split:
                    yield ranking
                    advance()

    groups, left_out = group_rankings(
        rankings(), TokenEncoder(codec), config.max_length, prefix=of_split(split), limit_key="dpo.max_length"
    )
    pairs = []
    for key, group in groups.items():
        answers = [row[group.prompt_length :] for row in group.rows]
        for order in group.orders:
            for better, worse in strict_pairs(order, config.pairs):
                prompt = group.rows[better][: group.prompt_length]
                pairs.append(Pair(key, prompt, answers[better], answers[worse], weight=order.weight))
    return pairs, left_out


def strict_pairs(order: Order, which: str) -> Iterator[tuple[int, int]]:
    """Yields (better, worse) rows of an order, by `which`: `all` strict pairs, or the best and worst answer
    (`extremes`), none if all are tied."""
    places = range(len(order.rows))
    if which == "extremes":
        best, worst = min(places, key=order.ranks.__getitem__), max(places, key=order.ranks.__getitem__)
        if order.ranks[best] < order.ranks[worst]:
            yield order.rows[best], order.rows[worst]
        return
    for i in places:
        for j in places:
            if order.ranks[i] < order.ranks[j]:
                yield order.rows[i], order.rows[j]


def distinct(pairs: Sequence[Pair]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each (prompt, answer) of the pairs once."""
    return sorted(
        {(tuple(pair.prompt), tuple(answer)) for pair in pairs for answer in (pair.chosen, pair.rejected)}
    )


def with_reference(
    pairs: Sequence[Pair],
    reference: Actor,
    codec: Codec,
    micro: MicroBatch,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Pair]:
    """Adds the reference's log-probs to the pairs. Each distinct answer is scored once."""
    rows = distinct(pairs)
    logps = dict(zip(rows, _logps(rows, reference, codec, micro, on_batch).tolist(), strict=True))
    return [
        replace(
            pair,
            ref_chosen=logps[tuple(pair.prompt), tuple(pair.chosen)],
            ref_rejected=logps[tuple(pair.prompt), tuple(pair.rejected)],
        )
        for pair in pairs
    ]


def _logps(
    rows: Iterable[tuple[Sequence[int], Sequence[int]]],
    actor: Actor,
    codec: Codec,
    micro: MicroBatch,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Tensor:
    prompts, answers = [list(row[0]) for row in rows], [list(row[1]) for row in rows]
    totals_B, _ = response_logprobs(
        actor,
        prompts,
        answers,
        codec.stop_ids,
        codec.pad_id,
        temperature=1.0,
        batch_size=micro,
        on_batch=on_batch,
    )
    return totals_B


def as_dataset(pairs: Sequence[Pair]) -> Dataset:
    """A dataset with the columns of trl's collator."""
    return Dataset.from_list(
        [
            {
                "prompt_ids": pair.prompt,
                "chosen_ids": pair.chosen,
                "rejected_ids": pair.rejected,
                "ref_chosen_logps": pair.ref_chosen,
                "ref_rejected_logps": pair.ref_rejected,
                "weight": pair.weight,
            }
            for pair in pairs
        ]
    )


def measure(
    pairs: Sequence[Pair],
    actor: Actor,
    codec: Codec,
    beta: float,
    micro: MicroBatch,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Metrics:
    """Loss and accuracy of the implicit reward on held-out pairs, with a bootstrap interval over prompts as for the
    reward model."""
    policy_logps = [
        _logps(
            [(pair.prompt, answer) for pair, answer in zip(pairs, answers, strict=True)],
            actor,
            codec,
            micro,
            on_batch,
        )
        for answers in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    ]
    reference_logps = torch.tensor([[pair.ref_chosen for pair in pairs], [pair.ref_rejected for pair in pairs]])
    log_ratios = [ours - theirs for ours, theirs in zip(policy_logps, reference_logps, strict=True)]
    margins = beta * (log_ratios[0] - log_ratios[1])
    correct = 0.5 * (1 + margins.sign())
    accuracy = share((pair.key, hit, 1.0) for pair, hit in zip(pairs, correct.tolist(), strict=True))
    return {
        "eval_loss": float(-torch.nn.functional.logsigmoid(margins).mean()),
        "eval_pairs": len(pairs),
        "eval_accuracy": accuracy.value,
        "eval_accuracy_low": accuracy.low,
        "eval_accuracy_high": accuracy.high,
    }


class Collator(DataCollatorForPreference):
    """trl's batch of pairs with their weights, `weight` (B)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        return batch | {"weight": torch.tensor([example["weight"] for example in examples])}


class PreferenceTrainer(TrlTrainer, DPOTrainer):
    """trl's DPOTrainer on encoded pairs with precomputed reference log-probs and a weight each. Its steps depend on
    neither micro-batch size nor number of processes."""

    loss_is_scaled_for_ga = True
    weighted = False
    """Whether the pairs' weights differ."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def length(self, example: Any) -> int:
        return len(example["prompt_ids"]) + max(len(example["chosen_ids"]), len(example["rejected_ids"]))

    def count(self, examples: list[Any]) -> Tensor:
        """The number of pairs, which a step's loss is averaged over."""
        return torch.tensor(float(len(examples)))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and "weight" not in self._signature_columns:
            self._signature_columns.append("weight")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        weights_B = inputs.pop("weight")
        outputs: dict[str, Any] = {}

        def forward(**batch: Any) -> Any:
            outputs.update(model(**batch))
            return SimpleNamespace(**outputs)

        loss = super().compute_loss(forward, inputs)
        if self.weighted:
            loss = self._weighted(inputs, outputs, weights_B)
        pairs = len(weights_B)
        return loss if num_items_in_batch is None else loss * (pairs / float(num_items_in_batch))

    def _weighted(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], weights_B: Tensor) -> Any:
        """The mean of the pairs' losses times their weights.

        trl's loss is a mean over a batch, so the pairs of each weight are one, with outputs of the same forward
        pass. Its metrics stay those of the whole batch.
        """
        metrics, tokens, pairs = deepcopy(self._metrics), self._total_train_tokens, len(weights_B)
        loss: Any = 0.0
        for weight in weights_B.unique().tolist():
            places = (weights_B == weight).nonzero().flatten()
            some = SimpleNamespace(**_only(outputs, places, pairs))
            mean = super().compute_loss(lambda some=some, **_: some, _only(inputs, places, pairs))
            loss = loss + mean * (weight * len(places) / pairs)
        self._metrics, self._total_train_tokens = metrics, tokens
        return loss


def _only(batch: Mapping[str, Any], places: Tensor, pairs: int) -> dict[str, Any]:
    """The pairs at some places of a batch, which has a row per pair, or the rows of the chosen answers before those
    of the rejected ones."""
    rows = {pairs: places, 2 * pairs: torch.cat([places, places + pairs])}
    return {
        name: value[rows[len(value)]] if isinstance(value, Tensor) and value.dim() else value
        for name, value in batch.items()
    }
