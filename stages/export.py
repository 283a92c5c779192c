"""The `export` stage: the trained policy as one plain model, merged, in safetensors, that transformers reloads.

What it makes is a folder for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`. The merged
model is read back and compared with the policy it came from before the stage calls itself finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.export import ExportConfig
from pipeline.errors import StageError
from pipeline.rounds import newest
from pipeline.stage import Artifact, Metrics, RunContext
from stages.models import qat
from stages.models.adapters import load_policy
from stages.models.loading import load_tokenizer
from stages.models.text import Codec

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
"""Largest difference of log-probs between the policy and its exported self: rounding, by precision."""


def run(config: ExportConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    base = inputs["base"]
    quantization = base.json("base.json")["quantization"]
    if quantization in ("nf4", "int8"):
        raise StageError(
            f"an adapter trained on a {quantization} base is not merged: merging and quantising again would undo "
            "its training",
            where="base.quantization",
            mend="deploy the ppo artifact's adapter beside its base, or train with base.quantization: none",
        )
    tokenizer = load_tokenizer(base)
    model: Any = load_policy(base, newest(inputs, "ppo"), ctx.device)
    probe = torch.tensor([Codec(tokenizer).prompt([{"role": "user", "content": "Hello"}])], device=ctx.device)
    before = _logprobs(model, probe)
    model = model.float()  # a sum in 16 bits would lose small adapters, and not be what training rounds
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    qat.settle(model)
    model = model.to(getattr(torch, config.dtype))
    model.generation_config.eos_token_id = sorted(Codec(tokenizer).stop_ids)
    model.generation_config.pad_token_id = Codec(tokenizer).pad_id
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)

    reloaded: Any = AutoModelForCausalLM.from_pretrained(out_dir, dtype="auto")
    reloaded.to(ctx.device).eval()
    deviation = float((_logprobs(reloaded, probe) - before).abs().max())
    if not deviation <= TOLERANCE[config.dtype]:
        raise StageError(
            f"the exported model differs from the policy: log-probs by {deviation:.3g}",
            mend="export in float32 (export.dtype)",
        )
    AutoTokenizer.from_pretrained(out_dir)
    return {
        "parameters": sum(p.numel() for p in reloaded.parameters()),
        "bytes": sum(file.stat().st_size for file in out_dir.iterdir()),
        "deviation": deviation,
    }


@torch.no_grad()
def _logprobs(model: Any, ids: Tensor) -> Tensor:
    return torch.log_softmax(model(ids).logits.float(), -1)
