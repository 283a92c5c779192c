"""The `reward` stage: trains a scalar reward model on rankings of K answers, and measures it.

A training example is a prompt: its distinct completions, each scored once, and all rankings they stand in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from data.schema import Ranking, prompt_key
from pipeline.config.reward import RewardConfig
from pipeline.errors import DataError, StageError
from pipeline.rounds import by_round
from pipeline.stage import Artifact, Metrics, RunContext
from stages.models.adapters import float32_trainables, is_adapter, load_full, new_adapter
from stages.models.loading import load_backbone, load_tokenizer
from stages.models.text import Codec, pad
from stages.reward import likelihoods
from stages.reward import model as reward_model
from stages.reward.quality import gate, quality
from stages.training import StageCallback, training_arguments
from stages.training import train as train_to_end

OBJECTIVES = {"bradley_terry": likelihoods.bradley_terry, "plackett_luce": likelihoods.plackett_luce}


@dataclass
class Group:
    """One prompt: its distinct completions as ids, and rankings as (indices, ranks)."""

    prompt: list[int]
    completions: dict[str, int] = field(default_factory=dict)
    rows: list[list[int]] = field(default_factory=list)
    rankings: list[tuple[list[int], list[int]]] = field(default_factory=list)


def run(config: RewardConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    base, rounds = inputs["base"], by_round(inputs, "rank")
    codec = Codec(load_tokenizer(base))
    rankings = [Ranking(**row) for ranked in rounds.values() for row in ranked.jsonl("rankings.jsonl")]
    groups, too_long = group_rankings([r for r in rankings if r.split == "train"], codec, config.max_length)
    if not any(len(set(ranks)) > 1 for group in groups.values() for _, ranks in group.rankings):
        raise DataError(
            "the training rankings order nothing: there are none, or all are ties",
            where=str(rounds[max(rounds)].path),
            mend="give rankings with at least one strict preference",
        )
    torch.manual_seed(ctx.seed)
    model = _new_model(config, inputs, ctx)
    _train(model, config, list(groups.values()), codec, ctx)
    model.eval()

    held_out = [r for r in rankings if r.split == "eval"]
    metrics: Metrics = {
        "rankings": sum(len(g.rankings) for g in groups.values()),
        "prompts": len(groups),
        "completions": sum(len(g.rows) for g in groups.values()),
        "completions_too_long": too_long,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    table = _measure(model, held_out, codec, config, metrics, ctx)
    golden = _golden(model, groups, config.golden, ctx)
    reward_model.save(model, out_dir, base, codec, golden, lora=config.lora is not None)
    reasons = gate(config.gate, {k.removeprefix("eval_"): v for k, v in metrics.items()})
    (out_dir / "quality.json").write_text(
        json.dumps({"metrics": metrics, "reliability": table, "unfit": reasons}, indent=1) + "\n",
        encoding="utf-8",
    )
    for reason in reasons:
        ctx.say(f"the reward model is unfit for PPO: {reason}")
    return metrics | {"unfit": reasons}


def group_rankings(rankings: list[Ranking], codec: Codec, max_length: int) -> tuple[dict[str, Group], int]:
    """Groups by prompt. A completion too long for the model leaves its rankings; also returns how many such."""
    groups: dict[str, Group] = {}
    too_long: set[tuple[str, str]] = set()
    for ranking in rankings:
        key = prompt_key(ranking.prompt)
        group = groups.setdefault(key, Group(codec.prompt(ranking.prompt)))
        indices, ranks = [], []
        for text, rank in zip(ranking.completions, ranking.ranks, strict=True):
            if text not in group.completions:
                row = group.prompt + codec.completion(text)
                if len(row) > max_length:
                    too_long.add((key, text))
                    continue
                group.completions[text] = len(group.rows)
                group.rows.append(row)
            index = group.completions[text]
            if index not in indices:  # two systems may have said the same: it cannot be better than itself
                indices.append(index)
                ranks.append(rank)
        if len(indices) > 1:
            group.rankings.append((indices, ranks))
    return {key: group for key, group in groups.items() if group.rankings}, len(too_long)


def _new_model(config: RewardConfig, inputs: Mapping[str, Artifact], ctx: RunContext) -> reward_model.RewardModel:
    base, sft = inputs["base"], inputs["sft"]
    if config.lora is None:
        start = sft if config.init == "sft" else None
        lm: Any = load_full(start.file("model"), ctx.device) if start else load_backbone(base, ctx.device)
        lm.float().requires_grad_(True)
    else:
        lm = new_adapter(load_backbone(base, ctx.device), config.lora)
        if config.init == "sft":
            _copy_adapter(sft, lm)
    float32_trainables(lm)
    head = reward_model.ScalarHead(lm.config.get_text_config().hidden_size).to(ctx.device)
    return reward_model.RewardModel(lm, head)


def _copy_adapter(sft: Artifact, lm: Any) -> None:
    """Starts the reward adapter as the SFT adapter's copy."""
    from peft import load_peft_weights, set_peft_model_state_dict

    if not is_adapter(sft):
        raise StageError("the SFT model is not an adapter", where=str(sft.path), mend="set reward.lora to null")
    try:
        set_peft_model_state_dict(lm, load_peft_weights(str(sft.file("adapter")), device=str(lm.device)))
    except RuntimeError as error:
        raise StageError(
            "the reward adapter cannot start as the SFT adapter's copy: their LoRA shapes differ",
            where="reward.lora",
            mend="give reward.lora the r and target_modules of sft.lora, or set reward.init: base",
        ) from error


