"""Decoding with fixed shapes and addresses, so that a step can be captured once and replayed.

R slots hold one row each. Each row has its own position, so rows of any length share a step, and the slot of a
finished row takes another prompt while the others go on. The keys of a layer are one tensor (R, M, S, D), in which
a step writes each row's key at that row's position. A mask hides later positions, which may hold what an earlier
row has left there.

Shapes: R slots, S positions of a slot, M key and value heads, D head width, H hidden size; K new rows, W their
longest prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from stages.models.fast.plain import Cache, PlainDecoder


class SlotCache:
    """Keys and values of every layer."""

    def __init__(self, decoder: PlainDecoder, rows: int, length: int) -> None:
        cache = decoder.new_cache(rows, length)
        self._keys, self._values = cache.keys, cache.values
        for tensor in (*self._keys, *self._values):
            tensor.zero_()  # a masked NaN would still be a NaN
        self.dtype = self._keys[0].dtype

    def put(self, position_R: Tensor, layer: int, key_RM1D: Tensor, value_RM1D: Tensor) -> tuple[Tensor, Tensor]:
        """Writes one position of each row. Returns all keys and values of the layer."""
        keys, values = self._keys[layer], self._values[layer]
        index = position_R[:, None, None, None].expand(key_RM1D.shape)
        return keys.scatter_(2, index, key_RM1D), values.scatter_(2, index, value_RM1D)

    def insert(self, slots_K: Tensor, prompts: Cache) -> None:
        """Copies a filled cache of K rows into some slots."""
        for into, source in ((self._keys, prompts.keys), (self._values, prompts.values)):
            for target, tensor in zip(into, source, strict=True):
                target[slots_K, :, : prompts.length] = tensor

    def part(self, first: int, count: int) -> Cache:
        """Consecutive slots, to be filled in place."""
        return Cache(*([x[first : first + count] for x in tensors] for tensors in (self._keys, self._values)))

    def keep(self, slots: Tensor) -> None:
        """Moves these slots to the front, and drops the others. The addresses stay."""
        for tensors in (self._keys, self._values):
            for i, tensor in enumerate(tensors):
                tensors[i] = tensor[: len(slots)].copy_(tensor[slots])


class PlainSlots:
    """Slots for rows of a `PlainDecoder`.

    Args:
        rows, length: R and S.
    """

    def __init__(self, decoder: PlainDecoder, rows: int, length: int, device: torch.device) -> None:
        self._decoder, self._cache = decoder, SlotCache(decoder, rows, length)
        self._positions_S = torch.arange(length, device=device)
        self._zeros_S = torch.zeros(length, dtype=self._cache.dtype, device=device)

    def start(self, slots: Sequence[int], slots_K: Tensor, ids_KW: Tensor, lengths_K: Tensor) -> Tensor:
        """Reads right-padded prompts into free slots. Returns the last hidden states (K, H).

        Args:
            slots: `slots_K` on the host.
        """
        first, count = slots[0], len(slots)
        if list(slots) == list(range(first, first + count)):
            return self._decoder.fill(ids_KW, lengths_K - 1, self._cache.part(first, count))
        prompts = self._decoder.new_cache(*ids_KW.shape)
        hidden = self._decoder.fill(ids_KW, lengths_K - 1, prompts)
        self._cache.insert(slots_K, prompts)
        return hidden

    def next(self, token_R: Tensor, position_R: Tensor) -> Tensor:
        """The last hidden states (R, H) after one more token of each slot, at that slot's position."""
        beyond_RS = self._positions_S > position_R[:, None]
        mask = self._zeros_S.expand(beyond_RS.shape).masked_fill(beyond_RS, -torch.inf)[:, None, None]
        return self._decoder.extend(token_R, position_R, mask, partial(self._cache.put, position_R))

    def keep(self, slots: Tensor) -> None:
        """As `SlotCache.keep`."""
        self._cache.keep(slots)
