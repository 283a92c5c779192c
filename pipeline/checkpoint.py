"""What a checkpoint's files say before a weight is read: whether it can be trained here, and its context length.

Nothing here imports torch or transformers: `tutelage plan` asks too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import StageError

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"

Refusal = tuple[str, str]
"""What is wrong, and what to do about it."""

CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""Names of the context length, in tokens, in the configs of different architectures."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `StageError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(
            f"{path.name} cannot be read: {error}", where=str(path), mend="fetch the checkpoint again"
        ) from error
    if not isinstance(found, dict):
        raise StageError(f"{path.name} holds no object", where=str(path), mend="fetch the checkpoint again")
    return found


def folder_refusal(folder: Path, *, causal: bool = True) -> Refusal | None:
    """Why the checkpoint in a local folder cannot be used, as a causal language model or else a classifier; None
    where its files do not tell."""
    if (folder / ADAPTER_CONFIG).exists():
        return adapter_refusal(read_json(folder / ADAPTER_CONFIG))
    if not (folder / CONFIG).exists():
        return None
    config = read_json(folder / CONFIG)
    return quantized_refusal(config) or (encoder_decoder_refusal(config) if causal else None)


def adapter_refusal(config: Mapping[str, Any]) -> Refusal:
    """An adapter is a difference to a model, and the roles bring adapters of their own."""
    kind = config.get("peft_type") or "peft"
    base = config.get("base_model_name_or_path") or "its base"
    return (
        f"it is a {kind} adapter for {base}, not a model",
        f"merge it once and name the merged folder: AutoModelForCausalLM.from_pretrained({str(base)!r}), "
        "peft.PeftModel.from_pretrained(model, ADAPTER).merge_and_unload().save_pretrained(FOLDER), and the "
        "tokenizer into the same folder",
    )


def quantized_refusal(config: Mapping[str, Any]) -> Refusal | None:
    """A checkpoint that is quantised on disk: nothing can be merged into it, and few formats have gradients."""
    found = config.get("quantization_config")
    if not found:
        return None
    found = found if isinstance(found, Mapping) else {}
    method = str(found.get("quant_method") or "unknown")
    if method == "bitsandbytes":
        bits, value = ("8 bits", "int8") if found.get("load_in_8bit") else ("4 bits", "nf4")
        return (
            f"its weights are stored in {bits} (bitsandbytes), and adapters trained on them could not be exported",
            f"name the unquantised model, and set base.quantization: {value} to hold it so while training",
        )
    return (
        f"its weights are stored quantised ({method}), which cannot be trained here",
        "name the unquantised model that it was made from; base.quantization: nf4 or int8 holds it in 4 or 8 bits",
    )


def encoder_decoder_refusal(config: Mapping[str, Any]) -> Refusal | None:
    """Of an encoder-decoder, transformers would load the decoder alone, with no input to attend to."""
    if not config.get("is_encoder_decoder"):
        return None
    return (
        f"it is an encoder-decoder ({config.get('model_type', 'unknown')}), and only decoders (causal language "
        "models) are trained here",
        "use a decoder-only model",
    )


def label_count(config: Mapping[str, Any]) -> int:
    """Labels of a sequence classifier. A config that says nothing has transformers' default of two."""
    labels = config.get("id2label")
    return int(config.get("num_labels") or (len(labels) if isinstance(labels, Mapping) else 2))


def context_length(config: Mapping[str, Any]) -> int | None:
    """The most tokens that a model can read, from its config.json; None when that does not say.

    Position interpolation ("linear", "dynamic") and YaRN extend it by their factor; other kinds of scaled rotary
    positions state the extended length itself.
    """
    config = config.get("text_config") or config
    length: int | None = next((config[name] for name in CONTEXT if isinstance(config.get(name), int)), None)
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    if length is None or not isinstance(scaling, Mapping):
        return length
    kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
    if kind in ("linear", "dynamic", "yarn") and isinstance(factor, int | float):
        original = scaling.get("original_max_position_embeddings")
        if original is not None or kind != "yarn":
            return max(length, int(factor * (original or length)))
    return length
