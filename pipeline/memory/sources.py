"""Reads a model's architecture before any weight: from the recipe, a local folder, a GGUF header or the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline import network
from pipeline.config.base import BaseConfig
from pipeline.config.run_base import source_of
from pipeline.errors import RecipeError
from pipeline.memory.architecture import Architecture

CONFIG = "config.json"
HINT = "set base.architecture, or continue without a memory plan"


def architecture_of(base: BaseConfig) -> Architecture:
    """The architecture of the recipe's model. For a Hub model its config.json is fetched, into the Hub's own cache.
    Raises `RecipeError` when it cannot be read."""
    if base.pretrain is not None:
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        numbers: dict[str, Any] = {name: getattr(base.pretrain, name) for name in names}
        return Architecture.from_config({**numbers, "tie_word_embeddings": True}, "base.pretrain")
    if base.architecture is not None:
        return Architecture.from_config(vars(base.architecture) | {"dtype": "bfloat16"}, "base.architecture")
    model, revision = source_of(base)
    assert model is not None
    path = Path(model)
    if path.is_file():
        return _gguf(path)
    if path.is_dir():
        return _read(path / CONFIG)
    return _read(_fetch(model, revision))


def _read(path: Path) -> Architecture:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read the model's architecture: {error}", where=str(path), hint=HINT) from None
    return Architecture.from_config(config, str(path))


def _fetch(model: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    try:  # a path that does not exist is no valid id either
        cached = try_to_load_from_cache(model, CONFIG, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        with network.hub(f"{CONFIG} of {model}", where="base.model", offline=network.local_model(model)):
            return Path(hf_hub_download(model, CONFIG, revision=revision, etag_timeout=5))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"cannot fetch {CONFIG} of {model}: {reason}", where="base.model", hint=HINT) from None


def _gguf(path: Path) -> Architecture:
    """Reads the header only, not the tensors."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise RecipeError(f"cannot read the GGUF header: {error}", where=str(path), hint=HINT) from None

    def value(name: str) -> Any:
        field = reader.get_field(name)
        return None if field is None else field.contents()

    kind = value("general.architecture")
    names = {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "intermediate_size": "feed_forward_length",
        "head_dim": "attention.key_length",
        "num_experts": "expert_count",
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    numbers = {name: value(f"{kind}.{gguf_name}") for name, gguf_name in names.items()}
    numbers["vocab_size"] = int(tensors["token_embd.weight"].shape[-1]) if "token_embd.weight" in tensors else None
    return Architecture.from_config(
        {
            **{name: number for name, number in numbers.items() if number is not None},
            "model_type": kind,
            "attention_bias": "blk.0.attn_q.bias" in tensors,
            "tie_word_embeddings": "output.weight" not in tensors,
            "dtype": "float32",  # as it is dequantised
        },
        str(path),
    )
