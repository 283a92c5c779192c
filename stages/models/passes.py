"""Passes compute a causal LM's hidden states: over full rows, and token by token after prompts.

This module has the passes that call the model's own forward. The plain pass (`stages.models.fast.plain`)
reimplements it for Llama-like models. `stages.models.acceptance` determines which passes are correct for an
architecture.

Shapes: B rows, L positions, H hidden.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class Steps(Protocol):
    """A decoding in progress. `start` and `next` return the last hidden states (B, H) of the remaining rows."""

    def start(self) -> Tensor:
        """After the prompts."""

    def next(self, token_B: Tensor) -> Tensor:
        """After one more token of each row."""

    def keep(self, rows: Tensor) -> None:
        """Keeps only these rows."""

    def join(self, others: Sequence[Self], length: int) -> bool:
        """Appends the rows of other decodings of the same pass, all of them started, and makes room for `length`
        more tokens. Returns False, and changes nothing, if this kind of decoding cannot be joined."""


class Pass(Protocol):
    """A way to compute a model's hidden states."""

    def hidden(self, ids_BL: Tensor) -> Tensor:
        """Last hidden states (B, L, H) of right-padded rows; meaningless at padding."""

    def decode(self, ids_BL: Tensor, mask_BL: Tensor, length: int) -> Steps:
        """Decodes at most `length` tokens after left-padded prompts; the mask is true at tokens."""


TRUNK = "sharded_trunk"
"""The method through which a sharded model's decoder is called (`stages.models.sharding.shard`)."""


def trunk_of(lm: PreTrainedModel) -> Any:
    """What computes `lm`'s last hidden states when called."""
    return getattr(lm, TRUNK, None) or lm.get_decoder()


class OwnPass:
    """The model's own forward. It decodes with the model's cache or, if `full`, with a pass over the rows per
    token."""

    def __init__(self, lm: PreTrainedModel, decoding: Literal["cached", "full"] = "cached") -> None:
        self._lm, self._decoding = lm, decoding

    def hidden(self, ids_BL: Tensor) -> Tensor:
        hidden: Tensor = trunk_of(self._lm)(input_ids=ids_BL, use_cache=False).last_hidden_state
        return hidden

    def decode(self, ids_BL: Tensor, mask_BL: Tensor, length: int) -> Steps:
        if self._decoding == "full":
            return FullSteps(self, ids_BL, mask_BL)
        return CachedSteps(self._lm, ids_BL, mask_BL)


class CachedSteps:
    """Decoding through the model's own forward and cache."""

    def __init__(self, lm: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> None:
        self._decoder, self._ids, self._mask = trunk_of(lm), ids_BL, mask_BL.long()
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self._cache: Any = DynamicCache(config=lm.config)
        # Mamba names the cache argument differently, ignores the usual one, and expects a mask of the new tokens
        # only.
        self._is_mamba = "cache_params" in inspect.signature(lm.get_decoder().forward).parameters

    def start(self) -> Tensor:
        return self._pass(self._ids)

    def next(self, token_B: Tensor) -> Tensor:
        self._positions = self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        return self._pass(token_B[:, None])

    def keep(self, rows: Tensor) -> None:
        # `batch_select_indices` skips the state of recurrent layers (linear attention, convolutions).
        self._cache.reorder_cache(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def join(self, others: Sequence[Self], length: int) -> bool:
        # Other layers (sliding windows, recurrent states) do not keep one entry per position.
        parts = [self, *others]
        if any(type(layer) is not DynamicLayer for part in parts for layer in part._cache.layers):
            return False
        # Rows are padded on the left, so positions that no row uses are at the start.
        used = [int(part._mask.sum(1).max()) for part in parts]
        width = max(used)
        for i, layer in enumerate(self._cache.layers):
            for name in ("keys", "values"):
                tensors = [getattr(part._cache.layers[i], name) for part in parts]
                padded = [
                    F.pad(x[:, :, x.shape[2] - n :], (0, 0, width - n, 0))
                    for x, n in zip(tensors, used, strict=True)
                ]
                setattr(layer, name, torch.cat(padded))
        masks = [
            F.pad(p._mask[:, p._mask.shape[1] - n :], (width - n, 0)) for p, n in zip(parts, used, strict=True)
        ]
        self._mask = torch.cat(masks)
        self._positions = torch.cat([part._positions[:, -1:] for part in parts])
        return True

    def _pass(self, ids: Tensor) -> Tensor:
        if self._is_mamba:
            context: dict[str, Any] = {
                "attention_mask": self._mask[:, -ids.shape[1] :],
                "cache_params": self._cache,
            }
        else:
            context = {"attention_mask": self._mask, "past_key_values": self._cache}
        output: Any = self._decoder(input_ids=ids, position_ids=self._positions, use_cache=True, **context)
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden


class FullSteps:
    """Decoding without a cache: a pass over the full rows per token."""

    def __init__(self, row_pass: OwnPass, ids_BL: Tensor, mask_BL: Tensor) -> None:
        self._pass = row_pass
        self._ids, self._lengths = right_padded(ids_BL, mask_BL)

    def start(self) -> Tensor:
        rows = torch.arange(len(self._ids), device=self._ids.device)
        return self._pass.hidden(self._ids)[rows, self._lengths - 1]

    def next(self, token_B: Tensor) -> Tensor:
        self._ids = F.pad(self._ids, (0, 1)).scatter_(1, self._lengths[:, None], token_B[:, None])
        self._lengths = self._lengths + 1
        return self.start()

    def keep(self, rows: Tensor) -> None:
        self._ids, self._lengths = self._ids[rows], self._lengths[rows]

    def join(self, others: Sequence[Self], length: int) -> bool:
        parts = [self, *others]
        width = max(part._ids.shape[1] for part in parts)
        self._ids = torch.cat([F.pad(part._ids, (0, width - part._ids.shape[1])) for part in parts])
        self._lengths = torch.cat([part._lengths for part in parts])
        return True


def right_padded(ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Moves the padding of left-padded rows to the right. Returns ids (B, L) and lengths (B,)."""
    width, lengths = ids_BL.shape[1], mask_BL.long().sum(1)
    places = (torch.arange(width, device=ids_BL.device) - lengths[:, None]) % width
    return ids_BL.gather(1, places), lengths
