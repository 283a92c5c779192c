"""Builds a small random float32 copy of a model's architecture, on which passes can be tested within a second.

The copy keeps what determines how a model computes: kinds of layers, numbers of heads, multipliers, rotary scaling.
It shrinks what determines how much it computes: the vocabulary, the number of experts, the layers (to one of each
kind), and all widths by a common divisor, so that products such as heads x head width stay consistent. Windows and
original contexts become shorter than the test rows or, with `within`, longer.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCABULARY, SPECIAL = 96, 8
"""Size of a copy's vocabulary. Ids of special tokens are below `SPECIAL`."""
POSITIONS = 48
"""Minimum number of positions of a copy."""
WINDOW, CONTEXT, CHUNK = 6, 20, 8
"""A copy's sliding window, original context, and chunk size of state-space layers, in positions. All test rows are
longer than a window or a chunk; only some are longer than the context."""
LARGEST = 2**27
"""Maximum number of weights of a copy. A larger one would take seconds."""
EXPERTS = 16
"""Maximum number of experts of a copy."""
HEAD_WIDTH = 8
"""Minimum head width of a copy."""

_POSITIONS = re.compile(r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_length|context_length)$")
_ORIGINAL = "original_max_position_embeddings"
_LAYERS = re.compile(r"^(num_hidden_layers|n_layers?|num_layers)$")
_WINDOW = re.compile(r"window(_size)?$|^attention_chunk_size$")
_CHUNK = re.compile(r"chunk_size$")
_HEAD_WIDTH = re.compile(r"(^|_)(head_dim|kv_channels|rotary_dim)$")
_WIDTH = re.compile(r"(^|_)(hidden_size|n_embd|d_model|d_ssm|d_head|embed_proj_dim|lru_width)$")
_FREE_WIDTH = re.compile(r"intermediate_size|ffn_|(^|_)(n_inner|ff_dim|rank|hidden_size_per_layer_input)$")
"""Widths that need not divide, or be multiples of, other widths."""


class NoMiniature(Exception):
    """No small copy of a model can be built."""


def reach(config: Any) -> float:
    """The longest row, in positions, that fits all sliding windows and original contexts of a config; infinity if
    it has none."""
    values = config.to_dict()
    limits = [
        value
        for section in _sections(values)
        for name, value in section.items()
        if _is_int(value) and (_WINDOW.search(name) or name == _ORIGINAL) and value > 0
    ]
    if _dynamic(values):
        limits.append(config.max_position_embeddings)
    return min(limits, default=math.inf)


def miniature(lm: PreTrainedModel, *, within: bool = False) -> PreTrainedModel:
    """A copy of the model's architecture with random weights, float32 on the CPU, in evaluation mode.

    Args:
        lm: any causal LM, possibly with adapters, quantised or on another device.
        within: makes windows and original contexts as long as `POSITIONS`, so that the test rows fit them.

    Raises `NoMiniature` when no copy can be built or runs.
    """
    config: Any = lm.config.get_text_config(decoder=True)
    build: Any = type(lm)._from_config if config is lm.config else AutoModelForCausalLM.from_config
    groups = layer_groups(lm)
    for layers in _layer_candidates(groups):
        for divisor in _divisors(config):
            try:
                values = _shrunk(config.to_dict(), len(groups), layers, divisor, within)
                if _weights(values) > LARGEST:
                    continue
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    model = build(type(config).from_dict(values), dtype=torch.float32)
                    _randomise(model)
                model.requires_grad_(False).eval()
                hidden = model.get_decoder()(
                    input_ids=torch.full((1, 2), SPECIAL), use_cache=False
                ).last_hidden_state
            except Exception:  # configs and models raise anything: try the next copy
                continue
            if torch.isfinite(hidden).all() and layer_groups(model) == _renumbered([groups[i] for i in layers]):
                return model
            break  # smaller divisors would not help
    raise NoMiniature(f"no small copy of {type(lm).__name__} can be built")


