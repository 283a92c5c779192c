"""Rules about the engine that samples in PPO: what a recipe may ask of vLLM, and what the machine must have."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.config.rules import Problem

BUILTIN = "set ppo.sampler to builtin"
TEMPERATURES = (0.01, 2.0)
"""vLLM silently raises lower temperatures to the first, and refuses higher ones than the second."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM reserves memory for. An adapter takes the next one."""


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Values that conflict with `ppo.sampler: vllm`."""
    ppo, base, lora = recipe.ppo, recipe.base, recipe.policy_lora
    if ppo.sampler != "vllm":
        return
    if base.quantization != "none":
        held = base.quantization if isinstance(base.quantization, str) else "trained on a grid (qat)"
        yield (
            "ppo.sampler",
            f"vllm holds the base's weights as they are stored, and this base is {held}: vLLM would sample from "
            f"another model. Set base.quantization to none, or {BUILTIN}",
        )
    if lora is None:
        path = next(iter(recipe.policy_loras))
        yield (
            "ppo.sampler",
            f"vllm gets the policy as an adapter, and {path} is null: every weight is trained. Add a LoRA adapter, "
            f"or {BUILTIN}",
        )
    elif lora.r > RANKS[-1]:
        yield "ppo.sampler", f"vllm holds adapters of rank {RANKS[-1]} at most, and the policy's has {lora.r}"
    low, high = TEMPERATURES
    if not low <= ppo.temperature <= high:
        yield "ppo.temperature", f"must be {low:g} to {high:g} with sampler: vllm, got {ppo.temperature:g}"
    if ppo.rollout_batch_size == "auto":
        yield (
            "ppo.rollout_batch_size",
            "auto halves the built-in sampler's batch, and vLLM chooses how many rows fit. Set a number as its "
            "upper limit, or leave it out",
        )
    if recipe.sharding != "none":
        yield "ppo.sampler", f"vllm runs in one process, and sharding is for several: set it to none, or {BUILTIN}"


def unavailable(recipe: Recipe, device: str, processes: int) -> Iterator[Problem]:
    """What `ppo.sampler: vllm` lacks on this machine.

    Args:
        device: cpu, cuda or mps.
        processes: how many processes share the run.
    """
    if recipe.ppo.sampler != "vllm":
        return
    if device != "cuda":
        yield "ppo.sampler", f"vllm needs a CUDA device, and this run uses {device}: {BUILTIN}"
    elif importlib.util.find_spec("vllm") is None:
        yield "ppo.sampler", f'vllm needs vLLM: pip install "tutelage[vllm]", or {BUILTIN}'
    if processes > 1:
        yield (
            "ppo.sampler",
            f"vllm runs in one process, and {processes} share this run: leave out --nproc, or {BUILTIN}",
        )
