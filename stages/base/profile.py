"""Capabilities of a loaded model: its `ModelProfile`, and the checks of the `base` stage."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from pipeline.config.checkpoint import context_length
from pipeline.config.fit import ModelProfile
from pipeline.errors import StageError
from stages.export import checkpoints, gguf_file
from stages.export.formats import QUANTISED
from stages.export.vocabulary import Vocabulary
from stages.models.acceptance import Passes
from stages.models.actor import Actor, check_projection
from stages.models.loading import output_name
from stages.models.precision import exact
from stages.models.quantization import qat
from stages.models.text import Codec

LEAST_QUANTIZED = 0.5
"""The least share of the blocks' weights that quantisation must cover. Below it the memory estimate of the recipe,
or the deployed model, would be wrong."""


def profile(model: Any, codec: Codec, passes: Passes) -> ModelProfile:
    """The profile of a causal LM as the `base` stage loads it, quantised or not. `passes`: its forward passes."""
    output = output_name(model)
    modules = {name: module for name, module in model.named_modules() if name}
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)]
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return ModelProfile(
        context=_context(model, passes),
        linear=linear,
        other={name: type(module).__name__ for name, module in modules.items() if name not in set(linear)},
        output=output,
        tied=head is not None and head.weight is embedding.weight,
        unsupported=_unsupported(model, [name for name in linear if name != output]),
        formats=_formats(model, codec.tokenizer),
        no_system=codec.template.no_system or "",
        no_turns=codec.no_turns,
    )


def _context(model: Any, passes: Passes) -> int | None:
    """The context length in tokens: the model's limit, or a lower one of its passes. Beyond the latter a row
    depends on the rest of its batch, as with rotary positions that change with the longest row (`dynamic`,
    `longrope`)."""
    limits = [context_length(model.config.to_dict()), passes.longest]
    finite = [int(limit) for limit in limits if limit is not None and limit < math.inf]
    return min(finite, default=None)


def _unsupported(model: Any, linear: list[str]) -> list[str]:
    """Last name components of linear layers that peft refuses to adapt, such as those whose weights Mamba's kernels
    read directly. Tried on a copy without weights."""
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    return [] if _adapts(model, names) else [name for name in names if not _adapts(model, [name])]


def _adapts(model: Any, names: list[str]) -> bool:
    if not names:
        return True
    try:
        with torch.device("meta"):
            copy = type(model)(model.config)
    except Exception:  # this architecture cannot be built on `meta`: `new_adapter` will report what peft refuses
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            get_peft_model(copy, LoraConfig(r=1, target_modules=names, task_type="CAUSAL_LM"))
        except ValueError:
            return False
    return True


def _formats(model: Any, tokenizer: Any) -> dict[str, str]:
    """Export formats that cannot hold the model or its tokenizer, and why."""
    reasons = {}
    for name in QUANTISED | {f"gguf_{kind}" for kind in gguf_file.TYPES}:
        try:
            if name.startswith("gguf"):
                gguf_file.check(model)
                Vocabulary.of(tokenizer, model.get_input_embeddings().weight.shape[0])
            else:
                checkpoints.check_rows(model, name)
        except StageError as error:
            reasons[name] = error.what
    return dict(sorted(reasons.items()))


@torch.no_grad()
def check_causal(model: Any, ids: list[int]) -> None:
    """Raises `StageError` if the second half of a text changes the logits of the first, as in an encoder, which
    transformers also loads as a language model.

    Args:
        ids: a text of at least two tokens.
    """
    vocabulary, half = model.get_input_embeddings().weight.shape[0], len(ids) // 2
    rows = torch.tensor([ids, ids[:half] + [(i + 1) % vocabulary for i in ids[half:]]], device=model.device)
    logits, changed = model(input_ids=rows, use_cache=False).logits[:, :half].float()
    # Both rows go through the same kernels, so only rounding may differ.
    tolerance = 1e-4 if exact(model) else 0.05
    if not torch.allclose(logits, changed, rtol=0, atol=tolerance * float(logits.std())):
        raise StageError(
            f"{type(model).__name__} is not causal: its logits depend on later tokens, as in an encoder",
            where="base.model",
            hint="use a decoder-only language model",
        )


def check_usable(model: Any, ids: list[int]) -> Passes:
    """The forward passes that the model supports. Raises `StageError` if it does not work as PPO uses it: the
    decoder for hidden states, the output layer for their logits.

    Args:
        ids: ordinary text.
    """
    try:
        with qat.kept(qat.quantised(model)):
            actor = Actor(model)
            check_projection(actor, torch.tensor([ids], device=actor.device))
    except (AttributeError, TypeError, IndexError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageError(
            f"{type(model).__name__} cannot be used: its decoder or output layer has a non-standard interface "
            f"({reason})",
            where="base.model",
            hint="use a model of another architecture, such as Llama, Mistral, Qwen or Gemma",
        ) from error
    return actor.passes


def quantized_share(model: Any, quantization: str | dict[str, str]) -> tuple[float, list[str]]:
    """Share of the blocks' weights (all but embedding and output layer) that `base.quantization` quantises, and the
    names of the matrices that it does not, largest first. Mixtures of experts store all experts in one tensor,
    which is not a linear layer."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {id(parameter) for module in ends if module is not None for parameter in module.parameters()}
    marked = {id(layer.layer) for layer in qat.quantised(model)}
    on_grid = rest = 0
    left: dict[str, int] = {}
    for path, module in model.named_modules():
        quantized = id(module) in marked or type(module).__name__ in ("Linear4bit", "Linear8bitLt")
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in outside:
                continue
            if quantized and name == "weight":
                on_grid += module.in_features * module.out_features
            else:
                rest += parameter.numel()
                if parameter.dim() > 1:
                    left[f"{path}.{name}"] = parameter.numel()
    share = on_grid / max(1, on_grid + rest)
    return share, sorted(left, key=lambda name: (-left[name], name))


def check_quantized(model: Any, quantization: str | dict[str, str]) -> float:
    """The share from `quantized_share`. Raises `StageError` if it is below `LEAST_QUANTIZED`."""
    share, left = quantized_share(model, quantization)
    if share < LEAST_QUANTIZED:
        raise StageError(
            f"base.quantization covers only {share:.0%} of the weights in this model's blocks; the others "
            f"({', '.join(left[:3])}) are not in linear layers",
            where="base.quantization",
            hint="set base.quantization to none, or use a dense model",
        )
    return share
