"""The quantisation grids of low-precision formats: quantise, then dequantise, in one step.

Each function rounds a weight to the values that the exported file will hold, bit for bit: gguf's Q4_0 and Q8_0,
bitsandbytes' NF4 with double quantisation as in its CPU build, torchao's symmetric integers in groups of 32. Call
them through `onto`. The grid is computed in float32 for every dtype of the weight, with the same result on every
device: the code never divides by a Python number, which CUDA would turn into a multiplication by the reciprocal.

Shapes: blocks are (N, K), N blocks of K consecutive weights of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import StageError

Grid = Callable[[Tensor], Tensor]

GROUP, NF4_BLOCK = 32, 64
"""Consecutive weights of a row that share a scale."""
NF4_STATISTICS = 256
"""Scales of NF4 blocks that share a second-level scale (double quantisation)."""

# Dettmers et al. 2023 (arXiv:2305.14314), appendix E: quantiles of a normal distribution.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def onto(name: str, weight: Tensor) -> Tensor:
    """The weight (O, I) on grid `name`, a key of `GRIDS`, in its own dtype. Raises as `check`."""
    check(name, weight.shape)
    with torch.no_grad():
        return GRIDS[name](weight.float()).to(weight.dtype)


def check(name: str, shape: Sequence[int]) -> None:
    """Raises `StageError` when the row length of a weight of this shape is not a multiple of the grid's block size.

    The formats refuse such weights too, except bitsandbytes, whose blocks cross the ends of rows. Its CPU build
    (0.50, with AVX-512) then dequantises them incorrectly.
    """
    if shape[-1] % block(name):
        raise StageError(
            f"{name} stores rows in blocks of {block(name)} weights, but a weight of shape {tuple(shape)} has rows "
            f"that are no multiple of {block(name)}",
            where="base.quantization",
            hint=f"use a model whose hidden sizes are multiples of {block(name)}, or another quantisation",
        )


def block(name: str) -> int:
    """Consecutive weights of a row that share a scale on grid `name`."""
    return NF4_BLOCK if name == "nf4" else GROUP


def q4_0(weight: Tensor) -> Tensor:
    """gguf's Q4_0 (`gguf.quants.Q4_0`; ggml's `quantize_row_q4_0_ref`): d = m / -8 for the block's largest value by
    magnitude, m, with its sign; q = trunc(w / d + 8.5) - 8 in -8..7; the file keeps d in float16."""
    blocks = weight.reshape(-1, GROUP)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    step = largest * -0.125
    codes = blocks.mul(_inverse(step)).add_(8.5).trunc_().clamp_(0, 15).sub_(8)
    return codes.mul_(step.half().float()).view(weight.shape)


def q8_0(weight: Tensor) -> Tensor:
    """gguf's Q8_0 (`gguf.quants.Q8_0`; ggml's `quantize_row_q8_0_ref`): d = max |w| / 127, kept in float16;
    q = w / d, rounded half away from zero."""
    blocks = weight.reshape(-1, GROUP)
    step = blocks.abs().amax(1, keepdim=True) / torch.full((), 127.0, device=weight.device)
    exact = blocks * _inverse(step)
    size = exact.abs()
    floor = size.floor()
    codes = floor.add_((size - floor).mul_(2).floor_()).mul_(exact.sign_())
    return codes.mul_(step.half().float()).view(weight.shape)


def nf4(weight: Tensor) -> Tensor:
    """bitsandbytes' NF4 with double quantisation: `Linear4bit(compress_statistics=True, quant_type="nf4")`.

    Each block of 64 is divided by its largest magnitude and rounded to the nearest of 16 levels. The blocks'
    scales, minus their mean, are rounded to 8 bits in blocks of 256. (Above 2 million weights, the last bit of that
    mean may depend on the number of CPU threads, in bitsandbytes too.)
    """
    blocks = weight.reshape(-1, NF4_BLOCK)
    scales = blocks.abs().amax(1)
    unit = (blocks * (1 / scales.clamp(min=1e-38))[:, None]).clamp_(-1, 1)
    levels, bounds = _table("nf4", weight.device)
    values = levels[torch.bucketize(unit, bounds, out_int32=True)]
    return values.mul_(_nf4_scales(scales)[:, None]).view(weight.shape)


def _nf4_scales(scales_N: Tensor) -> Tensor:
    """The blocks' scales, themselves quantised and dequantised (`bitsandbytes.functional.quantize_blockwise`)."""
    mean = scales_N.mean()
    count = len(scales_N)
    blocks = F.pad(scales_N - mean, (0, -count % NF4_STATISTICS)).view(-1, NF4_STATISTICS)
    largest = blocks.abs().amax(1, keepdim=True)
    unit = (blocks * _inverse(largest)).clamp_(-1, 1)
    levels, nearest = _table("dynamic", scales_N.device)
    # The C code looks up the nearest level in a table of 65,536 bins, at `(x + 1) / 2 * 65535 + 1/2`, computed with
    # a fused multiply-add. (x + 1) / 2 is a multiple of 2^-25, so integers give the exact value.
    place = (unit + 1).mul_(2.0**24).long().mul_(65535).add_(2**24)
    bins = place.float().mul_(2.0**-25).int().clamp_(max=65535)
    values = levels[nearest[bins]] * largest
    return values.flatten()[:count].add_(mean)


