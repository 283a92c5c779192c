"""Writes the policy as checkpoints for plain transformers and peft: merged, quantised, or adapter and base."""

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
"""The folder of the base next to an adapter, for a base that is not on the Hub."""

TORCHAO = {f"torchao_int{bits}": f"int{bits}" for bits in (2, 3, 4, 8)}


def merged_policy(base: Artifact, policy: Artifact, device: str) -> Any:
    """The policy as a single float32 model on the CPU, with its adapter merged. Merging in 16 bits would round
    small adapters away, and would differ from the weights that quantisation-aware training rounds. After such
    training the model still rounds on the fly, until `qat.settle` rounds the weights. A base in 4 or 8 bits is
    dequantised.

    The base is loaded on `device`, because quantisation at load time differs between devices. It is merged on the
    CPU, whose memory holds a float32 copy.
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
    """Writes `folder/adapter` and, unless the base is on the Hub, `folder/base`: the base as in training, quantised
    or not, with a generation config that stops at `stop_ids`. `reload_adapter` loads the two."""
    spec = base.json("base.json")
    model = attach_adapter(load_backbone(base, device), policy.file(ADAPTER))
    save_adapter(model, "default", folder)
    if _on_hub(spec):
        return
    backbone = load_backbone(base, device)
    backbone.generation_config.eos_token_id = sorted(stop_ids)
    backbone.save_pretrained(folder / BASE)


def reload_adapter(folder: Path, base: Artifact, device: str) -> Any:
    """Loads the adapter and its base as written, through plain transformers and peft."""
    spec = base.json("base.json")
    backbone: Any = load_backbone(base, device) if _on_hub(spec) else reload(folder / BASE, device)
    return attach_adapter(backbone, folder / ADAPTER).requires_grad_(False).eval()


def _on_hub(spec: dict[str, Any]) -> bool:
    return spec["model"] is not None and not Path(spec["model"]).exists()


def save_nf4(source: Path, folder: Path, dtype: str) -> None:
    """Quantises the float32 checkpoint `source` to NF4 with double quantisation, and writes it packed."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype_of(dtype, "cpu"),
    )
    _save_quantised(source, folder, config, dtype)


def save_torchao(source: Path, folder: Path, kind: str, dtype: str) -> None:
    """Quantises the float32 checkpoint `source` with torchao to symmetric integers in groups of 32, and writes it.
    torchao 0.18 stores integers of any width in one byte each."""
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    config = TorchAoConfig(
        IntxWeightOnlyConfig(weight_dtype=getattr(torch, TORCHAO[kind]), granularity=PerGroup(BLOCKS[kind]))
    )
    _save_quantised(source, folder, config, dtype)


def check(model: Any, kind: str) -> None:
    """Raises `StageError` if the quantised format `kind` cannot store the model's linear layers, or its library is
    missing."""
    check_rows(model, kind)
    if kind in TORCHAO and importlib.util.find_spec("torchao") is None:
        raise StageError(
            "the torchao formats require torchao, which is not installed",
            where="export.formats",
            hint='install it: pip install "tutelage[torchao]"',
        )


def check_rows(model: Any, kind: str) -> None:
    """Raises `StageError` if the row length of a linear layer is not a multiple of the format's block size."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head and module.in_features % BLOCKS[kind]:
            raise StageError(
                f"{kind} stores rows in blocks of {BLOCKS[kind]} weights, but rows of {name} have "
                f"{module.in_features}",
                where="export.formats",
                hint=f"remove {kind} from export.formats",
            )


def _save_quantised(source: Path, folder: Path, config: Any, dtype: str) -> None:
    """Quantises on the CPU on every device: bitsandbytes' CUDA kernel rounds 0.2 % of the weights differently
    (docs/gpu.md), and quantisation-aware training uses the CPU's grid."""
    model: Any = load_pretrained(
        AutoModelForCausalLM,
        source,
        quantization_config=config,
        dtype=dtype_of(dtype, "cpu"),
        device_map={"": "cpu"},
    )
    model.save_pretrained(folder)


def reload(folder: Path, device: str) -> Any:
    """Loads a checkpoint as a user would, with the settings stored in it. Frozen."""
    model: Any = load_pretrained(AutoModelForCausalLM, folder, dtype="auto", device_map={"": device})
    keep_layout(model)
    return model.requires_grad_(False).eval()
