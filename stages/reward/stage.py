"""The `reward` stage: trains a scalar reward model on rankings of K answers, and measures it.

1. Read the training rankings by prompt; a training example is a prompt: its distinct completions, each scored
   once, and all rankings they stand in.
2. For each member of the ensemble (one, unless the recipe asks for more): make it, train it on the rankings of
   `reward.pretrain_on` if there are any, then on the recipe's own.
3. Put the members on a common scale.
4. Measure held-out rankings; judge whether PPO may trust the result (the gate).
5. Write the model with golden scores, and `quality.json`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data.messages import with_system
from data.rankings import read_rankings
from data.schema import Ranking, read_rankings_file
from data.sources import Dropped
from data.splits import group_of
from pipeline.config.reward import PretrainOnConfig, RewardConfig
from pipeline.errors import DataError, StageError
from pipeline.rounds import by_round
from pipeline.stage import Artifact, Metrics, RunContext
from stages.distributed import World
from stages.models.text import load_codec
from stages.reward import training
from stages.reward.builders import Builder, builder_for
from stages.reward.gate import gate
from stages.reward.groups import Group, group_rankings
from stages.reward.measure import measure
from stages.reward.model import numbered

COMMON = 1024
"""Training completions on which members are put on a common scale."""


@dataclass(frozen=True)
class Material:
    """What is learnt from: training groups, those of `pretrain_on`, and what the curve of held-out accuracy
    needs."""

    own: list[Group]
    before: list[Group]
    held_out: list[Group]


def run(config: RewardConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    base, rounds = inputs["base"], list(by_round(inputs, "rank").values())
    codec = load_codec(base)
    builder = builder_for(config, inputs, codec, ctx)
    encoder = builder.encoder
    # 1.
    weights = _weights(config, rounds)
    own, too_long = group_rankings(_ranked(rounds, "train"), encoder, config.max_length, weights)
    _check_order(own, ", ".join(str(ranked.path) for ranked in rounds))
    held_out, _ = group_rankings(_ranked(rounds, "eval"), encoder, config.max_length)
    before: dict[str, Group] = {}
    if config.pretrain_on is not None:
        rankings = _pretraining(config.pretrain_on, inputs["data"], ctx)
        before, _ = group_rankings(rankings, encoder, config.max_length)
        _check_order(before, "reward.pretrain_on")
    material = Material(list(own.values()), list(before.values()), list(held_out.values()))
    # 2. and 3.
    model, trained = _train_members(builder, config, material, ctx)
    # 4.
    metrics: Metrics = {
        "rankings": sum(len(g.orders) for g in own.values()),
        "prompts": len(own),
        "completions": sum(len(g.rows) for g in own.values()),
        "completions_too_long": too_long,
        **trained,
    }
    if config.pretrain_on is not None:
        metrics["pretraining_rankings"] = sum(len(g.orders) for g in material.before)
        if not config.pretrain_on.human:
            metrics["human"] = False  # what learnt from simulated rankings is not called human
    found, tables = measure(model, held_out, _ranked(rounds, "eval"), encoder, config, ctx)
    metrics |= {f"eval_{name}": value for name, value in found.items()}
    if World().rank:
        return metrics
    # 5.
    builder.save(model, out_dir, [row for group in own.values() for row in group.rows][: config.golden])
    reasons = [] if config.gate is None else gate(config.gate, found)
    (out_dir / "quality.json").write_text(
        json.dumps({"metrics": metrics, **tables, "unfit": reasons}, indent=1) + "\n", encoding="utf-8"
    )
    for reason in reasons:
        ctx.say(f"the reward model is unfit for PPO: {reason}")
    return metrics | {"unfit": reasons}


def _ranked(rounds: Sequence[Artifact], split: str) -> Iterator[Ranking]:
    """Of all rounds. Read anew each time: as Python objects all rankings would take many times the room of the
    file."""
    rows = (row for ranked in rounds for row in read_rankings_file(ranked.file("rankings.jsonl")))
    return (row for row in rows if row.split == split)


def _weights(config: RewardConfig, rounds: Sequence[Artifact]) -> dict[str, float] | None:
    """By annotator, the mean over the rounds in which they ranked."""
    if config.annotator_weights == "none":
        return None
    found: dict[str, list[float]] = defaultdict(list)
    for ranked in rounds:
        measured: dict[str, float] | None = ranked.json("agreement.json").get("weights")
        if measured is None:
            raise StageError(
                "the rank stage measured no reliability of annotators",
                where=str(ranked.path / "agreement.json"),
                mend=f"run `tutelage run {ranked.stage} --fresh`, or set reward.annotator_weights: none",
            )
        for annotator, weight in measured.items():
            found[annotator].append(weight)
    return {annotator: sum(weights) / len(weights) for annotator, weights in found.items()}


def _check_order(groups: Mapping[str, Group], where: str) -> None:
    if not any(len(set(order.ranks)) > 1 for group in groups.values() for order in group.orders):
        raise DataError(
            "the training rankings order nothing: there are none, or all are ties",
            where=where,
            mend="give rankings with at least one strict preference",
        )


def _pretraining(config: PretrainOnConfig, data: Artifact, ctx: RunContext) -> Iterator[Ranking]:
    """The rankings of `reward.pretrain_on`, under the recipe's system message, less those of held-out prompts."""
    held_out, system = set(), None
    for row in data.jsonl("prompts.jsonl"):
        if row["prompt"][0]["role"] == "system":
            system = row["prompt"][0]["content"]
        if row["split"] == "eval":
            held_out.add(group_of(row["prompt"]))
    left = 0
    for ranking in read_rankings(config, Dropped(), ctx.say):
        if group_of(ranking.prompt) not in held_out:
            left += 1
            yield replace(ranking, prompt=with_system(ranking.prompt, system))
    if not left:
        raise DataError(
            "every ranking to train on first is of a held-out prompt",
            where="reward.pretrain_on",
            mend="give other rankings, or set reward.pretrain_on to null",
        )


def _train_members(
    builder: Builder, config: RewardConfig, material: Material, ctx: RunContext
) -> tuple[Any, Metrics]:
    """The finished reward model, how many parameters learnt, and the micro-batch if it was to be found."""
    offset = parameters = 0
    found: Metrics = {}
    for number in range(config.ensemble):
        seed = ctx.seed + number
        member = builder.member(number, seed)
        parameters += sum(p.numel() for p in member.parameters() if p.requires_grad)
        phases = [("" if number == 0 else f"member-{number}", config.trainer, material.own)]
        if config.pretrain_on is not None:
            phases.insert(0, (numbered("pretrain", number), config.pretrain_on.trainer, material.before))
        for name, values, groups in phases:
            fit = partial(
                training.train,
                member,
                config,
                values,
                groups,
                material.held_out,
                builder.encoder.pad_id,
                name=f"reward {name}".strip(),
            )
            steps, found = training.run_phase(member, fit, ctx, name, seed=seed, offset=offset)
            offset += steps
    rows = [row for group in material.own for row in group.rows][:COMMON]
    return builder.finish(rows), {"trainable_parameters": parameters, **found}
