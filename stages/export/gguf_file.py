"""Writes a causal LM as a GGUF file, for llama.cpp, Ollama and transformers.

Matrices of the decoder's layers are stored in the file's type, quantised by the gguf package. Embeddings and an
untied output matrix are stored in the file's type if that is F32 or F16, else in F16. Vectors are stored in F32,
the only type that llama.cpp reads for them. Tensor names come from gguf's table.
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
"""transformers' model type -> gguf's architecture."""

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
"""Suffix in `export.formats` -> type of the matrices, and file type."""

GROUP = 32
"""Weights per scale in the quantised types."""


def check(model: Any) -> None:
    """Raises `StageError` if the model uses a feature that its GGUF architecture lacks, or that transformers does
    not restore from GGUF."""
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
        problem = f"llama.cpp computes {kind} with silu, but this model uses {config.hidden_act}"
    else:
        names = get_tensor_name_map(ARCHITECTURES[kind], config.num_hidden_layers)
        weights = (name for name, _ in model.named_parameters())
        unknown = next((name for name in weights if names.get_name(name, (".weight", ".bias")) is None), None)
        problem = f"gguf has no name for {unknown}" if unknown else None
    if problem:
        raise StageError(problem, where=type(model).__name__, hint="remove the gguf formats from export.formats")


def write(
    model: Any,
    codec: Codec,
    path: Path,
    kind: str,
    *,
    name: str,
    on_tensor: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Writes `model` to `path`. Returns the number of tensors per stored type.

    Args:
        model: a plain causal LM; its tensors are converted to float32 first.
        kind: a key of `TYPES`.
        name: the model's name in the file.
        on_tensor: called after each tensor of `tensors(model)`.

    Raises `StageError` if the architecture or the tokenizer cannot be written.
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
    for tensor_name, tensor in tensors(model):
        gguf_name = names.get_name(tensor_name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise StageError(f"gguf has no name for {tensor_name}", where=type(model).__name__)
        if model.config.model_type == "llama":
            tensor = permuted(tensor_name, tensor, model.config)
        array = tensor.detach().cpu().float().numpy()
        dtype = _type_of(tensor_name, array, stored)
        counts[dtype.name] = counts.get(dtype.name, 0) + 1
        writer.add_tensor(gguf_name, quantize(array, dtype), raw_dtype=dtype)
        on_tensor()
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return counts


def tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a GGUF file stores, by the model's names: all but an output matrix tied to the embedding."""
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            yield name, tensor


def permuted(name: str, weight: Tensor, config: Any) -> Tensor:
    """Reorders rows of Llama's query and key matrices for llama.cpp, which rotates adjacent pairs where
    transformers rotates halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if f".{part}." in name:
            return weight.view(count, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    return weight


def is_quantised(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a matrix of the decoder's layers whose row length is a multiple of `GROUP`."""
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
    """Loads the file with transformers: a plain model, dequantised to float32. Frozen."""
    # Discards stderr, to which transformers prints a progress bar that cannot be disabled.
    with contextlib.redirect_stderr(io.StringIO()):
        model: Any = load_gguf(path)
    return model.to(device).requires_grad_(False).eval()
