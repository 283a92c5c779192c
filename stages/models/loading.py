"""Loading a language model, wherever the `base` artifact says it lives, onto a device, in 32, 16, 8 or 4 bits."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipeline.errors import StageError
from pipeline.stage import Artifact
from stages.models import grids, qat

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
    """What a `base.dtype` comes to on a device, for the user, with a warning where it is a bad choice."""
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
    return AutoTokenizer.from_pretrained(base.file("tokenizer"))


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
    kwargs: dict[str, Any] = {"dtype": torch_dtype, "revision": revision or "main"}
    if quantization != "none":
        kwargs |= {
            "quantization_config": _quantization(quantization, torch_dtype),
            # By number: several processes may each have a card of their own.
            "device_map": {"": torch.cuda.current_device() if device == "cuda" else device},
        }
    with readable_checkpoint(source):
        model: Any = AutoModelForCausalLM.from_pretrained(source, **kwargs)
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
def readable_checkpoint(source: str | Path) -> Iterator[None]:
    """Turns the many ways in which a checkpoint can be unreadable into one `StageError`."""
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    with quiet_load():
        try:
            yield
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, HfHubHTTPError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StageError(
                f"the checkpoint cannot be loaded: {reason}",
                where=str(source),
                mend="check that the folder is complete (a download may have been cut off) or fetch it again",
            ) from error


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
