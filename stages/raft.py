"""The `raft` stage: fine-tuning on the best of n answers (RAFT, rejection sampling). A baseline for PPO.

1. Sample n answers of the SFT model to each training prompt. Without an SFT stage the base model takes its place.
2. Score them as PPO does, with the mean and standard deviation of these scores, and select the best answer to
   each prompt.
3. Train from the SFT model on the selected answers, with trl's SFTTrainer: its adapter, or all weights if SFT
   trained all weights. From the base model, a new adapter or all weights (`raft.lora`).

Always giving the best of n answers has a KL from the SFT model of at most log n - (n-1)/n nats per response
(Beirami et al. 2024, arXiv:2401.01879, theorem 1). Training on such answers approximates that policy; `eval`
measures the KL that it has.

Writes `adapter/`, or `model/` after a full fine-tune, and `selected.jsonl`: the answers that it trained on.

Shapes: P prompts, N answers per prompt, T terms of the reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig as TrainerConfig  # type: ignore[attr-defined]

from data.schema import write_jsonl
from pipeline.config.raft import RAFT_TRAINER, RAFTStageConfig
from pipeline.engine.stage import Artifact, Metrics, RunContext
from pipeline.errors import StageError
from stages.eval.best_of_n import kl_bound
from stages.models import checkpoint
from stages.models.adapters import load_actor
from stages.models.distributed import World
from stages.models.microbatch import MicroBatch
from stages.models.text import IGNORED, Codec, load_codec
from stages.ppo import gate
from stages.ppo.rewards import RewardSignal, penalised
from stages.ppo.signal import reward_signal
from stages.ppo.terms import TermSignal
from stages.sampling.prompts import EncodedPrompt, load_prompts, mixed
from stages.sampling.sampler import SamplingParams, Share, sampler_of
from stages.sft import DemonstrationTrainer
from stages.training.policy import restore, save_policy, trainable_policy, trainables
from stages.training.trainer import StageCallback, of_training, training_arguments
from stages.training.trainer import train as train_to_end

SELECTED = "selected.jsonl"
PROMPTS_PER_PART = 64
"""Prompts whose answers are sampled and saved together. An interrupted run repeats at most one part."""

Answers = list[list[list[int]]]
"""Ids of answers, by prompt (P), then by answer (N)."""


def run(config: RAFTStageConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    base, sft = inputs["base"], inputs.get("sft")
    forced = gate.check(config, inputs, ctx)
    codec, n = load_codec(base), config.best_of_n
    with ctx.progress("reading prompts") as bar:
        prompts, left_out = load_prompts(
            inputs["data"],
            codec,
            "train",
            config.max_prompt_length,
            key="raft.max_prompt_length",
            advance=bar.advance,
        )
    if not prompts:
        raise left_out.error(ctx.describe, str(inputs["data"].path), "add prompts")
    left_out.report(ctx.say)
    prompts = mixed(prompts)[: config.num_prompts]
    bound = kl_bound(n)
    ctx.say(
        f"raft: the best of {n} answers to each of {len(prompts):,} prompts ({n * len(prompts):,} samples). That "
        f"policy has a KL of at most {bound:.2f} nats per response."
    )
    # 1. and 2.
    answers = sample(prompts, config, inputs, codec, ctx)
    rewards_PN = score(prompts, answers, config, inputs, codec, ctx)
    best = select(rewards_PN)
    selected = [rows[i] for rows, i in zip(answers, best, strict=True)]
    # 3.
    torch.manual_seed(ctx.seed)
    model = trainable_policy(base, sft, config.lora, ctx.device)
    start = trainables(model)
    values = RAFT_TRAINER | config.trainer
    trainer: Any = DemonstrationTrainer(
        model=model,
        args=training_arguments(
            TrainerConfig,
            values,
            ctx,
            max_length=config.max_prompt_length + config.response_length,
            packing=False,
            completion_only_loss=True,
        ),
        train_dataset=as_dataset(prompts, selected),
        processing_class=codec.tokenizer,
        callbacks=[StageCallback(ctx, "raft")],
    )
    restore(trainer.model, start)
    training_metrics = train_to_end(trainer, ctx, values, config.micro_batch_size, ctx.sharded)
    best_P = rewards_PN[torch.arange(len(prompts)), best]
    if trainer.world.rank == 0:
        save_policy(trainer.model, out_dir)
        write_jsonl(
            out_dir / SELECTED,
            (
                {"prompt": prompt.messages, "completion": codec.decode(ids), "reward": reward}
                for prompt, ids, reward in zip(prompts, selected, best_P.tolist(), strict=True)
            ),
        )
    return {
        **training_metrics,
        **left_out.metrics(),
        "prompts": len(prompts),
        "best_of_n": n,
        "answers": n * len(prompts),
        "kl_bound": bound,
        "reward": float(rewards_PN.mean()),
        "reward_selected": float(best_P.mean()),
        "ended_selected": sum(ids[-1] in codec.stop_ids for ids in selected) / len(selected),
        **of_training(trainer),
        **({"forced_past_gate": forced} if forced else {}),
    }


def sample(
    prompts: Sequence[EncodedPrompt],
    config: RAFTStageConfig,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    ctx: RunContext,
) -> Answers:
    """Samples n answers to each prompt, the same on every process, and saves them in parts. An interrupted run
    continues with the first part that is not saved."""
    world, n = World(), config.best_of_n
    parts = [prompts[i : i + PROMPTS_PER_PART] for i in range(0, len(prompts), PROMPTS_PER_PART)]
    files = [ctx.state_dir / f"answers-{i}.pt" for i in range(len(parts))]
    done = int(world.first(sum(1 for _ in takewhile(Path.exists, files))))
    generator = torch.Generator().manual_seed(ctx.seed)
    answers: Answers = []
    for file in files[:done]:
        state = checkpoint.load(file)
        answers += state["answers"]
        generator.set_state(state["generator"].clone())
    if done == len(parts):
        return answers
    actor = load_actor(inputs["base"], inputs.get("sft"), ctx.device)
    sampler = sampler_of(codec, MicroBatch(config.batch_size, "sampling", ctx.say))
    params = SamplingParams(
        max_new_tokens=config.response_length, stop_ids=codec.stop_ids, temperature=config.temperature
    )
    shares = [world.mine(n * len(part)) for part in parts]
    with ctx.progress("raft: sampling", total=sum(map(len, shares)), done=sum(map(len, shares[:done]))) as bar:
        for part, rows, file in list(zip(parts, shares, files, strict=True))[done:]:
            asked = [part[row // n].ids for row in rows.tolist()]
            episodes = sampler.sample(
                actor, asked, params, generator, share=Share(rows, n * len(part)), on_batch=bar.advance
            )
            flat = world.together(episodes.responses, n * len(part))
            new = [flat[i : i + n] for i in range(0, len(flat), n)]
            if world.rank == 0:
                checkpoint.save(file, {"answers": new, "generator": generator.get_state()})
            answers += new
    return answers


def score(
    prompts: Sequence[EncodedPrompt],
    answers: Answers,
    config: RAFTStageConfig,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    ctx: RunContext,
) -> Tensor:
    """Rewards (P, N), as PPO computes them, the same on every process, which score a share each.

    Raises `StageError` if all answers to every prompt have the same reward.
    """
    world = World()
    signal = reward_signal(
        config, inputs, codec, ctx.device, batch_size=config.batch_size, say=ctx.say, folder=ctx.recipe_dir
    )
    rows = [(prompt, ids) for prompt, theirs in zip(prompts, answers, strict=True) for ids in theirs]
    mine, scored = world.mine(len(rows)).tolist(), []
    with ctx.progress("raft: rewards", total=len(mine)) as bar:
        for start in range(0, len(mine), config.batch_size):
            batch = [rows[i] for i in mine[start : start + config.batch_size]]
            scores = signal([prompt for prompt, _ in batch], [ids for _, ids in batch])
            scored += scores.movedim(-1, 0).tolist()
            bar.advance(len(batch))
    every = torch.tensor(world.together(scored, len(rows))).movedim(0, -1)
    ended_N = torch.tensor([ids[-1] in codec.stop_ids for _, ids in rows])
    rewards_PN = combined(signal, config, every, ended_N).view(len(prompts), -1)
    if bool((rewards_PN == rewards_PN[:, :1]).all()):
        raise StageError(
            "the reward gives all answers to a prompt the same score, so none of them is the best",
            hint="see why with the reward stage's probes in the report, or leave raft out",
        )
    return rewards_PN


def combined(signal: RewardSignal | TermSignal, config: RAFTStageConfig, scores: Tensor, ended_N: Tensor) -> Tensor:
    """What PPO optimises, for all answers: scores (N,) of a model or (T, N) of terms, normalised with their own
    mean and standard deviation, clipped and added, less the penalty for a missing stop token."""
    normalizer = signal.normalizer(config.score, World())
    normalizer.prepare(lambda: scores)
    return penalised(normalizer(scores), ended_N, config.missing_eos_penalty)


def select(rewards_PN: Tensor) -> list[int]:
    """Which answer to each prompt has the highest reward, the first of equals."""
    best: list[int] = rewards_PN.argmax(1).tolist()
    return best


def as_dataset(prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[int]]) -> Dataset:
    """Ids as they were sampled, with labels on the answers."""
    return Dataset.from_list(
        [
            {"input_ids": [*prompt.ids, *ids], "labels": [*[IGNORED] * len(prompt.ids), *ids]}
            for prompt, ids in zip(prompts, answers, strict=True)
        ]
    )
