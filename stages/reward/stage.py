"""The `reward` stage: trains a scalar reward model on rankings of K answers, and evaluates it.

1. Group the training rankings by prompt. A training example is a prompt with its distinct completions, each scored
   once, and all their rankings. Count the rankings left out, and fail if no strict pair remains. Add the hard
   negatives that the recipe asks for.
2. For each member of the ensemble (one by default): build it, train it on `reward.pretrain_on`, if set, and then on
   the rankings of the recipe.
3. Scale the members to a common scale.
4. Evaluate the model on held-out rankings, against a bag of words trained on the same pairs and the agreement of
   the annotators and, where the recipe has a rubric, by kind of fault. Decide whether PPO may use it (the gate).
   Evaluate it on `data.eval_rankings`, if there are any; the gate does not read that.
5. Write the model with its fingerprints, `quality.json` and `eval_rankings.json`.

With rankings by several criteria, all of this is done for one criterion after another, as for a recipe with its
rankings alone and the same seed. Each writes to a folder of its own (stages/criteria.py).
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data.exclusion import Excluded
from data.schema import MergedRanking, Prompt, Ranking, prompt_key, read_rankings_file, row_number
from data.splits import group_of
from data.tables.mapping import located
from data.tables.messages import with_system
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline import invocation
from pipeline.config.reward import PretrainOnConfig, RewardConfig
from pipeline.engine.rounds import by_round, newest
from pipeline.engine.stage import Artifact, Metrics, RunContext
from pipeline.errors import DataError, StageError
from stages import criteria, transfer
from stages.artifacts import AGREEMENT, excluded_groups, learned_file, rankings_file, read_weights
from stages.contamination import REASONS, Contamination, of_data, text_of
from stages.left_out import PREFIXES
from stages.models.distributed import World
from stages.models.text import Codec, load_codec
from stages.reward import artifact, bag_of_words, by_fault, training
from stages.reward.artifact import TRANSFER, FaultAccuracy
from stages.reward.builders import Builder, builder_for
from stages.reward.gate import gate, summary, warnings
from stages.reward.groups import Encoder, Group, group_rankings
from stages.reward.hard_negatives import add_hard_negatives
from stages.reward.left_out import NO_STRICT_PAIR, TEACHES_TIES, RankingsLeftOut
from stages.reward.measure import measure_reward_model
from stages.scoring.reward_model import numbered
from stages.training.conversations import check_first

COMMON = 1024
"""Training completions on which the members are scaled to a common scale."""


@dataclass(frozen=True)
class TrainingData:
    """Groups of the training rankings, of `reward.pretrain_on`, and of the held-out rankings."""

    training: list[Group]
    pretraining: list[Group]
    held_out: list[Group]


@dataclass(frozen=True)
class Trained:
    """A trained and evaluated reward model.

    Attributes:
        steps: of training, all phases together.
        answers: hashes of the (prompt key, completion) that it was trained on.
    """

    metrics: Metrics
    steps: int
    answers: set[int]


def run(config: RewardConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    codec = load_codec(inputs["base"])
    checked = check_first(inputs, codec, ctx)
    rounds = by_round(inputs, "rank")
    names = criteria.criteria_of(newest(inputs, "rank"))
    if not names:
        return _train(config, inputs, list(rounds.values()), codec, out_dir, ctx, checked).metrics
    parts: dict[str, Metrics] = {}
    answers: set[int] = set()
    steps = 0
    for name in names:
        ctx.say(f"criterion {name}:")
        (out_dir / name).mkdir(exist_ok=True)
        log = training.ShiftedMetrics(ctx.metrics, name, steps)
        own = replace(ctx, state_dir=ctx.state_dir / name, metrics=log)
        ranked = [criteria.part(rank, name) for rank in rounds.values()]
        trained = _train(config, inputs, ranked, codec, out_dir / name, own, {}, name)
        parts[name] = trained.metrics
        answers |= trained.answers
        steps += trained.steps
        gc.collect()  # a Trainer holds its model in a cycle, and the next criterion loads the backbone again
    if World().rank == 0:
        criteria.write(out_dir, names)
    return checked | {
        "rankings": sum(metrics["rankings"] for metrics in parts.values()),
        "completions": len(answers),
        "trainable_parameters": sum(metrics["trainable_parameters"] for metrics in parts.values()),
        **criteria.prefixed(parts),
    }


def _train(
    config: RewardConfig,
    inputs: Mapping[str, Artifact],
    rounds: Sequence[Artifact],
    codec: Codec,
    out_dir: Path,
    ctx: RunContext,
    checked: Metrics,
    criterion: str | None = None,
) -> Trained:
    """Trains, evaluates and writes the reward model of all rankings, or of one criterion's.

    Args:
        rounds: `rank` of each round, or the part of it about the criterion.
        checked: further metrics.
    """
    builder = builder_for(config, inputs, codec, ctx)
    # 1.
    read = partial(_read, encoder=builder.encoder, config=config, ctx=ctx)
    where = ", ".join(str(ranked.path) for ranked in rounds)
    trained_on: dict[str, Prompt] = {}
    asked: dict[str, Prompt] = {}
    rankings: Iterable[Ranking] = _ranked(rounds, "train")
    if config.hard_negatives:
        rankings = _noting(rankings, trained_on)
    groups, left_out = read("", rankings, where=where, weights=_weights(config, rounds))
    answers = {hash((key, text)) for key, group in groups.items() for text in group.completions}
    negatives: Metrics = {}
    if config.hard_negatives:
        negatives = add_hard_negatives(groups, trained_on, builder.encoder, config, ctx)
    held_out, unmeasured = read("eval_", _noting(_ranked(rounds, "eval"), asked), where=where)
    others: dict[str, Group] = {}
    foreign: RankingsLeftOut | None = None
    if inputs["data"].has(transfer.FILE):
        others, foreign = read("transfer_", transfer.read(inputs["data"]), where=ctx.describe("data.eval_rankings"))
    rubric = by_fault.load_rubric(config.rubric, (asked[key] for key in held_out))
    pretraining: dict[str, Group] = {}
    metrics: Metrics = {}
    if config.pretrain_on is not None:
        pretraining, metrics = _read_pretraining(config.pretrain_on, inputs["data"], read, ctx)
    training_data = TrainingData(list(groups.values()), list(pretraining.values()), list(held_out.values()))
    # 2. and 3.
    model, trained, steps = _train_members(builder, config, training_data, ctx)
    # 4.
    metrics |= checked | {
        "rankings": left_out.used,
        "prompts": len(groups),
        "completions": len(answers),
        **negatives,
        **left_out.metrics(),
        **trained,
    }
    pairs = list(bag_of_words.strict_pairs(groups))
    with ctx.progress("reward: bag of words", total=len(bag_of_words.distinct(pairs))) as bar:
        words = bag_of_words.fit(pairs, bar.advance)
    quality, tables = measure_reward_model(
        model,
        held_out,
        lambda: _ranked(rounds, "eval"),
        builder.encoder,
        words,
        rubric,
        config,
        ctx,
        single=lambda: _ranked(rounds, "eval", rankings_file),
    )
    metrics |= {f"eval_{name}": value for name, value in quality.items()} | unmeasured.metrics()
    transferred: Metrics = {}
    if foreign is not None:
        measured, _ = measure_reward_model(
            model, others, lambda: transfer.read(inputs["data"]), builder.encoder, words, None, config, ctx
        )
        transferred = {f"{TRANSFER}{name}": value for name, value in measured.items()} | foreign.metrics()
    if World().rank:
        return Trained(metrics | transferred, steps, answers)
    # 5.
    rows = [row for group in groups.values() for row in group.rows]
    builder.save(model, out_dir, rows[: config.fingerprints], criterion)
    reasons = [] if config.gate is None else gate(config.gate, quality, unmeasured.describe())
    notes = warnings(config.gate, quality)
    artifact.write(out_dir, metrics, tables, unfit=reasons, warnings=notes)
    if line := summary(quality):
        ctx.say(line)
    if transferred:
        artifact.write_transfer(out_dir, transferred)
        ctx.say(summary(measured, "pairs of data.eval_rankings"))
    if "by_fault" in tables:
        ctx.say(by_fault.line(FaultAccuracy(**row) for row in tables["by_fault"]))
    for reason in reasons:
        ctx.say(f"the reward model is unfit for PPO: {reason}")
    for note in notes:
        ctx.say(f"warning about the reward model: {note}")
    return Trained(metrics | transferred | {"unfit": reasons, "warnings": notes}, steps, answers)


def _read(
    prefix: str,
    rankings: Iterable[Ranking],
    *,
    encoder: Encoder,
    config: RewardConfig,
    ctx: RunContext,
    where: str,
    weights: Mapping[str, float] | None = None,
) -> tuple[dict[str, Group], RankingsLeftOut]:
    """Groups rankings, and counts and prints what is left out.

    Args:
        prefix: which rankings these are, one of `stages.left_out.PREFIXES`.
        where: their source.

    Raises `DataError` if rankings to train on, or those of `data.eval_rankings`, have no strict pair.
    """
    learns = prefix not in ("eval_", TRANSFER)
    with ctx.progress(f"reading {PREFIXES[prefix].format(rows='rankings')}") as bar:

        def passing() -> Iterator[Ranking]:
            for ranking in rankings:
                yield ranking
                bar.advance()

        groups, left_out = group_rankings(
            passing(),
            encoder,
            config.max_length,
            weights,
            ties_teach=learns and config.objective in TEACHES_TIES,
            prefix=prefix,
        )
    ordered = any(len(set(order.ranks)) > 1 for group in groups.values() for order in group.orders)
    if prefix != "eval_" and not ordered:
        left_out.ties_count()
        raise left_out.error(ctx.describe, where, NO_STRICT_PAIR)
    left_out.report(ctx.say)
    if not ordered:
        refused = " and will fail the gate" if config.gate else ""
        ctx.say(f"no held-out ranking has a strict pair: the reward model cannot be evaluated{refused}")
    return groups, left_out


def _read_pretraining(
    config: PretrainOnConfig,
    data: Artifact,
    read: Callable[..., tuple[dict[str, Group], RankingsLeftOut]],
    ctx: RunContext,
) -> tuple[dict[str, Group], Metrics]:
    """The groups of `reward.pretrain_on`, and metrics of reading them."""
    dropped = Dropped()
    contaminated = of_data(data, "rankings of reward.pretrain_on")
    rankings = _pretraining(config, data, dropped, contaminated, ctx)
    groups, left_out = read("pretraining_", rankings, where="reward.pretrain_on")
    if dropped.rows_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.rows_out.most_common())
        ctx.say(f"reward: {dropped.rows_out.total():,} rows of reward.pretrain_on left out: {reasons}.")
    if warning := contaminated.warning():
        ctx.say(warning)
    metrics: Metrics = {
        "pretraining_rankings": left_out.used,
        **left_out.metrics(),
        **{f"pretraining_dropped_rows/{reason}": count for reason, count in sorted(dropped.rows_out.items())},
        **contaminated.metrics(),
    }
    if not config.human:
        metrics["human"] = False  # so that no report calls a model human that was trained on simulated rankings
    return groups, metrics


def _ranked(
    rounds: Sequence[Artifact], split: str, file: Callable[[Artifact], Path] = learned_file
) -> Iterator[Ranking]:
    """The rankings of a split, of all rounds. Streamed from the files: as Python objects they would take many times
    their size."""
    rows = (row for ranked in rounds for row in read_rankings_file(file(ranked)))
    return (row for row in rows if row.split == split)


def _noting(rankings: Iterable[Ranking], prompts: dict[str, Prompt]) -> Iterator[Ranking]:
    """Passes rankings on, and notes their prompts by key in `prompts`."""
    for ranking in rankings:
        key = prompt_key(ranking.prompt)
        if key not in prompts:
            prompts[key] = Prompt(ranking.prompt, ranking.split, ranking.where)
        yield ranking


def _weights(config: RewardConfig, rounds: Sequence[Artifact]) -> dict[str, float] | None:
    """Weights by annotator, averaged over the rounds in which they ranked; None if rankings are not weighted."""
    if config.annotator_weights == "none":
        return None
    by_annotator: dict[str, list[float]] = defaultdict(list)
    for ranked in rounds:
        measured = read_weights(ranked)
        if measured is None:
            raise StageError(
                "the rank stage measured no reliability of annotators",
                where=str(ranked.path / AGREEMENT),
                hint=(
                    f"run `{invocation.command('run', ranked.stage, '--fresh')}`, or set "
                    "reward.annotator_weights: none"
                ),
            )
        for annotator, weight in measured.items():
            by_annotator[annotator].append(weight)
    return {annotator: sum(weights) / len(weights) for annotator, weights in by_annotator.items()}


def _pretraining(
    config: PretrainOnConfig, data: Artifact, dropped: Dropped, contaminated: Contamination, ctx: RunContext
) -> Iterator[Ranking]:
    """The rankings of `reward.pretrain_on`, with the recipe's system message. Those of held-out prompts are
    excluded and counted in `dropped`, like the rows that the reader leaves out. Those that contain a held-out
    prompt are counted in `contaminated`."""
    held_out, system, excluded = set(), None, Excluded(excluded_groups(data))
    foreign = {group_of(ranking.prompt) for ranking in transfer.read(data)}
    for row in data.jsonl("prompts.jsonl"):
        if row["prompt"][0]["role"] == "system":
            system = row["prompt"][0]["content"]
        if row["split"] == "eval":
            held_out.add(group_of(row["prompt"]))
    seen: set[str] = set()
    count = 0
    with located("reward.pretrain_on", config, ctx.describe):
        for ranking in excluded.left(read_rankings(config, dropped, ctx.say), dropped):
            if config.consensus != "none" and not isinstance(ranking, MergedRanking):
                continue
            seen |= {group_of(ranking.prompt)} & foreign
            if group_of(ranking.prompt) in held_out:
                dropped.rows_out["held-out prompt"] += 1
                continue
            number, text = row_number(ranking.where), text_of(ranking.prompt, ranking.completions)
            if kind := contaminated.find(number, *text):
                dropped.rows_out[REASONS[kind]] += 1
                continue
            count += 1
            yield replace(ranking, prompt=with_system(ranking.prompt, system))
    if seen:
        ctx.say(
            f"warning: {len(seen):,} prompts of data.eval_rankings have rankings in reward.pretrain_on, which are "
            "trained on. Accuracy on them is no transfer: remove them from either table"
        )
    if not count:
        raise DataError(
            "every ranking of reward.pretrain_on is of an excluded or held-out prompt, or contains a held-out one",
            where="reward.pretrain_on",
            hint="use other rankings, or set reward.pretrain_on to null",
        )


def _train_members(
    builder: Builder, config: RewardConfig, data: TrainingData, ctx: RunContext
) -> tuple[Any, Metrics, int]:
    """Trains all members. Returns the finished reward model; as metrics, the number of trainable parameters and the
    micro-batch size if it was `auto`; and the number of steps."""
    offset = parameters = 0
    metrics: Metrics = {}
    for number in range(config.ensemble):
        seed = ctx.seed + number
        member = builder.member(number, seed)
        parameters += sum(p.numel() for p in member.parameters() if p.requires_grad)
        phases = [("" if number == 0 else f"member-{number}", config.trainer, data.training)]
        if config.pretrain_on is not None:
            phases.insert(0, (numbered("pretrain", number), config.pretrain_on.trainer, data.pretraining))
        for name, values, groups in phases:
            fit = partial(
                training.train,
                member,
                config,
                values,
                groups,
                data.held_out,
                builder.encoder.pad_id,
                name=f"reward {name}".strip(),
            )
            steps, metrics = training.run_phase(member, fit, ctx, name, seed=seed, offset=offset)
            offset += steps
    rows = [row for group in data.training for row in group.rows][:COMMON]
    with ctx.progress("reward: common scale", total=len(rows)) if config.ensemble > 1 else nullcontext() as bar:
        model = builder.finish(rows, bar.advance if bar else lambda count: None)
    return model, {"trainable_parameters": parameters, **metrics}, offset
