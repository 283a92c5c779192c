"""A causal LM as a GGUF file, for llama.cpp, Ollama and transformers.

Matrices of the decoder's layers are stored in the file's type, quantised by gguf's own code; embeddings (and an
output matrix of its own) in the same where it is F32 or F16, else in F16; vectors in F32, which is all that
llama.cpp reads. Names come from gguf's table.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, LlamaFileType, get_tensor_name_map
from gguf.quants import quantize
from torch import Tensor

from pipeline.errors import StageError
from stages.export.vocabulary import Vocabulary
from stages.models.loading import load_gguf
from stages.models.text import Codec

ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3}
"""transformers' model type -> gguf's."""

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
"""Type of a file's matrices, by its name in `export.formats`."""

GROUP = 32
"""Weights of a row that share a scale in the quantised types."""


def check(model: Any) -> None:
    """Raises `StageError` when the model does what its GGUF architecture does not, or transformers would read it
    back as another."""
    config = model.config
    kind = config.model_type
    problem = None
    if kind not in ARCHITECTURES:
        problem = f"a {kind} model is not written as GGUF; {', '.join(ARCHITECTURES)} are"
    elif (config.rope_parameters or {}).get("rope_type", "default") != "default":
        problem = f"rotary positions of type {config.rope_parameters['rope_type']} are not written as GGUF"
    elif getattr(config, "mlp_bias", False) or (kind != "qwen2" and getattr(config, "attention_bias", False)):
        problem = "biases of linear layers are not written as GGUF"
    elif getattr(config, "use_sliding_window", False):
        problem = "sliding windows are not written as GGUF"
    elif config.hidden_act != "silu":
        problem = f"llama.cpp computes {kind} with silu, and this model with {config.hidden_act}"
    else:
        names = get_tensor_name_map(ARCHITECTURES[kind], config.num_hidden_layers)
        weights = (name for name, _ in model.named_parameters())
        unknown = next((name for name in weights if names.get_name(name, (".weight", ".bias")) is None), None)
        problem = f"gguf has no name for {unknown}" if unknown else None
    if problem:
        raise StageError(problem, where=type(model).__name__, hint="leave the gguf formats out of export.formats")


def write(
    model: Any,
    codec: Codec,
    path: Path,
    kind: str,
    *,
    name: str,
    on_tensor: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Writes `model` to `path`; returns how many matrices are stored in which type.

    Args:
        model: a plain causal LM; its matrices are taken as float32.
        kind: a key of `TYPES`.
        name: what the file calls the model.
        on_tensor: called after each tensor, of which there are as many as in `tensors(model)`.

    Raises `StageError` when the architecture, or the tokenizer, cannot be written.
    """
    check(model)
    embedded = model.get_input_embeddings().weight.shape[0]
    vocabulary = Vocabulary.of(codec.tokenizer, embedded)
    stored, file_type = TYPES[kind]
    architecture = ARCHITECTURES[model.config.model_type]
    writer = GGUFWriter(path, model.config.model_type)
    writer.add_name(name)
    writer.add_file_type(file_type)
    _hyperparameters(writer, model.config)
    vocabulary.write(writer, codec.tokenizer, codec.end_id)
    if stored not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        writer.add_quantization_version(2)
    names = get_tensor_name_map(architecture, model.config.num_hidden_layers)
    counts: dict[str, int] = {}
    for own, tensor in tensors(model):
        theirs = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise StageError(f"gguf has no name for {own}", where=type(model).__name__)
        if model.config.model_type == "llama":
            tensor = permuted(own, tensor, model.config)
        array = tensor.detach().cpu().float().numpy()
        held = _type_of(own, array, stored)
        counts[held.name] = counts.get(held.name, 0) + 1
        writer.add_tensor(theirs, quantize(array, held), raw_dtype=held)
        on_tensor()
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return counts


def tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a GGUF file, under the model's names; not an output matrix tied to the embedding."""
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            yield name, tensor


def permuted(name: str, weight: Tensor, config: Any) -> Tensor:
    """Rows of Llama's query and key matrices in the order of llama.cpp, which rotates neighbouring pairs where
    transformers rotates halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if f".{part}." in name:
            return weight.view(count, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    return weight


def is_quantised(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a matrix of the decoder's layers, of rows that blocks of 32 fill."""
    return ".layers." in name and len(shape) == 2 and shape[1] % GROUP == 0


def _type_of(name: str, array: np.ndarray, stored: GGMLQuantizationType) -> GGMLQuantizationType:
    if array.ndim == 1:
        return GGMLQuantizationType.F32
    if stored in (GGMLQuantizationType.F32, GGMLQuantizationType.F16) or is_quantised(name, array.shape):
        return stored
    return GGMLQuantizationType.F16


def _hyperparameters(writer: GGUFWriter, config: Any) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def reload(path: Path, device: str) -> Any:
    """The file as transformers reads it: a plain model in float32, dequantised. Frozen."""
    # The bar of its own that transformers shows, whatever it was told, goes to stderr.
    with contextlib.redirect_stderr(io.StringIO()):
        model: Any = load_gguf(path)
    return model.to(device).requires_grad_(False).eval()
