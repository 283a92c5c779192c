"""Loads the language model and tokenizer of a `base` artifact onto a device, in 32, 16, 8 or 4 bits."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from pipeline import network
from pipeline.config.checkpoint import (
    Refusal,
    adapter_refusal,
    encoder_decoder_refusal,
    quantized_refusal,
    read_json,
)
from pipeline.config.rules import is_hub_id
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError, TutelageError
from stages.models import weights
from stages.models.quantization import grids, qat

# The stages report progress themselves; transformers' bars per weight file would break up their display.
transformers_logging.disable_progress_bar()


def dtype_of(name: str, device: str) -> torch.dtype:
    """The dtype of a `base.dtype` value. `auto` is bfloat16 on a GPU with native support, float32 elsewhere. It is
    never float16, whose range is too narrow for the weights of some models."""
    if name == "auto":
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def computes_in_bfloat16(device: str) -> bool:
    """Whether a GPU has bfloat16 instructions. Older GPUs (Turing, Volta) emulate it, many times slower than they
    compute in float32."""
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def describe_dtype(name: str, device: str) -> str:
    """One line for the user: the precision that `base.dtype` resolves to on a device, or a warning if the GPU
    emulates it."""
    resolved = str(dtype_of(name, device)).removeprefix("torch.")
    if device == "cuda" and not computes_in_bfloat16(device):
        card = torch.cuda.get_device_name()
        if name == "auto":
            return f"computing in float32: {card} does not compute in bfloat16 (with LoRA, float16 is faster there)"
        if name == "bfloat16":
            return (
                f"warning: {card} does not compute in bfloat16 and emulates it slowly; "
                "set base.dtype to auto (float32) or, with LoRA, float16"
            )
    return f"computing in {resolved}"


def load_tokenizer(base: Artifact) -> Any:
    """The tokenizer of a `base` artifact, with its chat template."""
    return read_tokenizer(base.file("tokenizer"))


def read_tokenizer(source: str | Path, revision: str | None = None, **values: Any) -> Any:
    """The tokenizer of a Hub id or a folder. Code that comes with it is never run.

    Args:
        values: passed to `AutoTokenizer.from_pretrained`.

    Raises `StageError` when it cannot be loaded.
    """
    with readable_checkpoint(source, "tokenizer"):
        return AutoTokenizer.from_pretrained(source, revision=revision or "main", trust_remote_code=False, **values)


def load_pretrained(
    auto: Any,
    source: str | Path,
    *,
    revision: str | None = None,
    new_head: bool = False,
    **values: Any,
) -> Any:
    """`auto.from_pretrained`, with a check that the model has exactly the weights of the checkpoint. All models are
    loaded with it.

    Args:
        auto: an `AutoModelFor...` class.
        source: a Hub id or a folder.
        new_head: the head is about to be trained: the checkpoint may lack its weights, or hold those of another
            head.
        values: passed to `from_pretrained`.

    Raises `StageError` when the checkpoint cannot be read, needs custom code, or does not match the model.
    """
    with readable_checkpoint(source):
        model, info = auto.from_pretrained(
            source,
            revision=revision or "main",
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # check_loaded reports them by name
            output_loading_info=True,
            **values,
        )
    where = Path(source, values["gguf_file"]) if "gguf_file" in values else source
    weights.check_loaded(
        info, where, ignored=partial(_of_head, model) if new_head else None, head=output_name(model)
    )
    return model


def _of_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight of the model or the checkpoint lies outside the trunk. A pooler, which pretrained encoders
    often lack, counts as part of the head."""
    trunk: Any = model.base_model
    part = name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    return part == "pooler" or not hasattr(trunk, part)


def output_name(model: Any) -> str:
    """Name of the output layer (the module that computes the logits); empty if the model has none."""
    output = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if output is not None and module is output), "")


def load_gguf(path: Path) -> Any:
    """The model of a GGUF file, dequantised to float32."""
    from transformers import GgufConfig

    return load_pretrained(
        AutoModelForCausalLM,
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(gguf_file=path.name, dequantize=True),
    )


def check_trainable(source: str | Path, revision: str | None = None, *, causal: bool = True) -> None:
    """Checks a checkpoint's config files, without reading its weights.

    Raises `StageError` for an adapter, quantised weights, an architecture that transformers does not support and,
    if `causal`, an encoder-decoder.
    """
    if Path(source).is_file():
        raise StageError(
            "the checkpoint cannot be used: it is a file, not a folder",
            where=str(source),
            hint="give the folder that contains it (only a .gguf file can be used on its own)",
        )
    with readable_checkpoint(source):
        adapter = find_adapter_config_file(str(source), revision=revision or "main")
        if adapter is None:
            config, _ = PreTrainedConfig.get_config_dict(source, revision=revision or "main")
            config = config if isinstance(config, dict) else {}
    refusal: Refusal | None
    if adapter is not None:
        refusal = adapter_refusal(read_json(Path(adapter)))
    else:
        refusal = (
            quantized_refusal(config)
            or _architecture_refusal(config)
            or (encoder_decoder_refusal(config) if causal else None)
        )
    if refusal is not None:
        what, hint = refusal
        raise StageError(f"the checkpoint cannot be used: {what}", where=str(source), hint=hint)


