"""The language-model head of a 16-bit model, with float32 logits.

A head's own forward rounds each logit to 8 (bfloat16) or 11 bits. Sampling and training compute slightly different
hidden states, and rounding their logits causes about half of the difference between their log-probs
(docs/log/ppo.md). The operands stay in 16 bits here: their products are exact in float32, and the sums are exact up
to float32 rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from stages.models.fast.linear import QUANTISED, matmul
from stages.models.precision import without_autocast, working_dtype

CHUNK = 2**22
"""Bytes of the head's weight that are cast to float32 at a time on a CPU: about the size of its caches."""
CHUNK_ELSEWHERE = 2**26
"""The same on a device without a 16-bit matrix product that returns float32."""


@functools.cache
def _widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `torch.mm` on this device can return float32 for 16-bit operands (CUDA, since PyTorch 2.8)."""
    if device.type != "cuda":
        return False
    ones = torch.ones((16, 16), dtype=dtype, device=device)
    try:
        return bool((torch.mm(ones, ones, out_dtype=torch.float32) == 16).all())
    except (RuntimeError, TypeError):
        return False


def _chunks(weight_VH: Tensor) -> Iterator[slice]:
    size = CHUNK if weight_VH.device.type == "cpu" else CHUNK_ELSEWHERE
    rows = max(1, size // (4 * weight_VH.shape[1]))
    for start in range(0, len(weight_VH), rows):
        yield slice(start, start + rows)


class WideLinear(Function):
    """`x W^T + bias` (N, V) in float32, for x (N, H) in 16 bits.

    W (V, H) has x's dtype, or is float32 and rounded to it, as under autocast. Temporary memory: on CUDA, the
    gradient of the logits in 16 bits and a 16-bit copy of a float32 weight; elsewhere, `CHUNK` or `CHUNK_ELSEWHERE`
    bytes. A 16-bit weight is never copied to float32 as a whole.
    """

    @staticmethod
    def forward(ctx: Any, x_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NH if weight_VH.requires_grad else None, weight_VH)
        ctx.dtype = x_NH.dtype
        if _widens(x_NH.device, x_NH.dtype):
            logits = torch.mm(x_NH, weight_VH.to(x_NH.dtype).t(), out_dtype=torch.float32)
        else:
            logits = torch.empty((len(x_NH), len(weight_VH)), dtype=torch.float32, device=x_NH.device)
            wide_NH = x_NH.float()
            for part in _chunks(weight_VH):
                logits[:, part] = matmul(wide_NH, weight_VH[part].to(x_NH.dtype).float())
        return logits if bias_V is None else logits.add_(bias_V)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NV: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NH, weight_VH = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = grad_w = None
        if _widens(grad_NV.device, ctx.dtype):
            narrow_NV = grad_NV.to(ctx.dtype)
            if needs_x:
                grad_x = torch.mm(narrow_NV, weight_VH.to(ctx.dtype), out_dtype=torch.float32)
            if needs_weight:
                grad_w = torch.mm(narrow_NV.t(), x_NH, out_dtype=torch.float32).to(weight_VH.dtype)
        else:
            grad_x = torch.zeros((len(grad_NV), weight_VH.shape[1]), device=grad_NV.device) if needs_x else None
            grad_w = torch.empty_like(weight_VH) if needs_weight else None
            for part in _chunks(weight_VH):
                if grad_x is not None:
                    grad_x.addmm_(grad_NV[:, part], weight_VH[part].to(ctx.dtype).float())
                if grad_w is not None:
                    grad_w[part] = grad_NV[:, part].t() @ x_NH.float()
        grad_b = grad_NV.sum(0) if needs_bias else None
        return None if grad_x is None else grad_x.to(ctx.dtype), grad_w, grad_b


def logits_of(head: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (..., V) of hidden states (..., H), in float32 if `head` is a plain linear layer that computes in 16
    bits. Other heads (float32, quantised, with an adapter, or of another class) are called as they are."""
    dtype = working_dtype(hidden)
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and not hasattr(head, QUANTISED)
    if not plain or dtype == torch.float32:
        return head(hidden)
    with without_autocast(hidden):
        logits_NV = WideLinear.apply(hidden.flatten(0, -2).to(dtype), head.weight, head.bias)
    return logits_NV.view(*hidden.shape[:-1], logits_NV.shape[1])
