"""The policy as checkpoints that plain transformers and peft reload: merged, quantised, or adapter beside base."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pipeline.config.fit import BLOCKS
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models.adapters import ADAPTER, attach_adapter, is_adapter, load_policy, save_adapter
from stages.models.loading import dtype_of, keep_layout, load_backbone, load_pretrained

BASE = "base"
"""The folder of the base beside an adapter, when no Hub id says where it is."""

TORCHAO = {f"torchao_int{bits}": f"int{bits}" for bits in (2, 3, 4, 8)}


def merged_policy(base: Artifact, policy: Artifact, device: str) -> Any:
    """The policy as one model in float32 on the CPU, its adapter merged: a sum in 16 bits would lose small
    adapters, and not be what quantisation-aware training rounds. After such training the model still computes on
    its grid, until `qat.settle` writes that into the weights. A base held in 4 or 8 bits is dequantised.

    Loaded on `device`, because what a base is rounded to when it is loaded differs between devices; merged on the
    CPU, where a float32 copy has room.
    """
    if is_adapter(policy) and base.json("base.json")["quantization"] in ("nf4", "int8"):
        backbone: Any = load_backbone(base, device)
        backbone = backbone.dequantize().to("cpu").float()
        model: Any = attach_adapter(backbone, policy.file(ADAPTER))
    else:
        model = load_policy(base, policy, device).to("cpu").float()
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    return model.requires_grad_(False).eval()


def save_adapter_beside_base(
    base: Artifact, policy: Artifact, folder: Path, device: str, stop_ids: Collection[int]
) -> None:
    """Writes `folder/adapter` and, unless the base is on the Hub, `folder/base`: the base as it was in training,
    quantised or not, with a generation config that stops at `stop_ids`. `reload_adapter` says how the two are put
    together."""
    spec = base.json("base.json")
    model = attach_adapter(load_backbone(base, device), policy.file(ADAPTER))
    save_adapter(model, "default", folder)
    if _on_hub(spec):
        return
    backbone = load_backbone(base, device)
    backbone.generation_config.eos_token_id = sorted(stop_ids)
    backbone.save_pretrained(folder / BASE)


def reload_adapter(folder: Path, base: Artifact, device: str) -> Any:
    """The adapter on its base, both as written, through plain transformers and peft."""
    spec = base.json("base.json")
    backbone: Any = load_backbone(base, device) if _on_hub(spec) else reload(folder / BASE, device)
    return attach_adapter(backbone, folder / ADAPTER).requires_grad_(False).eval()


def _on_hub(spec: dict[str, Any]) -> bool:
    return spec["model"] is not None and not Path(spec["model"]).exists()


def save_nf4(source: Path, folder: Path, dtype: str) -> None:
    """Quantises the float32 checkpoint `source` to NF4 with double quantisation and writes it, packed."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype_of(dtype, "cpu"),
    )
    _save_quantised(source, folder, config, dtype)


def save_torchao(source: Path, folder: Path, kind: str, dtype: str) -> None:
    """Quantises the float32 checkpoint `source` to symmetric integers in groups of 32, by torchao, and writes it.
    torchao 0.18 stores integers of any width in a byte each."""
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    config = TorchAoConfig(
        IntxWeightOnlyConfig(weight_dtype=getattr(torch, TORCHAO[kind]), granularity=PerGroup(BLOCKS[kind]))
    )
    _save_quantised(source, folder, config, dtype)


def check(model: Any, kind: str) -> None:
    """Raises `StageError` when the quantised format `kind` cannot hold the model's linear layers, or its library is
    missing."""
    check_rows(model, kind)
    if kind in TORCHAO and importlib.util.find_spec("torchao") is None:
        raise StageError(
            "the torchao formats need torchao, which is not installed",
            where="export.formats",
            hint='install it: pip install "tutelage[torchao]"',
        )


def check_rows(model: Any, kind: str) -> None:
    """Raises `StageError` when rows of the model's linear layers are no whole numbers of the format's blocks."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head and module.in_features % BLOCKS[kind]:
            raise StageError(
                f"{kind} stores rows in blocks of {BLOCKS[kind]}, and those of {name} have {module.in_features} "
                "weights",
                where="export.formats",
                hint=f"leave {kind} out",
            )


def _save_quantised(source: Path, folder: Path, config: Any, dtype: str) -> None:
    """On the CPU, whatever the run's device: bitsandbytes' CUDA kernel rounds 0.2 % of the weights elsewhere
    (docs/gpu.md), and the grid of quantisation-aware training is the CPU's."""
    model: Any = load_pretrained(
        AutoModelForCausalLM,
        source,
        quantization_config=config,
        dtype=dtype_of(dtype, "cpu"),
        device_map={"": "cpu"},
    )
    model.save_pretrained(folder)


def reload(folder: Path, device: str) -> Any:
    """A checkpoint as anybody loads it: what it holds says how."""
    model: Any = load_pretrained(AutoModelForCausalLM, folder, dtype="auto", device_map={"": device})
    keep_layout(model)
    return model.requires_grad_(False).eval()