def _architecture_refusal(config: dict[str, Any]) -> Refusal | None:
    kind = config.get("model_type")
    if kind in CONFIG_MAPPING:
        return None
    if kind is None:
        return (
            "it has no config.json with a model_type",
            "give the folder that contains config.json and the weights",
        )
    if config.get("auto_map"):
        return (
            f"its architecture ({kind}) needs code from the checkpoint, which is never run here",
            "use a model whose architecture is part of transformers",
        )
    return (
        f"this version of transformers does not know its architecture ({kind})",
        "upgrade transformers to a version that supports it, or use another model",
    )


def weights_of(base: Artifact) -> tuple[str, str | None]:
    """The folder or Hub id of the weights of a `base` artifact, and the commit of a Hub id."""
    spec = base.json("base.json")
    return (str(base.file("model")) if spec["model"] is None else spec["model"]), spec["revision"]


def load_backbone(base: Artifact, device: str) -> PreTrainedModel:
    """The frozen language model of a `base` artifact, in evaluation mode on `device`."""
    spec, (source, revision) = base.json("base.json"), weights_of(base)
    quantization = spec["quantization"]
    storage = quantization if isinstance(quantization, str) else "none"
    model = load_causal_lm(source, device, dtype=spec["dtype"], quantization=storage, revision=revision)
    mark_as(base, model)
    return model


def mark_as(base: Artifact, model: Any) -> None:
    """Makes an unquantised model compute on the grid of its base, if quantisation-aware training is on."""
    quantization = base.json("base.json")["quantization"]
    if not isinstance(quantization, str):
        qat.mark(model, quantization)


def load_causal_lm(
    source: str, device: str, *, dtype: str = "auto", quantization: str = "none", revision: str | None = None
) -> PreTrainedModel:
    """Loads a causal LM, frozen. Raises `StageError` when the checkpoint cannot be read.

    Args:
        source: a Hub id or a local folder.
        dtype: dtype of the unquantised weights and of the computation.
        quantization: `none`, `nf4` (double quantisation) or `int8`, through bitsandbytes.
    """
    torch_dtype = dtype_of(dtype, device)
    kwargs: dict[str, Any] = {"dtype": torch_dtype}
    if quantization != "none":
        kwargs |= {
            "quantization_config": _quantization(quantization, torch_dtype),
            # The device index, because each process may use a different GPU.
            "device_map": {"": torch.cuda.current_device() if device == "cuda" else device},
        }
    check_trainable(source, revision)
    model: Any = load_pretrained(AutoModelForCausalLM, source, revision=revision, **kwargs)
    if quantization == "none":
        model.to(device)
    if quantization == "nf4" and device == "cpu":
        for module in model.modules():
            if hasattr(module, "quant_state"):
                grids.check("nf4", (module.out_features, module.in_features))
    if quantization != "none" and device == "cpu":
        _release_mapped_file(model)
    keep_layout(model)
    model.requires_grad_(False)
    return model.eval()


def _release_mapped_file(model: Any) -> None:
    """Copies the unquantised weights out of the memory-mapped checkpoint. While a single tensor still refers to the
    mapping, every page that was read for quantisation counts towards the process's memory."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()


def keep_layout(model: Any) -> None:
    """Stops bitsandbytes from repacking 4-bit layers.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 permanently repacks a 4-bit layer at its first call in evaluation
    mode. The new layout rounds to bfloat16 and has no backward pass, so training after a rollout would get no
    gradient.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _quantization(kind: str, compute: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


@contextlib.contextmanager
def readable_checkpoint(source: str | Path, what: str = "checkpoint") -> Iterator[None]:
    """Converts any error that a library raises while reading checkpoint files into a `StageError`. Without a
    network, a Hub model is read from the cache."""
    name = str(source)
    hub = network.hub(name, offline=network.local_model(name)) if is_hub_id(name) else contextlib.nullcontext()
    with quiet_load():
        try:
            with hub:
                yield
        except TutelageError:
            raise
        except Exception as error:
            raise _unreadable(error, source, what) from error


def _unreadable(error: Exception, source: str | Path, what: str) -> StageError:
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    hint = "check that the folder is complete (the download may have been interrupted), or download it again"
    if is_hub_id(str(source)):
        hint = "check its name and revision on the Hub; a gated or private model needs a login: `hf auth login`"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        hint = "it does not fit into memory: use a smaller model, or set base.quantization"
    elif isinstance(error, ImportError):
        hint = "install the missing package, or use a checkpoint that does not need it"
    elif "trust_remote_code" in str(error):
        reason = f"its {what} needs code from the checkpoint, which is never run here"
        hint = "use a model whose architecture and tokenizer are part of transformers"
    elif "Unrecognized configuration class" in reason:
        kind = reason.partition("<class '")[2].partition("'")[0].rpartition(".")[2].removesuffix("Config")
        reason = f"{kind} is the wrong kind of model here"
        hint = "use a causal language model as base.model, or a sequence classifier as reward model"
    elif isinstance(error, TypeError | AttributeError | ZeroDivisionError | KeyError):
        reason = f"{type(error).__name__}: {reason}"
        hint = "a value in its config files is probably wrong: download the checkpoint again"
    return StageError(f"the {what} cannot be loaded: {reason}", where=str(source), hint=hint)


@contextlib.contextmanager
def quiet_load() -> Iterator[None]:
    """Silences transformers' loading report, which `weights.check_loaded` replaces, and its warning about a model
    that is not sharded over the processes."""
    names = ("transformers.modeling_utils", "transformers.distributed.tensor_parallel")
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
