"""What a checkpoint's files say before a weight is read: whether it can be trained here, and its context length.

Nothing here imports torch or transformers: `tutelage plan` asks too.
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
"""In the name of each weight of what gives a sequence classifier's scores, in all architectures of transformers."""

EXPONENT = {"F64": (8, 0x7FF0), "F32": (4, 0x7F80), "BF16": (2, 0x7F80), "F16": (2, 0x7C00)}
"""By safetensors' name of a type: its size in bytes, and the exponent's bits in the upper two of them. A
number whose exponent has all bits set is NaN or infinite."""

CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""Names of the context length, in tokens, in the configs of different architectures."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `StageError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(
            f"{path.name} cannot be read: {error}", where=str(path), hint="fetch the checkpoint again"
        ) from error
    if not isinstance(found, dict):
        raise StageError(f"{path.name} holds no object", where=str(path), hint="fetch the checkpoint again")
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


def score_head_refusal(folder: Path) -> Refusal | None:
    """Why a sequence classifier's score head cannot be used; None where its files do not tell. Reads the head's
    numbers and no others. Raises `StageError` when a file is damaged."""
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        for name, kind, start, end in _tensors(file):
            names.append(name)
            if SCORE_HEAD.search(name) and not _is_finite(file, kind, start, end):
                return (
                    f"weights of its score head are NaN or infinite ({name})",
                    "use another: it was saved from a run that had diverged",
                )
    if names and not any(SCORE_HEAD.search(name) for name in names):
        return (
            f"its files hold no trained score head (their first tensor is {min(names)})",
            "use a sequence classifier that was trained to score answers (num_labels=1)",
        )
    return None


def _tensors(file: Path) -> Iterator[tuple[str, str, int, int]]:
    """Name, type and place in the file of each tensor in a safetensors file: eight bytes with the header's length,
    the header in JSON, the numbers."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length if length < file.stat().st_size else 0))
        places = {name: (at["dtype"], *at["data_offsets"]) for name, at in header.items() if name != "__metadata__"}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise StageError(
            f"{file.name} is no safetensors file, or a damaged one",
            where=str(file),
            hint="fetch the checkpoint again",
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
