"""Float32 logits of 16-bit heads, compared with numpy in float64."""

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from stages.models.actor import Actor
from stages.models.fast import wide
from stages.models.fast.wide import WideLinear, logits_of

DTYPES = [torch.bfloat16, torch.float16]


def exactly(tensor):
    return tensor.detach().double().numpy()


@pytest.fixture(params=["one chunk", "chunks of three rows"])
def chunks(request, monkeypatch):
    if request.param != "one chunk":
        monkeypatch.setattr(wide, "CHUNK", 3 * 4 * 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_logits_carry_only_float32_rounding(dtype, bias, chunks):
    torch.manual_seed(0)
    head, hidden = nn.Linear(64, 50, bias=bias).to(dtype), torch.randn(20, 64, dtype=dtype)
    expected = exactly(hidden) @ exactly(head.weight).T + (exactly(head.bias) if bias else 0)
    actual = logits_of(head, hidden)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(exactly(actual), expected, atol=1e-5)
    assert torch.equal(logits_of(head, hidden.view(4, 5, 64)), actual.view(4, 5, 50))
    assert logits_of(head, hidden[:0]).shape == (0, 50), "a process may have no tokens"
    assert np.abs(exactly(head(hidden)) - expected).max() > 1e-4, "the head's own forward rounds"


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_equal_numpy(dtype, chunks):
    torch.manual_seed(1)
    hidden = torch.randn(20, 64, dtype=dtype, requires_grad=True)
    head = nn.Linear(64, 50).to(dtype)
    upstream = torch.randn(20, 50)
    (logits_of(head, hidden) * upstream).sum().backward()
    rounding = torch.finfo(dtype).eps
    for actual, expected in (
        (hidden.grad, exactly(upstream) @ exactly(head.weight)),
        (head.weight.grad, exactly(upstream).T @ exactly(hidden)),
        (head.bias.grad, exactly(upstream).sum(0)),
    ):
        assert actual.dtype == dtype
        np.testing.assert_allclose(exactly(actual), expected, rtol=rounding, atol=rounding)


def test_a_float32_weight_is_rounded_and_its_gradient_is_not(chunks):
    """As in full fine-tuning under autocast, with a float32 master weight."""
    torch.manual_seed(2)
    head = nn.Linear(64, 50, bias=False)
    hidden = torch.randn(20, 64, requires_grad=True)
    upstream = torch.randn(20, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = logits_of(head, hidden)
    (logits * upstream).sum().backward()
    rounded = exactly(hidden.bfloat16()), exactly(head.weight.bfloat16())
    np.testing.assert_allclose(exactly(logits), rounded[0] @ rounded[1].T, atol=1e-5)
    assert head.weight.grad.dtype == torch.float32
    np.testing.assert_allclose(exactly(head.weight.grad), exactly(upstream).T @ rounded[0], atol=1e-4)
    np.testing.assert_allclose(exactly(hidden.grad), exactly(upstream) @ rounded[1], rtol=0.01, atol=0.01)


def test_a_float32_models_logits_are_bit_identical():
    model = tiny.lm()
    hidden = torch.randn(30, tiny.HIDDEN)
    assert torch.equal(Actor(model).project(hidden), model.lm_head(hidden))


def test_other_heads_are_called_unchanged():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    head, hidden = Scaled(64, 50).bfloat16(), torch.randn(20, 64).bfloat16()
    assert torch.equal(logits_of(head, hidden), head(hidden))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rollout_and_training_differ_less_than_with_rounded_logits(dtype):
    """Logits add almost nothing to the rounding of the hidden states."""
    actor = Actor(tiny.lm().to(dtype))
    hidden = torch.randn(200, tiny.HIDDEN, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = torch.log_softmax(hidden.double() @ actor.lm.lm_head.weight.double().T, -1)
    actual = torch.log_softmax(actor.project(hidden).double(), -1)
    rounded = torch.log_softmax(actor.lm.lm_head(hidden).double(), -1)
    assert (actual - exact).abs().max() < 1e-4 < (rounded - exact).abs().max()


@pytest.mark.parametrize("grad", [False, True])
def test_no_float32_copy_of_the_weight_exists(monkeypatch, grad):
    monkeypatch.setattr(wide, "CHUNK", 3 * 4 * 64)
    sizes, product = [], wide.matmul
    monkeypatch.setattr(wide, "matmul", lambda x, w: sizes.append(w.numel()) or product(x, w))
    saved = []
    hidden = torch.randn(20, 64).bfloat16().requires_grad_(grad)
    weight = torch.randn(50, 64).bfloat16()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        WideLinear.apply(hidden, weight, None)
    assert max(sizes) == 3 * 64
    assert [tuple(t.shape) for t in saved] == ([(50, 64)] if grad else []), "a frozen head keeps no hidden states"
