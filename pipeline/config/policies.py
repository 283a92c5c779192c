"""Rules about what policies start from and train: with or without SFT, adapters or every weight, sharded or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.base import QATConfig
from pipeline.config.dpo import DPOConfig
from pipeline.config.raft import RAFTConfig
from pipeline.config.recipe import Recipe
from pipeline.config.sft import LoRAConfig, SFTConfig

if TYPE_CHECKING:
    from pipeline.config.rules import Problem


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Values that conflict with each other."""
    yield from _lora(recipe)
    yield from _after_sft(recipe) if recipe.sft is not None else _without_sft(recipe)
    yield from _sharding(recipe)


def _lora(recipe: Recipe) -> Iterator[Problem]:
    reward, policies = recipe.reward.lora, recipe.policy_loras
    path, policy = next(iter(policies.items()))
    every = {**policies, "reward.lora": reward}
    quantization = recipe.base.quantization
    if quantization in ("nf4", "int8"):
        for at, lora in every.items():
            if lora is None and not (at == "reward.lora" and recipe.reward.model):
                yield at, f"is required by base.quantization = {quantization}"
    elif (policy is None) != (reward is None) and recipe.reward.model is None:
        yield (
            "reward.lora",
            f"and {path} must both be sections or both be null: roles share one backbone or none",
        )
    if recipe.base.dtype == "float16" and policy is None:
        yield (
            "base.dtype",
            f"float16 trains LoRA adapters only, and {path} is null: a full fine-tune needs the range of "
            "bfloat16 or float32. Set it to auto",
        )
    if isinstance(quantization, QATConfig):
        for path, lora in every.items():
            if lora is not None and lora.lora_dropout:
                yield (
                    f"{path}.lora_dropout",
                    "must be 0 with base.quantization.qat, which rounds weight and adapter together",
                )


def _after_sft(recipe: Recipe) -> Iterator[Problem]:
    assert recipe.sft is not None
    sft, reward = recipe.sft.lora, recipe.reward.lora
    if sft is not None and reward is not None and recipe.reward.model is None and recipe.reward.init == "sft":
        for name in ("r", "lora_alpha"):
            if getattr(reward, name) != getattr(sft, name):
                yield (
                    f"reward.lora.{name}",
                    f"must be that of sft.lora ({getattr(sft, name)}): with reward.init = sft the reward adapter "
                    "starts as a copy of the SFT adapter. Make them equal, or set reward.init to base",
                )
    for name in ("ppo", "dpo", "raft"):
        section = getattr(recipe, name)
        if section is not None and section.lora != LoRAConfig():
            yield (
                f"{name}.lora",
                f"belongs to sft: null: after SFT, {name} trains what SFT trained. Set sft.lora, or remove "
                f"{name}.lora",
            )
    if recipe.data.demonstrations is None:
        yield (
            "data.demonstrations",
            "is required by the SFT stage. Set it, or set sft to null, which starts from the base model",
        )


def _without_sft(recipe: Recipe) -> Iterator[Problem]:
    """The policies start from the base model."""
    policies, data = recipe.policy_loras, recipe.data
    for path, lora in policies.items():
        if (lora is None) != (recipe.ppo.lora is None):
            name = path.partition(".")[0].upper()
            yield path, f"and ppo.lora must both be sections or both be null, so that {name} trains what PPO trains"
    if data.demonstrations is None:
        if data.prompts is None and data.rankings is None:
            yield "data", "has no prompts: set data.prompts, data.rankings or data.demonstrations"
        if recipe.ppo.ptx_coef:
            yield "ppo.ptx_coef", "is the weight of a loss on demonstrations, and data.demonstrations is not set"
    llm_judge = recipe.eval.llm_judge
    if llm_judge is not None and llm_judge.against and "base" not in llm_judge.against:
        yield "eval.llm_judge.against", "must include base, which PPO starts from with sft: null"


def _sharding(recipe: Recipe) -> Iterator[Problem]:
    if recipe.sharding == "none":
        return
    sft, reward, ppo = recipe.sft or SFTConfig(), recipe.reward, recipe.ppo
    quantization = recipe.base.quantization
    if quantization == "int8":
        yield (
            "base.quantization",
            "int8 weights cannot be sharded, because bitsandbytes replaces them at their first use. Set it to nf4, "
            "or sharding to none",
        )
    elif isinstance(quantization, QATConfig):
        yield (
            "base.quantization",
            "quantisation-aware training cannot be sharded: it rounds whole weights. Set sharding to none",
        )
    if ppo.optimizer != "adamw":
        yield "ppo.optimizer", f"{ppo.optimizer} is not supported with sharding: use adamw"
    dpo, raft = recipe.dpo or DPOConfig(), recipe.raft or RAFTConfig()
    for path, size in (
        ("sft", sft.micro_batch_size),
        ("reward", reward.micro_batch_size),
        ("ppo", ppo.micro_batch_size),
        ("dpo", dpo.micro_batch_size),
        ("raft", raft.micro_batch_size),
    ):
        if size == "auto":
            yield (
                f"{path}.micro_batch_size",
                "auto works by running out of memory, and with sharding the other processes would then wait "
                "forever. Set a number",
            )
    pretrain_on = reward.pretrain_on.trainer if reward.pretrain_on else {}
    for path, values in (
        ("sft.trainer", sft.trainer),
        ("reward.trainer", reward.trainer),
        ("reward.pretrain_on.trainer", pretrain_on),
        ("dpo.trainer", dpo.trainer),
        ("raft.trainer", raft.trainer),
    ):
        if values.get("optim", "adamw_torch") not in ("adamw_torch", "adamw_torch_fused"):
            yield f"{path}.optim", f"{values['optim']} is not supported with sharding: use adamw_torch"
        for name in ("torch_compile", "use_liger_kernel", "load_best_model_at_end"):
            if values.get(name):
                yield f"{path}.{name}", "is not supported with sharding"
