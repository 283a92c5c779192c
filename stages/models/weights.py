"""Checks that the weights of a loaded model are exactly those of its checkpoint.

transformers initialises missing weights randomly, drops unexpected ones, and only reports both. Here, either raises
an error that lists the weights and, if their names reveal it, explains what kind of checkpoint it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import StageError

SHOWN = 3
"""Number of names to list in a message; the rest are counted."""

BUFFERS = re.compile(r"(^|\.)(attn|attention)\.(masked_)?bias$|(^|\.)(position_ids|inv_freq)$")
"""Constants that old checkpoints of GPT-like models hold (causal masks, rotary frequencies)."""

QUANTIZED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_scale|weight_scale_inv|weight_packed|SCB)$"
    r"|\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)$"
)

WRAPPERS = {
    "_orig_mod.": "it was saved from a compiled model (torch.compile)",
    "_fsdp_wrapped_module.": "it was saved from inside FSDP",
    "_checkpoint_wrapped_module.": "it was saved with activation checkpointing wrapped around its layers",
    "module.": "it was saved from inside DataParallel",
    "base_model.model.": "it was saved from a model wrapped by peft",
    "pretrained_model.": "it is trl's AutoModelForCausalLMWithValueHead, a language model inside a wrapper",
}
"""Prefixes that wrappers add to weight names, with their explanation."""

Names = Collection[str]


def check_loaded(
    info: Mapping[str, Any], source: str | Path, *, ignored: Callable[[str], bool] | None = None, head: str = ""
) -> None:
    """Raises `StageError` unless the checkpoint and the model have the same weights, of the same shapes.

    Args:
        info: the loading info from `from_pretrained(output_loading_info=True)`. It no longer contains tied weights
            and those that the architecture declares ignorable.
        ignored: whether a weight may differ, such as those of a head that is about to be trained.
        head: name of the model's output layer, without `.weight`.
    """
    ignored = ignored or (lambda name: False)
    missing = sorted(name for name in info["missing_keys"] if not ignored(name))
    unexpected = sorted(name for name in info["unexpected_keys"] if not (ignored(name) or BUFFERS.search(name)))
    shapes = {name: (tuple(stored), tuple(wanted)) for name, stored, wanted in info["mismatched_keys"]}
    mismatched = {name: pair for name, pair in sorted(shapes.items()) if not ignored(name)}
    errors = [str(error) for error in info.get("error_msgs") or ()]
    if missing or unexpected or mismatched or errors:
        raise StageError(
            f"the checkpoint does not fit the model: {_differences(missing, unexpected, mismatched, errors)}",
            where=str(source),
            hint=_hint(missing, unexpected, mismatched, head),
        )


def check_names(stored: Names, wanted: Names, source: str | Path, what: str) -> None:
    """As `check_loaded`, but compares names only."""
    missing, unexpected = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    if missing or unexpected:
        raise StageError(
            f"{what} does not fit the model: {_differences(missing, unexpected, {}, [])}",
            where=str(source),
            hint="it was trained on another model, or its files are damaged: retrain it",
        )


@torch.no_grad()
def check_finite(model: Any, source: str | Path, what: str = "the model") -> None:
    """Raises `StageError` with the names of the weights that contain NaN or infinity."""
    broken = [
        name
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and not torch.isfinite(parameter).all()
    ]
    if broken:
        raise StageError(
            f"weights of {what} are NaN or infinite ({shown(broken)})",
            where=str(source),
            hint="it comes from a run that diverged, or overflowed when saved in 16 bits: use another checkpoint",
        )


def _differences(missing: Names, unexpected: Names, mismatched: Mapping[str, Any], errors: Names) -> str:
    parts = []
    if missing:
        parts.append(f"{_count(missing)} not in it and would be random ({shown(missing)})")
    if unexpected:
        parts.append(f"{_count(unexpected)} in it that the model has no place for ({shown(unexpected)})")
    if mismatched:
        shapes = [
            f"{name} is {stored} there and {wanted} in the model" for name, (stored, wanted) in mismatched.items()
        ]
        parts.append(f"{_count(mismatched)} of another shape ({shown(shapes)})")
    if errors:
        parts.append(shown(errors))
    return "; ".join(parts)


def _count(names: Names) -> str:
    return "1 weight is" if len(names) == 1 else f"{len(names)} weights are"


def shown(names: Iterable[str], most: int = SHOWN) -> str:
    """The first `most` names, and how many more there are."""
    names = list(names)
    rest = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *rest])


def _hint(missing: Names, unexpected: Names, mismatched: Names, head: str) -> str:
    if any(QUANTIZED.search(name) for name in unexpected):
        return (
            "its weights are quantised, but its config.json does not say so: use the original model, and set "
            "base.quantization to load it in 4 or 8 bits"
        )
    added = _added(missing, unexpected)
    if added:
        reason = WRAPPERS.get(added, "another program added a prefix to every name")
        value_head = ", and drop those that start with v_head." if any("v_head." in n for n in unexpected) else ""
        return (
            f'{reason}: take "{added}" out of the names of the tensors{value_head} (safetensors.torch.load_file and'
            " save_file), or save the unwrapped model with save_pretrained"
        )
    if unexpected and not missing and all(name.startswith("v_head.") for name in unexpected):
        return "v_head is the value head from a PPO run with trl: save the checkpoint without these tensors"
    if head and missing and not unexpected and {name.removesuffix(".weight") for name in missing} == {head}:
        return (
            "config.json has tie_word_embeddings: false. If the model was trained with its head tied to the "
            "embedding, set it to true there; otherwise the head is missing: download the model again"
        )
    if missing and all(
        re.search(r"(^(score|classifier|classification_head)|\bpooler)\b", name) for name in missing
    ):
        return "it has no trained scoring head: use a classifier that was trained to score answers (num_labels=1)"
    if mismatched and not missing and not unexpected:
        return "config.json belongs to another checkpoint: restore it, or download the model again"
    if unexpected and not missing:
        return "config.json describes a smaller model than the weights: restore it, or download the model again"
    return "the checkpoint is incomplete, or config.json belongs to another model: download the model again"


def _added(missing: Names, unexpected: Names) -> str:
    """The string to remove from the names in the file to get the model's names, if one string does so for at least
    half of the missing weights; otherwise empty."""
    wanted, prefixes = set(missing), Counter[str]()
    for name in unexpected:
        for wrapper in WRAPPERS:
            if wrapper in name and name.replace(wrapper, "") in wanted:
                prefixes[wrapper] += 1
                break
        else:
            parts = name.split(".")
            ends = (".".join(parts[i:]) for i in range(1, len(parts)))
            end = next((end for end in ends if end in wanted), None)
            if end is not None:
                prefixes[name.removesuffix(end)] += 1
    if not prefixes:
        return ""
    added, count = prefixes.most_common(1)[0]
    return added if 2 * count >= len(wanted) else ""
