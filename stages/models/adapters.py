"""Policies on disk and in memory: LoRA adapters on the frozen backbone, or whole models.

A trained policy's artifact holds either `adapter/` (peft's format) or `model/` (a full fine-tune).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.config.sft import LoRAConfig
from pipeline.stage import Artifact
from stages.models import qat
from stages.models.actor import Actor
from stages.models.linear import speed_up
from stages.models.loading import dtype_of, load_backbone, mark_as, readable_checkpoint
from stages.models.precision import compute_in

ADAPTER, MODEL = "adapter", "model"


def new_adapter(backbone: PreTrainedModel, lora: LoRAConfig, name: str = "default") -> PeftModel:
    """`backbone` with a fresh, trainable LoRA adapter, which changes nothing yet."""
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(backbone, config, adapter_name=name)
    qat.adapt(model)
    return model


def float32_trainables(model: torch.nn.Module) -> None:
    """Adam in 16 bits loses small updates, and trl casts the adapters of a 4-bit model to bfloat16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def is_adapter(artifact: Artifact) -> bool:
    """Whether an artifact's policy is an adapter (else: a whole model)."""
    return (artifact.path / ADAPTER).is_dir()


def load_policy(base: Artifact, artifact: Artifact | None, device: str) -> Any:
    """The policy of a `sft` or `ppo` artifact, frozen; the bare backbone when `artifact` is None."""
    if artifact is not None and not is_adapter(artifact):
        return load_full(base, artifact.file(MODEL), device)
    backbone = load_backbone(base, device)
    if artifact is None:
        return backbone
    with readable_checkpoint(artifact.path):
        model = PeftModel.from_pretrained(backbone, artifact.file(ADAPTER)).eval()
    qat.adapt(model)
    return model


def load_actor(base: Artifact, artifact: Artifact | None, device: str) -> Actor:
    """As `load_policy`, to speak and to be asked for log-probs; its parameters stay frozen."""
    model = load_policy(base, artifact, device)
    speed_up(model)
    for layer in qat.quantised(model):
        layer.keep(True)
    return Actor(causal_lm(model))


def causal_lm(model: Any) -> Any:
    """The causal LM itself, whether peft has wrapped it or not; its adapters stay at work."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def load_full(base: Artifact, folder: Path, device: str) -> Any:
    """A fully fine-tuned model, in the precision it was saved in, frozen, computing as `base` says."""
    with readable_checkpoint(folder):
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        model.to(device)
    model.requires_grad_(False)
    mark_as(base, model)
    compute_as(base, model, device)
    return model.eval()


def trained_in_full(model: Any, base: Artifact, device: str) -> Any:
    """A model all of whose weights learn: they are float32, and it computes as `base` says."""
    model.float().requires_grad_(True)
    compute_as(base, model, device)
    return model


def compute_as(base: Artifact, model: Any, device: str) -> None:
    """Makes a model with float32 weights compute in bfloat16 where `base.dtype` comes to that; not with
    quantisation-aware training, whose layers round float32 weights."""
    spec = base.json("base.json")
    if dtype_of(spec["dtype"], device) == torch.bfloat16 and isinstance(spec["quantization"], str):
        compute_in(model, torch.bfloat16)


def save_adapter(model: Any, name: str, folder: Path, target_name: str = ADAPTER) -> None:
    """Writes adapter `name` of a peft model as `folder/adapter`, loadable as any peft adapter."""
    model.save_pretrained(folder, selected_adapters=[name])
    target = folder / target_name
    source = folder if name == "default" else folder / name
    if source == folder:
        target.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).rename(target / file)
    else:
        source.rename(target)
    (folder / "README.md").unlink(missing_ok=True)
    (target / "README.md").unlink(missing_ok=True)
    _settle(target / "adapter_config.json")


def _settle(file: Path) -> None:
    """Takes out of peft's file what differs between runs that are the same: the order of a set, and the folder that
    the base lay in (a Hub id stays)."""
    config = json.loads(file.read_text(encoding="utf-8"))
    base = config["base_model_name_or_path"]
    if base is not None and Path(base).exists():
        config["base_model_name_or_path"] = None
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