def layer_groups(lm: Any) -> list[int]:
    """One number per decoder layer, equal for layers of the same kind. Layers are of the same kind if their modules
    have the same names and settings, adapters aside."""
    stacks = [module for module in lm.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return _renumbered([_signature(layer) for layer in max(stacks, key=len, default=[])])


def _signature(layer: Any) -> frozenset[Any]:
    return frozenset(
        (path, name, value)
        for path, module in layer.named_modules()
        if module._modules and "lora_" not in path and not hasattr(module, "base_layer")
        for name, value in [("", "/".join(module._modules)), *vars(module).items()]
        if (value is None or isinstance(value, str | int | float))
        and not name.startswith("_")
        and not re.search(r"idx|index|layer_(id|number)|training|checkpointing", name)
    )


def _renumbered(kinds: Sequence[Any]) -> list[int]:
    seen: dict[Any, int] = {}
    return [seen.setdefault(kind, len(seen)) for kind in kinds]


def _layer_candidates(groups: Sequence[int]) -> list[list[int]]:
    """Candidate sets of layers to copy, without duplicates: the first of each kind (two if there is only one kind);
    all up to the first of the last kind; all."""
    firsts = [groups.index(group) for group in dict.fromkeys(groups)]
    if len(firsts) == 1:
        firsts = list(range(min(2, len(groups))))
    candidates = [firsts, list(range(max(firsts, default=-1) + 1)), list(range(len(groups)))]
    return [layers for i, layers in enumerate(candidates) if layers not in candidates[:i]]


def _sections(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A config's values and, recursively, those of its nested dicts (such as rotary parameters)."""
    yield values
    for name, value in values.items():
        if isinstance(value, dict) and name not in ("id2label", "label2id"):
            yield from _sections(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _dynamic(values: dict[str, Any]) -> bool:
    return any(section.get("rope_type") == "dynamic" for section in _sections(values))


def _divisors(config: Any) -> list[int]:
    """Candidate divisors of all widths, largest first, at most four: common divisors that keep heads at least
    `HEAD_WIDTH` wide."""
    values = {name: value for name, value in config.to_dict().items() if _is_int(value) and value > 0}
    heads = [value for name, value in values.items() if _HEAD_WIDTH.search(name)]
    if not heads and hasattr(config, "num_attention_heads"):
        heads = [config.hidden_size // config.num_attention_heads]
    widths = [value for name, value in values.items() if _WIDTH.search(name) and not _FREE_WIDTH.search(name)]
    common = math.gcd(*heads, *widths)
    largest = max(1, min(heads or (width // 8 for width in widths), default=1) // HEAD_WIDTH)
    return [divisor for divisor in range(largest, 0, -1) if common % divisor == 0][:4]


def _shrunk(
    values: dict[str, Any], count: int, layers: Sequence[int], divisor: int, within: bool
) -> dict[str, Any]:
    """A config's values with only `layers` of its `count` layers, and widths divided by `divisor`."""
    values = copy.deepcopy(values)
    for name in ("quantization_config", "auto_map", "dtype", "torch_dtype", "_name_or_path"):
        values.pop(name, None)
    context, window = (POSITIONS, POSITIONS) if within else (CONTEXT, WINDOW)
    dynamic = _dynamic(values)
    originals = [section[_ORIGINAL] for section in _sections(values) if _is_int(section.get(_ORIGINAL))]

    def shrunk(name: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            if "token_id" not in name and len(value) == count:
                value = [value[i] for i in layers]
            if name.endswith("_factor"):  # longrope: one factor per rotary frequency
                return value[::divisor]
            if "section" in name:  # multimodal rotary positions: number of frequencies of each kind
                rest = [part // divisor for part in value[1:]]
                return [sum(value) // divisor - sum(rest), *rest]
            return [shrunk(name, part) for part in value]
        if not _is_int(value) or value < 0:
            return value
        if "token_id" in name:
            return value % SPECIAL
        if "vocab_size" in name:
            return VOCABULARY
        if _LAYERS.search(name):
            return len(layers)
        if name == _ORIGINAL:
            return context
        if _POSITIONS.search(name):
            if dynamic:
                return context
            return max(POSITIONS, *(context * value // original for original in originals), POSITIONS)
        if _WINDOW.search(name) and value:
            return window
        if _CHUNK.search(name):
            return min(value, CHUNK)
        if name.endswith("experts"):
            return min(value, EXPERTS)
        if _FREE_WIDTH.search(name):
            return -(-value // divisor)
        return value // divisor if _WIDTH.search(name) or _HEAD_WIDTH.search(name) else value

    for section in list(_sections(values)):
        section.update(
            {name: shrunk(name, value) for name, value in section.items() if not isinstance(value, dict)}
        )
    if "attention_types" in values:  # GPT-Neo stores the layer types twice
        values["attention_types"] = [[values["attention_layers"], 1]]
    return values


def _weights(values: dict[str, Any]) -> int:
    """Estimates the number of weights of a model with these config values."""
    numbers = {name: value for name, value in values.items() if _is_int(value)}
    hidden = max((v for n, v in numbers.items() if n in ("hidden_size", "n_embd", "d_model")), default=1)
    wide = [v for n, v in numbers.items() if "intermediate" in n or "ffn" in n or n == "n_inner"] or [4 * hidden]
    experts = max((v for n, v in numbers.items() if n.endswith("experts")), default=0)
    layers = max((v for n, v in numbers.items() if _LAYERS.search(n)), default=1)
    return layers * hidden * (4 * hidden + 3 * (max(wide) + experts * min(wide)))


@torch.no_grad()
def _randomise(lm: Any) -> None:
    """Sets weights large enough for a mistake in any part to affect the last hidden states.

    The outputs of each product are 1.5 times as large as its inputs. Norms and biases differ from their initial
    values, which would hide that one is left out. Logits are large enough for a soft cap to have an effect.
    """
    head = lm.get_output_embeddings()
    for parameter in lm.parameters():
        if parameter.dim() < 2:
            parameter.add_(0.2 * torch.randn(parameter.shape))
        else:
            parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
    if head is not None:
        head.weight.mul_(6)
