"""Models of real shapes with random weights, and what a card could do at best, for `benchmarks/gpu.py`.

Without CUDA every shape is replaced by a tiny one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from stages.models.bank import ActorBank, FullBank
from stages.models.heads import ScalarHead
from stages.models.loading import keep_layout
from stages.models.precision import compute_in

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"

ONE: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    "max_position_embeddings": 4096, "initializer_range": 0.02,
}  # fmt: skip
"""The shape of Llama-3.2-1B."""
EIGHT = ONE | {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128,
    "tie_word_embeddings": False,
}  # fmt: skip
"""The shape of Llama-3.1-8B."""
HALF = ONE | {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2,
}  # fmt: skip
"""The shape of Qwen2.5-0.5B."""
ONE_AND_A_HALF = HALF | {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "head_dim": 128,
}  # fmt: skip
"""The shape of Qwen2.5-1.5B."""
TINY = ONE | {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def shape(values: dict[str, Any]) -> dict[str, Any]:
    return values if CUDA else TINY


def model(values: dict[str, Any], kind: Any = LlamaConfig, dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    with torch.device(DEVICE):
        lm: Any = AutoModelForCausalLM.from_config(kind(**shape(values)), dtype=dtype)
    return lm.eval().requires_grad_(False)


def in_nf4(lm: Any) -> Any:
    """The model with the linear layers of its blocks in NF4 with double quantisation, as `base.quantization: nf4`
    loads a checkpoint."""
    import bitsandbytes as bnb

    for name, layer in list(lm.named_modules()):
        if type(layer) is not torch.nn.Linear or name == "lm_head":
            continue
        packed = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
        )
        weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        packed.weight = weight.to(DEVICE)
        parent, _, part = name.rpartition(".")
        setattr(lm.get_submodule(parent), part, packed)
    keep_layout(lm)
    return lm


def bank(lm: Any, roles: Sequence[str] = ("reference", "policy"), *, value: str = "policy") -> ActorBank:
    """A bank of roles with random adapters; policy and reference are equal. `value` is the role with the value
    head, which is trained too."""

    def lora() -> LoraConfig:
        return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")

    wrapped = get_peft_model(lm, lora(), adapter_name=roles[0])
    for role in roles[1:]:
        wrapped.add_adapter(role, lora())
    generator = torch.Generator().manual_seed(1)
    drawn: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                key = name.replace(".reference.", ".policy.")
                if key not in drawn:
                    drawn[key] = torch.randn(parameter.shape, generator=generator) * 0.01
                parameter.copy_(drawn[key])
    width = lm.config.hidden_size
    heads = {role: ScalarHead(width).to(DEVICE) for role in {value, *roles} & {value, "reward"}}
    return ActorBank(wrapped.to(DEVICE), heads, sorted({"policy", value}))


def full_bank(values: dict[str, Any]) -> FullBank:
    """Three fully fine-tuned models with float32 weights that compute in bfloat16."""
    models = {role: model(values, dtype=torch.float32) for role in ("reference", "policy", "reward")}
    for lm in models.values():
        compute_in(lm, torch.bfloat16)
    width = models["policy"].config.hidden_size
    heads = {role: ScalarHead(width).to(DEVICE) for role in ("policy", "reward")}
    return FullBank(models, heads, ["policy"])


@cache
def bandwidth() -> float:
    """Bytes per second that the device's memory reads and writes, from one large copy."""
    source = torch.empty(2**28 if CUDA else 2**20, dtype=torch.float32, device=DEVICE).zero_()
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        if CUDA:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def step_floor(lm: Any, rows: int, length: float) -> float:
    """Seconds that one decoding step of `rows` rows needs to read all weights once, and the cache at this mean
    length."""
    config = lm.config
    weights = sum(parameter.nbytes for parameter in lm.parameters())
    if not config.tie_word_embeddings:  # of the embedding, only the rows' tokens are read
        weights -= lm.get_input_embeddings().weight.nbytes
    cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * rows * length
    return (weights + cache) / bandwidth()
