"""Loading a language model, wherever the `base` artifact says it lives, onto a device, in 32, 16, 8 or 4 bits."""

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

from pipeline.config.checkpoint import (
    Refusal,
    adapter_refusal,
    encoder_decoder_refusal,
    quantized_refusal,
    read_json,
)
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError, TutelageError
from stages.models import weights
from stages.models.quantization import grids, qat

# Loading is announced by the stages' own progress; a bar per weight file only tears their display.
transformers_logging.disable_progress_bar()


def dtype_of(name: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that computes in it, float32 elsewhere; other names stand for themselves. It is
    never float16: that has a narrower range than the weights of some models."""
    if name == "auto":
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def computes_in_bfloat16(device: str) -> bool:
    """Whether a GPU has instructions for bfloat16. CUDA emulates it on older ones (Turing, Volta), many times more
    slowly than they compute in float32."""
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def describe_dtype(name: str, device: str) -> str:
    """The precision that `base.dtype` resolves to on a device, as a line for the user; a warning where the GPU is
    slow in it."""
    chosen = str(dtype_of(name, device)).removeprefix("torch.")
    if device == "cuda" and not computes_in_bfloat16(device):
        card = torch.cuda.get_device_name()
        if name == "auto":
            return f"computing in float32: {card} does not compute in bfloat16 (with LoRA, float16 is faster there)"
        if name == "bfloat16":
            return (
                f"warning: {card} does not compute in bfloat16 and emulates it slowly; "
                "set base.dtype to auto (float32) or, with LoRA, float16"
            )
    return f"computing in {chosen}"


def load_tokenizer(base: Artifact) -> Any:
    """The tokenizer of a `base` artifact, chat template included."""
    return read_tokenizer(base.file("tokenizer"))


def read_tokenizer(source: str | Path, revision: str | None = None, **values: Any) -> Any:
    """The tokenizer of a Hub id or a folder; code of its own is not run. Raises `StageError`.

    Args:
        values: passed to `AutoTokenizer.from_pretrained`.
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
    """`auto.from_pretrained`, for every model that is loaded: its weights are exactly those of the checkpoint.

    Args:
        auto: an `AutoModelFor...` class.
        source: a Hub id or a folder.
        new_head: what stands on the trunk is about to be trained: it may be missing, and another head left over.
        values: passed to `from_pretrained`.

    Raises `StageError` when the checkpoint cannot be read, needs code of its own, or does not fit the model.
    """
    with readable_checkpoint(source):
        model, info = auto.from_pretrained(
            source,
            revision=revision or "main",
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, with their names
            output_loading_info=True,
            **values,
        )
    where = Path(source, values["gguf_file"]) if "gguf_file" in values else source
    weights.check_loaded(
        info, where, ignored=partial(_of_head, model) if new_head else None, head=output_name(model)
    )
    return model


def _of_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight, of the model or left over in its checkpoint, is not the trunk's. A pooler, which pretrained
    encoders often lack, counts as the head's."""
    trunk: Any = model.base_model
    part = name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    return part == "pooler" or not hasattr(trunk, part)


def output_name(model: Any) -> str:
    """Name of the module that gives a model's logits; empty where it has none."""
    output = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if output is not None and module is output), "")


def load_gguf(path: Path) -> Any:
    """A GGUF file as a plain model in float32, dequantised."""
    from transformers import GgufConfig

    return load_pretrained(
        AutoModelForCausalLM,
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(gguf_file=path.name, dequantize=True),
    )


def check_trainable(source: str | Path, revision: str | None = None, *, causal: bool = True) -> None:
    """Refuses, by the files beside the weights, a checkpoint that cannot be used: an adapter, quantised weights, an
    architecture that transformers does not know, and for `causal` an encoder-decoder. Raises `StageError`."""
    if Path(source).is_file():
        raise StageError(
            "the checkpoint cannot be used: it is a file, and a checkpoint is a folder",
            where=str(source),
            hint="name the folder that it lies in (a .gguf file alone may stand for a model)",
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
            quantized_refusal(config) or _unknown(config) or (encoder_decoder_refusal(config) if causal else None)
        )
    if refusal is not None:
        what, hint = refusal
        raise StageError(f"the checkpoint cannot be used: {what}", where=str(source), hint=hint)