@cache
def _table(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The sorted levels, and for "nf4" the bounds between them, for "dynamic" the nearest level of each bin."""
    if name == "nf4":
        levels = torch.tensor(NF4)
        return levels.to(device), ((levels[:-1] + levels[1:]) / 2).to(device)
    levels = torch.tensor(sorted(_dynamic_levels()))
    bounds = (levels[:-1] + levels[1:]) * 0.5
    bins = torch.arange(65536, dtype=torch.float32) * 2 / 65535 - 1
    return levels.to(device), torch.bucketize(bins, bounds, out_int32=True).to(device)


def _dynamic_levels() -> list[float]:
    """The signed 8-bit dynamic data type (Dettmers 2015, arXiv:1511.04561): small numbers use more exponent
    bits."""
    levels = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        scaled = (10 ** (exponent - 6) * middles).tolist()
        levels += scaled + [-level for level in scaled]
    return levels


def integers(bits: int) -> Grid:
    """torchao's `IntxWeightOnlyConfig(weight_dtype=torch.int<bits>, granularity=PerGroup(32))`, symmetric:
    scale = max |w| / ((2^bits - 1) / 2), q = round(w / scale), half to even, in -2^(bits-1)..2^(bits-1) - 1."""
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def grid(weight: Tensor) -> Tensor:
        blocks = weight.reshape(-1, GROUP)
        half_range = torch.full((), (highest - lowest) / 2, device=weight.device)
        scale = blocks.abs().amax(1, keepdim=True) / half_range
        scale = scale.clamp_(min=torch.finfo(torch.float32).smallest_normal)
        return blocks.mul(1 / scale).round_().clamp_(lowest, highest).mul_(scale).view(weight.shape)

    return grid


def int8_per_token(x: Tensor) -> Tensor:
    """Activations (..., I), each row on torchao's dynamic grid (`Int8DynamicActivationIntxWeightConfig`): 256
    levels from the row's lowest to its highest value, zero among them."""
    lowest, highest = x.aminmax(dim=-1, keepdim=True)
    lowest, highest = lowest.clamp_(max=0), highest.clamp_(min=0)
    scale = (highest - lowest) / torch.full((), 255.0, device=x.device, dtype=x.dtype)
    scale = scale.clamp_(min=torch.finfo(x.dtype).smallest_normal)
    zero = (-128 - (lowest / scale).round_()).clamp_(-128, 127)
    return x.mul(1 / scale).round_().add_(zero).clamp_(-128, 127).sub_(zero).mul_(scale)


GRIDS: dict[str, Grid] = {
    "q8_0": q8_0,
    "q4_0": q4_0,
    "nf4": nf4,
    "int4-g32": integers(4),
    "int3-g32": integers(3),
    "int2-g32": integers(2),
}
"""Grids by their name in recipes."""


def _inverse(step: Tensor) -> Tensor:
    """1 / step, and 0 where step is 0."""
    return torch.where(step == 0, 0, 1 / step)
