"""Compares every grid, bit for bit, with the library that defines its format."""

import gguf
import numpy as np
import pytest
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_4bit, get_4bit_type, quantize_4bit

from pipeline.errors import StageError
from stages.models.quantization import grids


def weights():
    """Weights of many kinds, by name."""
    torch.manual_seed(0)
    cases = {f"normal x {scale}": scale * torch.randn(48, 192) for scale in (1e-20, 1e-6, 0.02, 1.0, 3e4)}
    cases["large"] = torch.randn(512, 1024) * 0.02
    cases["one row"] = torch.randn(1, 64)
    cases["heavy tails"] = torch.randn(64, 256) ** 5
    cases["on a grid already"] = torch.randint(-8, 8, (64, 128)) * 0.125
    cases["ties of magnitude"] = torch.tensor([[1.0, -1.0] * 32, [-1.0, 1.0] * 32, [3.0] * 64, [-3.0] * 64])
    cases["halves"] = torch.arange(-64, 64).repeat(3, 1) / 2 + torch.tensor([[0.0], [0.25], [-0.25]])
    blocks = torch.randn(40, 128)
    blocks[:9], blocks[9:20], blocks[20], blocks[21, :32] = 0, blocks[9:20] * 1e-8, -0.0, 0
    cases["zero and tiny blocks"] = blocks
    cases["bfloat16"] = torch.randn(32, 64, dtype=torch.bfloat16).float()
    return cases


WEIGHTS = weights()


@pytest.fixture(params=WEIGHTS)
def weight(request):
    return WEIGHTS[request.param].clone()


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_ggufs(name, weight):
    kind = gguf.GGMLQuantizationType[name.upper()]
    expected = gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)
    assert np.array_equal(grids.onto(name, weight).numpy(), expected)


def test_steps_beyond_float16_overflow_as_in_gguf():
    weight = torch.tensor([[1e6, *[0.0] * 31]])
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(gguf.quantize(weight.numpy(), kind := gguf.GGMLQuantizationType.Q4_0), kind)
    assert np.array_equal(grids.onto("q4_0", weight).numpy(), expected, equal_nan=True)
    assert not np.isfinite(expected).all(), "no real weight is so large"


def test_bitsandbytes_nf4(weight):
    packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    assert torch.equal(grids.onto("nf4", weight), dequantize_4bit(packed, state))


def test_the_8_bit_scales_of_nf4_match_near_bounds():
    """Scales so finely spaced that many fall near a bound between two levels of the scales' grid."""
    torch.manual_seed(1)
    weight = torch.rand(256, 64 * 64) * torch.linspace(1e-3, 1, 256 * 64).view(256, 64).repeat_interleave(64, 1)
    packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    assert torch.equal(grids.onto("nf4", weight), dequantize_4bit(packed, state))


def test_levels_equal_bitsandbytes():
    assert torch.equal(torch.tensor(sorted(grids._dynamic_levels())), create_dynamic_map())
    assert torch.equal(torch.tensor(grids.NF4), get_4bit_type("nf4", device="cpu"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_torchao_integers(bits, weight):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is optional")
    layer = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
    layer.weight.data = weight.clone()
    kind = torchao.IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=torchao.PerGroup(32))
    torchao.quantize_(layer, kind)
    assert torch.equal(grids.onto(f"int{bits}-g32", weight), layer.weight.dequantize())


@pytest.mark.parametrize("name", grids.GRIDS)
def test_number_of_values_and_rounding_error(name):
    """A block has at most 2^bits values, and rounding errors are at most half a step."""
    torch.manual_seed(0)
    weight = torch.randn(64, 128)
    original = weight.clone()
    rounded = grids.onto(name, weight)
    assert weight.equal(original), "the weight itself does not change"
    levels = {"q8_0": 256, "q4_0": 16, "nf4": 16, "int4-g32": 16, "int3-g32": 8, "int2-g32": 4}[name]
    blocks = rounded.view(-1, grids.block(name))
    assert max(len(row.unique()) for row in blocks) <= levels
    if name != "nf4":
        step = 2 * weight.view_as(blocks).abs().amax(1, keepdim=True) / (levels - 1)
        inside = weight.view_as(blocks).abs() < step * (levels // 2 - 1)
        assert ((blocks - weight.view_as(blocks)).abs() / step)[inside].max() < 0.56, (
            "float16 steps are a little off"
        )


@pytest.mark.parametrize("name", grids.GRIDS)
def test_other_dtypes_and_strides(name):
    weight = torch.randn(64, 128)
    rounded = weight.bfloat16()
    assert torch.equal(grids.onto(name, rounded), grids.onto(name, rounded.float()).bfloat16())
    assert torch.equal(grids.onto(name, weight.t().contiguous().t()), grids.onto(name, weight))


@pytest.mark.parametrize("name", grids.GRIDS)
def test_rows_that_are_no_multiple_of_a_block_are_refused(name):
    with pytest.raises(StageError, match=f"blocks of {grids.block(name)} weights.*rows that are no multiple"):
        grids.onto(name, torch.randn(4, 3 * grids.block(name) // 2))
