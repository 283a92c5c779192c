"""Reads from a checkpoint's files, before any weight is loaded, whether it can be trained here, and its context
length.

Nothing here imports torch or transformers, because `tutelage plan` uses it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import StageError

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"

Refusal = tuple[str, str]
"""What is wrong, and what to do about it."""

SCORE_HEAD = re.compile(r"(^|\.)(score|classifier|classification_head|sequence_summary|logits_proj)\.")
"""Matches the names of the weights of a sequence classifier's score head, in all architectures of transformers."""

EXPONENT = {"F64": (8, 0x7FF0), "F32": (4, 0x7F80), "BF16": (2, 0x7F80), "F16": (2, 0x7C00)}
"""safetensors' name of a type -> its size in bytes, and the mask of the exponent in its upper two bytes. A number
whose exponent has all bits set is NaN or infinite."""

CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""Names of the context length, in tokens, in the configs of different architectures."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `StageError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(
            f"{path.name} cannot be read: {error}", where=str(path), hint="download the checkpoint again"
        ) from error
    if not isinstance(content, dict):
        raise StageError(f"{path.name} is not a JSON object", where=str(path), hint="download the checkpoint again")
    return content


def folder_refusal(folder: Path, *, causal: bool = True) -> Refusal | None:
    """Why the checkpoint in a local folder cannot be used; None if its files show no reason.

    Args:
        causal: whether it is to be a causal language model rather than a classifier.
    """
    if (folder / ADAPTER_CONFIG).exists():
        return adapter_refusal(read_json(folder / ADAPTER_CONFIG))
    if not (folder / CONFIG).exists():
        return None
    config = read_json(folder / CONFIG)
    return quantized_refusal(config) or (encoder_decoder_refusal(config) if causal else None)


def adapter_refusal(config: Mapping[str, Any]) -> Refusal:
    """The refusal of an adapter: it is not a whole model, and every role trains its own adapter."""
    kind = config.get("peft_type") or "peft"
    base = config.get("base_model_name_or_path") or "its base"
    return (
        f"it is a {kind} adapter for {base}, not a model",
        f"merge it once and use the merged folder: AutoModelForCausalLM.from_pretrained({str(base)!r}), "
        "peft.PeftModel.from_pretrained(model, ADAPTER).merge_and_unload().save_pretrained(FOLDER), and the "
        "tokenizer into the same folder",
    )


def quantized_refusal(config: Mapping[str, Any]) -> Refusal | None:
    """The refusal of a checkpoint that is quantised on disk: adapters cannot be merged into it, and few formats
    support gradients."""
    quantization = config.get("quantization_config")
    if not quantization:
        return None
    quantization = quantization if isinstance(quantization, Mapping) else {}
    method = str(quantization.get("quant_method") or "unknown")
    if method == "bitsandbytes":
        bits, value = ("8 bits", "int8") if quantization.get("load_in_8bit") else ("4 bits", "nf4")
        return (
            f"its weights are stored in {bits} (bitsandbytes), and adapters trained on them could not be exported",
            f"use the unquantised model, and set base.quantization: {value} to hold it in {bits} while training",
        )
    return (
        f"its weights are stored quantised ({method}), which cannot be trained here",
        "use the unquantised model that it was made from; base.quantization: nf4 or int8 holds it in 4 or 8 bits",
    )


def encoder_decoder_refusal(config: Mapping[str, Any]) -> Refusal | None:
    """The refusal of an encoder-decoder, of which transformers would load the decoder alone, with no input to
    attend to."""
    if not config.get("is_encoder_decoder"):
        return None
    return (
        f"it is an encoder-decoder ({config.get('model_type', 'unknown')}), and only decoders (causal language "
        "models) are supported",
        "use a decoder-only model",
    )


def label_count(config: Mapping[str, Any]) -> int:
    """The number of labels of a sequence classifier; two, as in transformers, if its config does not say."""
    labels = config.get("id2label")
    return int(config.get("num_labels") or (len(labels) if isinstance(labels, Mapping) else 2))


def context_length(config: Mapping[str, Any]) -> int | None:
    """The most tokens that a model can read, from its config.json; None if that does not say.

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


def score_head_refusal(folder: Path) -> Refusal | None:
    """Why a sequence classifier's score head cannot be used; None if its files show no reason. Reads only the
    weights of the head. Raises `StageError` when a file is damaged."""
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        for name, kind, start, end in _tensors(file):
            names.append(name)
            if SCORE_HEAD.search(name) and not _is_finite(file, kind, start, end):
                return (
                    f"weights of its score head are NaN or infinite ({name})",
                    "use another checkpoint: this one was saved from a run that had diverged",
                )
    if names and not any(SCORE_HEAD.search(name) for name in names):
        return (
            f"its files have no trained score head (their first tensor is {min(names)})",
            "use a sequence classifier that was trained to score answers (num_labels=1)",
        )
    return None


def _tensors(file: Path) -> Iterator[tuple[str, str, int, int]]:
    """Name, type, start and end of each tensor in a safetensors file. The file has eight bytes with the header's
    length, the header in JSON, and the data."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length if length < file.stat().st_size else 0))
        places = {name: (at["dtype"], *at["data_offsets"]) for name, at in header.items() if name != "__metadata__"}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise StageError(
            f"{file.name} is not a safetensors file, or is damaged",
            where=str(file),
            hint="download the checkpoint again",
        ) from error
    for name, (kind, start, end) in places.items():
        yield name, kind, 8 + length + start, 8 + length + end


def _is_finite(file: Path, kind: str, start: int, end: int) -> bool:
    if kind not in EXPONENT:
        return True
    size, mask = EXPONENT[kind]
    with file.open("rb") as stream:
        stream.seek(start)
        numbers = stream.read(end - start)
    upper = zip(numbers[size - 2 :: size], numbers[size - 1 :: size], strict=True)
    return not any((low | high << 8) & mask == mask for low, high in upper)