def _unknown(config: dict[str, Any]) -> Refusal | None:
    kind = config.get("model_type")
    if kind in CONFIG_MAPPING:
        return None
    if kind is None:
        return (
            "it has no config.json that names its model_type",
            "name the folder that holds config.json and the weights",
        )
    if config.get("auto_map"):
        return (
            f"its architecture ({kind}) needs code that comes with the checkpoint, and such code is never run here",
            "use a model whose architecture is part of transformers",
        )
    return (
        f"this version of transformers does not know its architecture ({kind})",
        "use another model, or a version of transformers that knows it",
    )


def load_backbone(base: Artifact, device: str) -> PreTrainedModel:
    """The frozen language model of a `base` artifact, in evaluation mode on `device`."""
    spec = base.json("base.json")
    source = str(base.file("model")) if spec["model"] is None else spec["model"]
    quantization = spec["quantization"]
    held = quantization if isinstance(quantization, str) else "none"
    model = load_causal_lm(source, device, dtype=spec["dtype"], quantization=held, revision=spec["revision"])
    mark_as(base, model)
    return model


def mark_as(base: Artifact, model: Any) -> None:
    """Makes a model that was held in full compute on the grid of its base, if quantisation-aware training is on."""
    quantization = base.json("base.json")["quantization"]
    if not isinstance(quantization, str):
        qat.mark(model, quantization)


def load_causal_lm(
    source: str, device: str, *, dtype: str = "auto", quantization: str = "none", revision: str | None = None
) -> PreTrainedModel:
    """Loads a causal LM, frozen. Raises `StageError` when the checkpoint cannot be read.

    Args:
        source: a Hub id or a local folder.
        dtype: of the weights that stay unquantised, and of the computation.
        quantization: `none`, `nf4` (double quantisation) or `int8`, through bitsandbytes.
    """
    torch_dtype = dtype_of(dtype, device)
    kwargs: dict[str, Any] = {"dtype": torch_dtype}
    if quantization != "none":
        kwargs |= {
            "quantization_config": _quantization(quantization, torch_dtype),
            # By number: several processes may each have a card of their own.
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
        _leave_file(model)
    keep_layout(model)
    model.requires_grad_(False)
    return model.eval()


def _leave_file(model: Any) -> None:
    """Copies what was not quantised out of the mapped checkpoint: as long as one tensor lies there, every page that
    was read to be quantised counts as the process's memory."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()


def keep_layout(model: Any) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes 0.50 repacks a 4-bit layer at its first evaluation, for good, in a form
    that rounds to bfloat16 and has no backward: what is trained after a rollout would get no gradient. Not here."""
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
    """Turns the many ways in which other libraries fail to read somebody's files into one `StageError`."""
    with quiet_load():
        try:
            yield
        except TutelageError:
            raise
        except Exception as error:
            raise _unreadable(error, source, what) from error


def _unreadable(error: Exception, source: str | Path, what: str) -> StageError:
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    hint = "check that the folder is complete (a download may have been cut off) or fetch it again"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        hint = "it does not fit into memory: use a smaller model, or base.quantization"
    elif isinstance(error, ImportError):
        hint = "install the package that it needs, or use a checkpoint that does without"
    elif "trust_remote_code" in str(error):
        reason = f"its {what} needs code that comes with it, and such code is never run here"
        hint = "use a model whose architecture and tokenizer are part of transformers"
    elif "Unrecognized configuration class" in reason:
        kind = reason.partition("<class '")[2].partition("'")[0].rpartition(".")[2].removesuffix("Config")
        reason = f"{kind} is no model of the kind that is needed here"
        hint = "use a causal language model for base.model, a sequence classifier for a reward model"
    elif isinstance(error, TypeError | AttributeError | ZeroDivisionError | KeyError):
        reason = f"{type(error).__name__}: {reason}"
        hint = "a value in its config files is probably wrong: fetch the checkpoint again"
    return StageError(f"the {what} cannot be loaded: {reason}", where=str(source), hint=hint)


@contextlib.contextmanager
def quiet_load() -> Iterator[None]:
    """Hides the loading report of transformers, whose findings we turn into errors of our own, and that it does not
    shard a model among processes, as nobody asked."""
    names = ("transformers.modeling_utils", "transformers.distributed.tensor_parallel")
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
