"""PPO updates on models of real shapes for `benchmarks/gpu.py`: peak memory against the plan, and speed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_models
import ppo_case
import torch
from gpu_models import CUDA, DEVICE

from pipeline.config.load import load_recipe
from pipeline.memory.architecture import Architecture
from pipeline.memory.plan import predict
from stages.models.bank import Bank, checkpoint_activations
from stages.ppo.rewards import RewardSignal
from stages.ppo.trainer import PPOTrainer
from stages.sampling.prompts import EncodedPrompt

RECIPE = """\
name: gpu
device: {device}
base: {{model: {model}, dtype: {dtype}, quantization: {quantization}}}
data: {{demonstrations: {{task: venues, size: 10}}}}
rank: {{source: simulated, annotators_per_prompt: 1, annotators: [{{name: ann}}]}}
sft: {{lora: {{r: 16}}}}
reward: {{lora: {{r: 16}}}}
ppo: {{batch_size: 16, total_episodes: 32, num_ppo_epochs: 1, num_mini_batches: 2, eval_updates: 0,
       max_prompt_length: 128, response_length: 128, micro_batch_size: 8, kl: {{kind: fixed}}}}
"""
FULL = "sft.lora=null reward.lora=null"
LONG = "ppo.max_prompt_length=256 ppo.response_length=256 ppo.gradient_checkpointing=true"
CASES: dict[str, tuple[dict[str, Any], str, str, str, float | None]] = {
    "8B NF4, value adapter (four roles), 256 + 256 tokens": (
        gpu_models.EIGHT, "bfloat16", "nf4", f"{LONG} ppo.value=adapter ppo.micro_batch_size=2", 24.0),
    "8B NF4, value head, 256 + 256 tokens": (
        gpu_models.EIGHT, "bfloat16", "nf4", f"{LONG} ppo.micro_batch_size=1 ppo.rollout_batch_size=8", 16.0),
    "0.5B": (gpu_models.HALF, "bfloat16", "none", "", None),
    "0.5B, value adapter": (gpu_models.HALF, "bfloat16", "none", "ppo.value=adapter", None),
    "0.5B, checkpointing": (gpu_models.HALF, "bfloat16", "none", "ppo.gradient_checkpointing=true", None),
    "0.5B, micro-batches of 2": (gpu_models.HALF, "bfloat16", "none", "ppo.micro_batch_size=2", None),
    "0.5B, 8 rows at a time": (gpu_models.HALF, "bfloat16", "none", "ppo.rollout_batch_size=8", None),
    "0.5B, float32": (gpu_models.HALF, "float32", "none", "ppo.micro_batch_size=4", None),
    "0.5B, full fine-tuning": (gpu_models.HALF, "bfloat16", "none", f"{FULL} ppo.micro_batch_size=4", None),
    "1.5B": (gpu_models.ONE_AND_A_HALF, "bfloat16", "none", "ppo.micro_batch_size=4", None),
    "1.5B, value adapter, checkpointing": (
        gpu_models.ONE_AND_A_HALF, "bfloat16", "none", "ppo.value=adapter ppo.gradient_checkpointing=true", None),
    "1.5B NF4, value adapter": (
        gpu_models.ONE_AND_A_HALF, "bfloat16", "nf4", "ppo.value=adapter ppo.micro_batch_size=4", None),
}  # fmt: skip
"""Name -> shape, dtype, quantisation, values over the recipe's, and the card's GB that it is meant for."""


def rows() -> Iterator[tuple[str, str]]:
    """For each case, the peak of an update against the plan, and the speed of a second one."""
    for name, (shape, dtype, quantization, values, card) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder) / "gpu.yaml"
            text = RECIPE.format(device=DEVICE, model=folder, dtype=dtype, quantization=quantization)
            recipe.write_text(text)
            short = "" if CUDA else " ppo.max_prompt_length=12 ppo.response_length=6"
            loaded = load_recipe(recipe, [values + short]).recipe
        planned = predict(loaded, Architecture.from_config(gpu_models.shape(shape)), device=DEVICE).stages["ppo"]
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainer = _trainer(_bank(shape, dtype, quantization, loaded), loaded.ppo)
        trainer.step()
        peak = torch.cuda.max_memory_allocated() if CUDA else None
        start = time.perf_counter()
        metrics = trainer.step()
        took = time.perf_counter() - start
        memory = f"plan {planned.allocated / 2**30:.2f} GiB in {planned.phase}"
        if peak is not None:
            memory += f", measured {peak / 2**30:.2f} GiB, ratio {planned.allocated / peak:.2f}"
            if card:
                memory += (
                    f", {'fits' if peak + 1e9 < card * 1e9 else 'does **not** fit'} {card:g} GB with 1 GB spare"
                )
        else:
            memory += ", measured only on a GPU"
        speed = f"{loaded.ppo.batch_size / took:.2f} episodes/s, MFU {100 * metrics['mfu']:.1f} %"
        yield f"PPO update, {name}", f"{memory}; {speed}"
        del trainer


def _bank(shape: dict[str, Any], dtype: str, quantization: str, recipe: Any) -> Bank:
    if recipe.policy_lora is None:
        made: Bank = gpu_models.full_bank(shape)
    else:
        lm = gpu_models.model(shape, dtype=getattr(torch, dtype))
        adapter = recipe.ppo.critic == "adapter"
        roles = ("reference", "policy", "reward", *(("value",) if adapter else ()))
        made = gpu_models.bank(
            gpu_models.in_nf4(lm) if quantization == "nf4" else lm, roles, value="value" if adapter else "policy"
        )
    if recipe.ppo.gradient_checkpointing:
        checkpoint_activations(made)
    return made


def _trainer(bank: Bank, config: Any) -> PPOTrainer:
    """A trainer on prompts of the longest length. A token of random weights seldom is a stop token."""
    with bank.active("policy") as actor:
        vocabulary = actor.lm.config.vocab_size
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(3, vocabulary, (32, config.max_prompt_length), generator=generator).tolist()
    codec: Any = SimpleNamespace(stop_ids={1}, pad_id=0)
    reward = RewardSignal(ppo_case.Rigged(ppo_case.varied), config.reward)
    encoded = [EncodedPrompt([], ids, "train") for ids in prompts]
    return PPOTrainer(bank, config, codec, encoded, reward, seed=0, device=DEVICE)
