"""Policies on disk and in memory: LoRA adapters on the frozen backbone, or full models.

A trained policy's artifact holds either `adapter/` (peft's format) or `model/` (a full fine-tune).
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, load_peft_weights
from transformers import AutoModelForCausalLM

from pipeline.config.sft import LoRAConfig
from pipeline.engine.rounds import by_round, newest
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models import weights
from stages.models.actor import Actor
from stages.models.fast.linear import speed_up
from stages.models.loading import dtype_of, load_backbone, load_pretrained, mark_as, readable_checkpoint
from stages.models.precision import compute_in
from stages.models.quantization import qat

ADAPTER, MODEL = "adapter", "model"


def new_adapter(backbone: Any, lora: LoRAConfig, name: str = "default") -> PeftModel:
    """`backbone`, bare or with other adapters, with a new, trainable LoRA adapter. B is zero, so the outputs do not
    change yet."""
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    with adaptable(lora):
        if isinstance(backbone, PeftModel):
            model = backbone
            model.add_adapter(name, config)
        else:
            model = get_peft_model(backbone, config, adapter_name=name)
    qat.adapt(model)
    return model


@contextlib.contextmanager
def adaptable(lora: LoRAConfig) -> Iterator[None]:
    """Converts peft's errors about a model's modules into a `StageError`. (`pipeline.config.fit` reports those it
    can detect before training.)"""
    try:
        yield
    except (ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageError(
            f"LoRA cannot be applied to this model: {reason}",
            where=f"target_modules: {lora.target_modules}",
            hint="set lora.target_modules to the names of linear layers of the model",
        ) from error


def attach_adapter(model: Any, folder: Path, name: str = "default", *, trainable: bool = False) -> PeftModel:
    """Loads the adapter in `folder` as `name` into a peft model, next to its other adapters, or onto a bare
    backbone.

    Raises `StageError` when the files cannot be read, or when their weights are not exactly those of an adapter of
    this model. peft would leave missing weights at their initial values and drop unexpected ones.
    """
    with readable_checkpoint(folder, "adapter"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # compared below
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable)
        stored = load_peft_weights(str(folder), device="cpu")
    weights.check_names(stored.keys(), adapter_weights(model, name), folder, "the adapter")
    return model


def start_adapter(
    model: Any, start: Artifact | None, lora: LoRAConfig | None, name: str = "default", *, trainable: bool = False
) -> PeftModel:
    """Adds the adapter of a policy as `name`, as `attach_adapter` does; from the base model (`start` is None) a new
    one as `lora` says, without effect."""
    if start is not None:
        return attach_adapter(model, start.file(ADAPTER), name, trainable=trainable)
    assert lora is not None
    return new_adapter(model, lora, name)


def adapter_weights(model: PeftModel, name: str) -> set[str]:
    """Names of an adapter's weights, as in peft's files."""
    return set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))


def float32_trainables(model: torch.nn.Module) -> None:
    """Casts trainable parameters to float32. Adam in 16 bits loses small updates, and trl casts the adapters of a
    4-bit model to bfloat16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def is_adapter(artifact: Artifact) -> bool:
    """Whether an artifact's policy is an adapter rather than a full model."""
    return (artifact.path / ADAPTER).is_dir()


def newest_policy(inputs: Mapping[str, Artifact]) -> Artifact | None:
    """The policy that a round starts from: PPO's of the newest round, or else SFT's; None: the base model."""
    return newest(inputs, "ppo") if by_round(inputs, "ppo") else inputs.get("sft")


def trains_adapter(start: Artifact | None, lora: LoRAConfig | None) -> bool:
    """Whether what starts from a policy trains an adapter: if the policy is one or, from the base model (`start` is
    None), if there is a section `lora`."""
    return lora is not None if start is None else is_adapter(start)


def load_policy(base: Artifact, artifact: Artifact | None, device: str) -> Any:
    """The frozen policy of a `sft` or `ppo` artifact; the bare backbone if `artifact` is None."""
    if artifact is not None and not is_adapter(artifact):
        return load_full(base, artifact, device)
    backbone = load_backbone(base, device)
    if artifact is None:
        return backbone
    model = attach_adapter(backbone, artifact.file(ADAPTER)).eval()
    qat.adapt(model)
    return model


def load_actor(base: Artifact, artifact: Artifact | None, device: str) -> Actor:
    """The policy as an `Actor`, for sampling and log-probs. Its parameters are frozen."""
    model = load_policy(base, artifact, device)
    speed_up(model)
    for layer in qat.quantised(model):
        layer.keep(True)
    return Actor(causal_lm(model))


def causal_lm(model: Any) -> Any:
    """The causal LM without peft's wrapper. Its adapters stay active."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def load_full(base: Artifact, artifact: Artifact | None, device: str) -> Any:
    """The fully fine-tuned model of an artifact, frozen, in its saved precision, or the base model with float32
    weights if `artifact` is None. It computes in the precision of `base`."""
    if artifact is None:
        return trained_in_full(load_backbone(base, device), base, device).requires_grad_(False)
    folder = artifact.file(MODEL)
    model: Any = load_pretrained(AutoModelForCausalLM, folder, dtype="auto").to(device)
    model.requires_grad_(False)
    mark_as(base, model)
    compute_as(base, model, device)
    return model.eval()


def trained_in_full(model: Any, base: Artifact, device: str) -> Any:
    """Prepares a model for full fine-tuning: trainable float32 weights, products in `base.dtype`."""
    model.float().requires_grad_(True)
    compute_as(base, model, device)
    return model


def compute_as(base: Artifact, model: Any, device: str) -> None:
    """Makes a model with float32 weights compute in bfloat16 if `base.dtype` resolves to it. Under
    quantisation-aware training it computes in float32, because its layers round float32 weights."""
    spec = base.json("base.json")
    if dtype_of(spec["dtype"], device) == torch.bfloat16 and isinstance(spec["quantization"], str):
        compute_in(model, torch.bfloat16)


def save_adapter(model: Any, name: str, folder: Path, target_name: str = ADAPTER, **values: Any) -> None:
    """Writes adapter `name` of a peft model to `folder/target_name`, in peft's format. `values` are passed to
    `save_pretrained`."""
    model.save_pretrained(folder, selected_adapters=[name], **values)
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
    _make_reproducible(target / "adapter_config.json")


def _make_reproducible(file: Path) -> None:
    """Removes what differs between identical runs from peft's config: the order of a set, and the path of the base
    model (a Hub id stays)."""
    config = json.loads(file.read_text(encoding="utf-8"))
    base = config["base_model_name_or_path"]
    if base is not None and Path(base).exists():
        config["base_model_name_or_path"] = None
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
