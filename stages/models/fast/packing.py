"""Passes without padding: all tokens of a batch in one row, except inside attention.

Most of a pass works on single tokens (norms, linear layers, rotary positions), where padding is wasted work.
Attention needs the rows: queries, keys and values are put back into a padded batch there. Unlike kernels for rows
of varying length, this works with every attention kernel, on every device.

Shapes: B rows, L positions, N tokens that are not padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

WORTH = 0.1
"""The share of padding from which packing is used. Attention copies its inputs, so a little padding costs less."""


@dataclass(frozen=True)
class Packing:
    """Where the tokens of right-padded rows are.

    Attributes:
        index_N: their places in the flattened (B, L), in order.
        position_N: their positions in their rows.
    """

    index_N: Tensor
    position_N: Tensor
    rows: int
    width: int

    @classmethod
    def of(cls, lengths_B: Tensor, device_lengths_B: Tensor, width: int) -> Packing | None:
        """The packing of rows with these lengths, padded to `width`; None if there is little padding. Does not
        synchronise with the device.

        Args:
            lengths_B, device_lengths_B: the lengths, on the CPU and on the device.
        """
        count, rows, device = int(lengths_B.sum()), len(lengths_B), device_lengths_B.device
        if count > (1 - WORTH) * rows * width:
            return None
        first_B = device_lengths_B.cumsum(0) - device_lengths_B
        row_N = torch.arange(rows, device=device).repeat_interleave(device_lengths_B, output_size=count)
        position_N = torch.arange(count, device=device) - first_B[row_N]
        return cls(row_N * width + position_N, position_N, rows, width)

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, ...) -> (1, N, ...)."""
        packed: Tensor = _Pack.apply(x, self.index_N)
        return packed

    def pad(self, x: Tensor) -> Tensor:
        """(1, N, ...) -> (B, L, ...), zero at padding."""
        padded: Tensor = _Pad.apply(x, self.index_N, self.rows, self.width)
        return padded


def _pad(x: Tensor, index_N: Tensor, rows: int, width: int) -> Tensor:
    return x.new_zeros((rows * width, *x.shape[2:])).index_copy_(0, index_N, x[0]).view(rows, width, *x.shape[2:])


class _Pack(Function):
    """Indexing whose backward pass copies: no token is selected twice, so no gradients are added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index_N: Tensor) -> Tensor:
        ctx.save_for_backward(index_N)
        ctx.shape = x.shape[:2]
        return x.flatten(0, 1).index_select(0, index_N)[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index_N,) = ctx.saved_tensors
        return _pad(grad, index_N, *ctx.shape), None


class _Pad(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index_N: Tensor, rows: int, width: int) -> Tensor:
        ctx.save_for_backward(index_N)
        return _pad(x, index_N, rows, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (index_N,) = ctx.saved_tensors
        return grad.flatten(0, 1).index_select(0, index_N)[None], None, None, None
