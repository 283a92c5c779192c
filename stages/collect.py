"""The `collect` stage: K answers of the newest policy to each prompt, for annotators to rank.

The first round samples from the SFT model (from the base model without one), for the first prompts in hash order. A
later round samples from the previous round's PPO policy, for prompts that are not ranked yet: random ones, or those
on whose answers the newest reward ensemble disagrees most.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from data.schema import prompt_key, write_jsonl
from pipeline.config.collect import CollectConfig
from pipeline.engine.rounds import by_round, newest
from pipeline.engine.stage import Artifact, Metrics, RunContext
from stages.models.adapters import load_actor, newest_policy
from stages.models.text import Codec, load_codec
from stages.sampling.prompts import EncodedPrompt, load_prompts, mixed
from stages.sampling.sampler import SamplingParams, sampler_of
from stages.scoring.information_gain import expected_information_gain
from stages.scoring.load import load_scorer
from stages.training.conversations import check_first


@dataclass(frozen=True)
class Answered:
    prompt: EncodedPrompt
    responses: list[list[int]]


def run(config: CollectConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    codec = load_codec(inputs["base"])
    checked = check_first(inputs, codec, ctx)
    with ctx.progress("reading prompts") as bar:
        read = partial(
            load_prompts,
            inputs["data"],
            codec,
            max_length=config.max_prompt_length,
            key="collect.max_prompt_length",
            advance=bar.advance,
        )
        (train, left_out), (held_out, unmeasured) = read("train"), read("eval")
    if not train:
        raise left_out.error(ctx.describe, str(inputs["data"].path), "add prompts")
    for counted in (left_out, unmeasured):
        counted.report(ctx.say)
    ranked = _ranked(inputs)
    by_disagreement = bool(ranked) and config.select == "disagreement" and config.num_prompts is not None
    candidates = _next(train, config.num_prompts, ranked, ctx.seed, times=config.pool if by_disagreement else 1)
    # Held-out prompts are not selected by disagreement, which would bias metrics on them.
    measured = _next(held_out, config.eval_prompts, ranked, ctx.seed)
    answered = _answer(candidates + measured, config, inputs, codec, ctx)
    metrics: Metrics = {}
    if by_disagreement:
        assert config.num_prompts is not None
        gain_N = _information_gain(answered[: len(candidates)], config, inputs, codec, ctx)
        selected = gain_N.argsort(descending=True, stable=True)[: config.num_prompts].sort().values.tolist()
        metrics = {
            "candidates": len(candidates),
            "disagreement": float(gain_N[selected].mean()),
            "disagreement_candidates": float(gain_N.mean()),
        }
        answered = [answered[i] for i in selected] + answered[len(candidates) :]
    write_jsonl(
        out_dir / "answers.jsonl",
        (
            {
                "prompt": row.prompt.messages,
                "completions": [codec.decode(ids) for ids in row.responses],
                "split": row.prompt.split,
            }
            for row in answered
        ),
    )
    responses = [ids for row in answered for ids in row.responses]
    if ranked:
        metrics["prompts_again"] = sum(prompt_key(row.prompt.messages) in ranked for row in answered)
    return {
        **checked,
        "prompts": len(answered),
        **left_out.metrics(),
        **unmeasured.metrics(),
        "answers": len(responses),
        "tokens": sum(map(len, responses)),
        "ended": sum(ids[-1] in codec.stop_ids for ids in responses) / len(responses),
        **metrics,
    }


def _ranked(inputs: Mapping[str, Artifact]) -> set[str]:
    """Keys of the prompts that earlier rounds ranked; empty in the first round."""
    rankings = by_round(inputs, "rank").values()
    return {prompt_key(row["prompt"]) for ranked in rankings for row in ranked.jsonl("rankings.jsonl")}


def _next(
    prompts: Sequence[EncodedPrompt], count: int | None, ranked: set[str], seed: int, times: int = 1
) -> list[EncodedPrompt]:
    """Selects `count` prompts (None: all). In the first round, the first in hash order. Later, up to `count *
    times` random prompts that are not ranked yet, filled up to `count` with ranked ones."""
    count = len(prompts) if count is None else count
    if not ranked:
        return mixed(prompts)[:count]
    drawn = random.Random(f"collect {seed}").sample(prompts, len(prompts))
    fresh = [prompt for prompt in drawn if prompt_key(prompt.messages) not in ranked]
    again = [prompt for prompt in drawn if prompt_key(prompt.messages) in ranked]
    return (fresh[: count * times] + again[: max(0, count - len(fresh))]) if count else []


def _answer(
    prompts: Sequence[EncodedPrompt],
    config: CollectConfig,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    ctx: RunContext,
) -> list[Answered]:
    actor = load_actor(inputs["base"], newest_policy(inputs), ctx.device)
    k = config.num_completions
    params = SamplingParams(
        max_new_tokens=config.response_length, stop_ids=codec.stop_ids, temperature=config.temperature
    )
    asked = [prompt.ids for prompt in prompts for _ in range(k)]
    with ctx.progress("collect", total=len(asked)) as bar:
        sampler = sampler_of(codec, config.batch_size)
        responses = sampler.sample(actor, asked, params, ctx.seed, on_batch=bar.advance).responses
    return [Answered(prompt, responses[i * k : (i + 1) * k]) for i, prompt in enumerate(prompts)]


def _information_gain(
    answered: Sequence[Answered],
    config: CollectConfig,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    ctx: RunContext,
) -> Tensor:
    """Expected information gain (N,) of ranking each prompt's answers, about the newest reward ensemble, nats."""
    prompts = [row.prompt for row in answered for _ in row.responses]
    responses = [ids for row in answered for ids in row.responses]
    with ctx.progress("collect: disagreement", total=len(responses)) as bar:
        scorer = load_scorer(
            newest(inputs, "reward"),
            inputs,
            codec,
            ctx.device,
            batch_size=config.batch_size,
            say=ctx.say,
            on_batch=bar.advance,
        )
        scores_MN = scorer.members(prompts, responses)
    return expected_information_gain(scores_MN.unflatten(1, (len(answered), config.num_completions)))