def _train(
    model: reward_model.RewardModel, config: RewardConfig, groups: list[Group], codec: Codec, ctx: RunContext
) -> None:
    trainer = RankingTrainer(
        model=model,
        args=training_arguments(
            TrainingArguments,
            {"learning_rate": 1e-4, "num_train_epochs": 1, "per_device_train_batch_size": 16} | config.trainer,
            ctx,
            remove_unused_columns=False,
        ),
        train_dataset=groups,
        data_collator=lambda batch: collate(batch, codec.pad_id),
        callbacks=[StageCallback(ctx, "reward")],
    )
    trainer.objective = OBJECTIVES[config.objective]
    trainer.center = config.center_rewards_coefficient
    train_to_end(trainer, ctx)


def collate(groups: list[Group], pad_id: int) -> dict[str, Any]:
    """Groups -> padded rows of all their completions, and rankings with indices into those rows."""
    ids, mask = pad([row for group in groups for row in group.rows], pad_id, left=False)
    rankings, spans, offset = [], [], 0
    for group in groups:
        rankings += [([offset + i for i in indices], ranks) for indices, ranks in group.rankings]
        spans.append((offset, offset + len(group.rows)))
        offset += len(group.rows)
    return {"ids_BL": ids, "lengths_B": mask.sum(1), "rankings": rankings, "spans": spans}


def ranking_loss(
    scores: Tensor, rankings: list[tuple[list[int], list[int]]], objective: Any
) -> tuple[Tensor, Tensor]:
    """Mean loss over rankings, and the share of strict pairs that the scores order rightly."""
    losses, right = [], []
    for indices, ranks in rankings:
        s, r = scores[indices], torch.tensor(ranks, device=scores.device)
        losses.append(objective(s, r))
        right.append((s[:, None] > s[None, :])[r[:, None] < r[None, :]])
    return torch.stack(losses).mean(), torch.cat(right).float().mean()


class RankingTrainer(Trainer):
    """A Trainer whose loss is the likelihood of rankings; logs training accuracy besides."""

    objective: Any
    center: float

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        scores = model(inputs["ids_BL"], inputs["lengths_B"])
        loss, accuracy = ranking_loss(scores, inputs["rankings"], self.objective)
        if self.center:
            means = [likelihoods.centering(scores[start:end]) for start, end in inputs["spans"]]
            loss = loss + self.center * torch.stack(means).mean()
        if not accuracy.isnan():  # as it is where all are ties
            self._accuracies = [*getattr(self, "_accuracies", []), float(accuracy)]
        return (loss, scores) if return_outputs else loss

    def log(self, logs, *args, **kwargs):  # type: ignore[no-untyped-def]
        if "loss" in logs and getattr(self, "_accuracies", []):
            logs["accuracy"] = sum(self._accuracies) / len(self._accuracies)
            self._accuracies = []
        super().log(logs, *args, **kwargs)


def _measure(
    model: reward_model.RewardModel,
    held_out: list[Ranking],
    codec: Codec,
    config: RewardConfig,
    metrics: Metrics,
    ctx: RunContext,
) -> Any:
    groups, _ = group_rankings(held_out, codec, config.max_length)
    texts = [(key, text) for key, group in groups.items() for text in group.completions]
    rows = [row for group in groups.values() for row in group.rows]
    prompt_lengths = [len(group.prompt) for group in groups.values() for _ in group.rows]
    scores = reward_model.score_rows(model, rows, config.eval_batch_size, ctx.device).tolist()
    lengths = [float(len(row) - n) for row, n in zip(rows, prompt_lengths, strict=True)]
    found, table = quality(
        held_out, dict(zip(texts, scores, strict=True)), dict(zip(texts, lengths, strict=True)), ctx.seed
    )
    metrics |= {f"eval_{name}": value for name, value in found.items()}
    return table


def _golden(
    model: reward_model.RewardModel, groups: dict[str, Group], count: int, ctx: RunContext
) -> list[dict[str, Any]]:
    rows = [row for group in groups.values() for row in group.rows][:count]
    scores = reward_model.score_rows(model, rows, max(1, len(rows)), ctx.device).tolist()
    return [{"ids": row, "score": score} for row, score in zip(rows, scores, strict=True)]
