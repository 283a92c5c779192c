"""Quantisation-aware training: forward on the grid that is deployed, gradients straight through the rounding.

A linear layer's weight W, or with LoRA `W + scaling B A` of the active adapter, is put onto a grid of
`stages.models.quantization.grids` before it is multiplied; the gradient takes the rounding for the identity (Bengio
et al. 2013, arXiv:1308.3432). So each role is what it will be once merged and exported, in training as in sampling.

`mark` says which layers of a backbone are so, and makes them so; `adapt` does it for the adapters that came after.
A weight is rounded anew in every pass, but once only inside `kept`, while nothing learns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pipeline.errors import StageError
from stages.models.fast.linear import QUANTISED as MARK
from stages.models.fast.linear import matmul
from stages.models.quantization import grids


class StraightThrough(Function):
    """`x Q^T + b`, where Q is W, or `W + scaling B A`, on a grid, and x may be on one of its own. The gradients of
    W, B and A are what they were if Q had not been rounded."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        q_OI: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        a_RI: Tensor | None,
        b_OR: Tensor | None,
        scaling: float,
    ) -> Tensor:
        x_NI = x.flatten(0, -2)
        learns = any(ctx.needs_input_grad[3:6])
        ctx.save_for_backward(x_NI if learns else None, q_OI, a_RI, b_OR)
        ctx.scaling = scaling
        return matmul(x_NI, q_OI, bias).view(*x.shape[:-1], len(q_OI))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, q_OI, a_RI, b_OR = ctx.saved_tensors
        of_x, _, of_bias, of_weight, of_a, of_b, _ = ctx.needs_input_grad
        grad_NO = grad.flatten(0, -2)
        grad_x = matmul(grad_NO, q_OI.t()).view(*grad.shape[:-1], q_OI.shape[1]) if of_x else None
        grad_weight = matmul(grad_NO.t(), x_NI.t()) if of_weight else None
        grad_a = grad_b = None
        if of_a or of_b:
            wide_NO, wide_NI = grad_NO.to(a_RI.dtype), x_NI.to(a_RI.dtype)
            grad_a = (matmul(wide_NO, b_OR.t()).mul_(ctx.scaling)).t() @ wide_NI if of_a else None
            grad_b = wide_NO.t() @ matmul(wide_NI, a_RI).mul_(ctx.scaling) if of_b else None
        return grad_x, None, grad_NO.sum(0) if of_bias else None, grad_weight, grad_a, grad_b, None


class Int8PerToken(Function):
    """x on torchao's dynamic int8 grid (`grids.int8_per_token`); the gradient passes as if it were not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return grids.int8_per_token(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Quantised:
    """What a marked linear layer's forward becomes, or that of the LoRA layer on it: at most one adapter, no
    dropout."""

    def __init__(self, layer: nn.Linear, grid: str, activations: str) -> None:
        self.layer, self.grid, self.activations = layer, grid, activations
        self.lora: Any = None
        self.keeps = False
        self._kept: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        adapter = self._adapter()
        if self._kept is None:
            weight = self.weight()
            if self.keeps:
                self._kept = weight
        else:
            weight = self._kept
        if self.activations == "int8":
            x = Int8PerToken.apply(x)
        a_RI, b_OR, scaling = adapter or (None, None, 1.0)
        return StraightThrough.apply(x, weight, self.layer.bias, self.layer.weight, a_RI, b_OR, scaling)

    @torch.no_grad()
    def latent(self) -> Tensor:
        """What is rounded (O, I), float32: the weight, the active adapter merged into it as peft merges it."""
        weight, adapter = self.layer.weight.float(), self._adapter()
        if adapter is None:
            return weight
        a_RI, b_OR, scaling = adapter
        return weight + (b_OR @ a_RI) * scaling

    def weight(self) -> Tensor:
        """What the layer multiplies with (O, I), in the backbone's precision."""
        return grids.onto(self.grid, self.latent()).to(self.layer.weight.dtype)

    def keep(self, keeps: bool) -> None:
        self.keeps, self._kept = keeps, None

    def _adapter(self) -> tuple[Tensor, Tensor, float] | None:
        if self.lora is None or self.lora.disable_adapters or self.lora.merged:
            return None
        (name,) = self.lora.active_adapters
        return self.lora.lora_A[name].weight, self.lora.lora_B[name].weight, self.lora.scaling[name]


def linears(model: Any) -> dict[str, nn.Linear]:
    """The layers that training rounds and every export quantises, by name: the linear layers of a causal LM's
    blocks. Embeddings and the output layer (often the same weight) stay as they are."""
    output = model.get_output_embeddings()
    found = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    return {name: module for name, module in found.items() if module is not output}


def mark(model: Any, quantization: Mapping[str, str]) -> None:
    """Makes the linear layers of a backbone's blocks compute on a grid.

    Args:
        quantization: `base.quantization` of a recipe, as `base.json` holds it.

    Raises `StageError` when the grid cannot hold them.
    """
    layers = linears(model)
    if not layers:
        raise StageError(
            f"{type(model).__name__} has no nn.Linear in its blocks: quantisation-aware training knows no other",
            where="base.quantization",
            hint="use a model of another architecture, or base.quantization: nf4",
        )
    for layer in layers.values():
        grids.check(quantization["qat"], layer.weight.shape)
        made = Quantised(layer, quantization["qat"], quantization["activations"])
        setattr(layer, MARK, made)
        layer.forward = made  # type: ignore[assignment, method-assign]


def adapt(model: nn.Module) -> None:
    """Makes the LoRA layers on marked linear layers round weight and adapter as one."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and (made := getattr(module.get_base_layer(), MARK, None)) is not None:
            made.lora = module
            module.forward = made


def quantised(model: nn.Module) -> list[Quantised]:
    """What the marked layers of a model became."""
    return [getattr(module, MARK) for module in model.modules() if hasattr(module, MARK)]


@contextlib.contextmanager
def kept(layers: list[Quantised]) -> Iterator[None]:
    """Inside, each layer rounds its weight once. Nothing may learn and no other adapter become active there."""
    for layer in layers:
        layer.keep(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.keep(False)


@torch.no_grad()
def settle(model: Any) -> None:
    """Writes the rounded weights into a marked model without adapters, which is a plain model from then on."""
    for layer in quantised(model):
        layer.layer.weight.copy_(layer.weight())
        del layer.layer.forward
        delattr(layer.layer, MARK)
