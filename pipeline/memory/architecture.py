"""A decoder's architecture, from its config.json: which weights it has, and how wide its tensors are.

Exact for Llama-like models (pre-norm, rotary positions, grouped queries, gated MLP: Llama, Mistral, Qwen2, Qwen3,
SmolLM). Other dense decoders are planned as if they were Llama-like, and `approximate` is set; mixtures of experts
are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RecipeError

GATED = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gguf")
"""Model types that are counted exactly."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number, by the name of its type."""

NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
}
"""GPT-2's name of a value -> the name that other models use."""


@dataclass(frozen=True)
class Matrix:
    """A linear layer of each block: its name there, and its input and output widths."""

    name: str
    inputs: int
    outputs: int

    @property
    def size(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The dimensions of a model, by the names of transformers' configs.

    Attributes:
        attention_bias: bias elements per block of the query, key and value projections (Qwen2).
        qk_norm: whether queries and keys are normalised head by head (Qwen3).
        approximate: whether the model is not one of `GATED` and is counted as if it were.
        stored_bytes: bytes of a weight in the checkpoint.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool = True
    attention_bias: int = 0
    qk_norm: bool = False
    approximate: bool = False
    stored_bytes: float = 4

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> Architecture:
        """Reads the content of a config.json. Raises `RecipeError` when a value is missing, or for a mixture of
        experts."""
        config = config.get("text_config") or config
        values = {NAMES.get(name, name): value for name, value in config.items()}
        if any(values.get(name) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise RecipeError("the memory plan does not support mixtures of experts", where=where)
        needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        if missing := [name for name in needed if not isinstance(values.get(name), int)]:
            raise RecipeError(
                f"the memory plan needs {', '.join(missing)}", where=where, hint="set base.architecture"
            )
        kind, hidden = str(values.get("model_type", "llama")), values["hidden_size"]
        heads = values["num_attention_heads"]
        kv_heads = values.get("num_key_value_heads") or heads
        width = values.get("head_dim") or hidden // heads
        biased = values.get("attention_bias", kind == "qwen2")
        return cls(
            vocab_size=values["vocab_size"],
            hidden_size=hidden,
            intermediate_size=values.get("intermediate_size") or 4 * hidden,
            num_hidden_layers=values["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=width,
            tie_word_embeddings=values.get("tie_word_embeddings", kind != "mistral"),
            attention_bias=(heads + 2 * kv_heads) * width if biased else 0,
            qk_norm=kind == "qwen3",
            approximate=kind not in GATED,
            stored_bytes=BYTES.get(str(values.get("dtype") or values.get("torch_dtype")), 4),
        )

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads together; value heads have the same width."""
        return self.num_key_value_heads * self.head_dim

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The linear layers of one block."""
        hidden, wide = self.hidden_size, self.intermediate_size
        return (
            Matrix("self_attn.q_proj", hidden, self.queries),
            Matrix("self_attn.k_proj", hidden, self.keys),
            Matrix("self_attn.v_proj", hidden, self.keys),
            Matrix("self_attn.o_proj", self.queries, hidden),
            Matrix("mlp.gate_proj", hidden, wide),
            Matrix("mlp.up_proj", hidden, wide),
            Matrix("mlp.down_proj", wide, hidden),
        )

    @property
    def linear(self) -> int:
        """Weights in the linear layers of all blocks: those that are quantised, and that every token passes
        through."""
        return self.num_hidden_layers * sum(matrix.size for matrix in self.matrices)

    @property
    def embedding(self) -> int:
        """Elements of the embedding; the language-model head has the same number."""
        return self.vocab_size * self.hidden_size

    @property
    def rest(self) -> int:
        """Weights that stay in 16 or 32 bits beside quantised layers: embeddings, head, norms, biases."""
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        heads = 1 if self.tie_word_embeddings else 2
        return heads * self.embedding + self.num_hidden_layers * (norms + self.attention_bias) + self.hidden_size

    @property
    def parameters(self) -> int:
        return self.linear + self.rest

    def lora(self, r: int, targets: str | Sequence[str]) -> int:
        """Elements of one LoRA adapter: r x (in + out) for each layer it adapts."""
        chosen = self.targeted(targets)
        return self.num_hidden_layers * r * sum(m.inputs + m.outputs for m in self.matrices if m.name in chosen)

    def targeted(self, targets: str | Sequence[str]) -> set[str]:
        """The matrices that peft's `target_modules` names: all-linear, a pattern of whole names, or their ends."""
        names = [matrix.name for matrix in self.matrices]
        if targets == "all-linear":
            return set(names)
        if isinstance(targets, str):
            return {name for name in names if re.fullmatch(targets, f"model.layers.0.{name}")}
        return {name for name in names if any(f".{name}".endswith(f".{target}") for target in targets)}
