"""The `collect` stage: K answers of the SFT model to each prompt, for annotators to rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from data.schema import write_jsonl
from pipeline.config.collect import CollectConfig
from pipeline.errors import DataError
from pipeline.stage import Artifact, Metrics, RunContext
from stages.models.adapters import load_actor
from stages.models.loading import load_tokenizer
from stages.models.text import Codec
from stages.ppo.rollout import generate
from stages.prompts import load_prompts


def run(config: CollectConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    codec = Codec(load_tokenizer(inputs["base"]))
    train, too_long = load_prompts(inputs["data"], codec, "train", config.max_prompt_length)
    held_out, too_long_eval = load_prompts(inputs["data"], codec, "eval", config.max_prompt_length)
    prompts = train[: config.num_prompts] + held_out[: config.eval_prompts]
    if not prompts:
        raise DataError(
            f"no prompt fits into collect.max_prompt_length = {config.max_prompt_length} tokens",
            where=str(inputs["data"].path),
            mend="raise collect.max_prompt_length",
        )
    actor = load_actor(inputs["base"], inputs["sft"], ctx.device)
    k = config.num_completions
    generator = torch.Generator().manual_seed(ctx.seed)
    with ctx.progress("collect", total=len(prompts) * k) as bar:
        responses = generate(
            actor,
            [prompt.ids for prompt in prompts for _ in range(k)],
            torch.rand((len(prompts) * k, config.response_length), generator=generator),
            temperature=config.temperature,
            stop_ids=codec.stop_ids,
            pad_id=codec.pad_id,
            batch_size=config.batch_size,
            on_batch=bar.advance,
        )
    write_jsonl(
        out_dir / "answers.jsonl",
        (
            {
                "prompt": prompt.messages,
                "completions": [codec.decode(ids) for ids in responses[i * k : (i + 1) * k]],
                "split": prompt.split,
            }
            for i, prompt in enumerate(prompts)
        ),
    )
    return {
        "prompts": len(prompts),
        "prompts_too_long": too_long + too_long_eval,
        "answers": len(responses),
        "tokens": sum(map(len, responses)),
        "ended": sum(ids[-1] in codec.stop_ids for ids in responses) / len(responses),
    }
