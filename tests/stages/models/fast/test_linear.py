"""Compares outputs and gradients of the fast linear and LoRA layers with those of PyTorch and peft."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from stages.models.fast import linear
from stages.models.fast.linear import merged, speed_up


class Net(nn.Module):
    def __init__(self, bias, width=None):
        super().__init__()
        self.first = nn.Linear(width or 6, width or 10, bias=bias)
        self.last = nn.Linear(width or 10, width or 4, bias=bias)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def adapted(bias, targets, dtype=torch.float32):
    torch.manual_seed(0)
    return with_adapters(Net(bias).to(dtype), targets)


def with_adapters(net, targets):
    config = LoraConfig(r=3, lora_alpha=6, target_modules=targets)
    model = get_peft_model(net, config, adapter_name="one")
    model.add_adapter("two", config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name and ".two." in name)
        if "lora_" in name:
            nn.init.normal_(parameter.data)
    model.base_model.set_adapter("two")
    return model


def outcome(model, x):
    """The output, and the gradients of the input and of all trainable parameters, for an uneven loss."""
    x = x.clone().requires_grad_(True)
    y = model(x)
    (y.float() * torch.arange(y.numel()).view_as(y).cos()).sum().backward()
    actual = {"y": y.detach(), "x": x.grad} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return actual


def equal(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


@pytest.fixture(params=["onednn", "plain"])
def route(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(linear, "onednn_works", lambda: False)
    elif not linear.onednn_works():
        pytest.skip("this PyTorch has no oneDNN")


@pytest.mark.parametrize("shape", [(40, 6), (5, 9, 6), (2, 6), (0, 6)])
@pytest.mark.parametrize("targets", [["first", "last"], ["last"]])
@pytest.mark.parametrize("bias", [True, False])
def test_lora_equals_peft(route, bias, targets, shape):
    model = adapted(bias, targets)
    x = torch.randn(shape)
    expected = outcome(model, x)
    assert sum("lora_" in name for name in expected) == 2 * len(targets), "the case must have gradients to compare"
    speed_up(model)
    equal(outcome(model, x), expected, rtol=1e-4, atol=5e-4)


def test_lora_in_half_precision_keeps_its_adapters_in_float32(route):
    model = adapted(True, ["first", "last"], torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    x = torch.randn(40, 6, dtype=torch.bfloat16)
    expected = outcome(model, x)
    speed_up(model)
    actual = outcome(model, x)
    assert actual["y"].dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for name, g in actual.items() if "lora_" in name)
    equal(actual, expected, rtol=0.1, atol=1.0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("learns", ["all", "weights", "none"])
def test_linear_equals_pytorch(route, bias, learns):
    torch.manual_seed(0)
    model = Net(bias)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns == "all" or (learns == "weights" and "weight" in name))
    x = torch.randn(7, 5, 6)
    expected = outcome(model, x)
    assert len(expected) == 2 + {"all": 4 if bias else 2, "weights": 2, "none": 0}[learns]
    speed_up(model)
    equal(outcome(model, x), expected, rtol=1e-4, atol=5e-4)


def test_a_frozen_weight_keeps_no_input():
    """Autograd saves only the weight for the backward pass, which takes no extra memory."""
    layer = nn.Linear(6, 10).requires_grad_(False)
    speed_up(layer)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(50, 6, requires_grad=True) * 2)
    assert [tuple(t.shape) for t in saved] == [(10, 6)]


def test_adapters_switch_and_switch_off():
    model = adapted(True, ["first", "last"])
    x = torch.randn(30, 6)
    with torch.no_grad():
        two = model(x)
        with model.disable_adapter():
            none = model(x)
        model.base_model.set_adapter("one")
        one = model(x)
        speed_up(model)
        assert (two - one).abs().max() > 0.1 < (two - none).abs().max()
        torch.testing.assert_close(model(x), one, rtol=1e-5, atol=1e-5)
        model.base_model.set_adapter("two")
        torch.testing.assert_close(model(x), two, rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            torch.testing.assert_close(model(x), none, rtol=1e-5, atol=1e-5)


def test_merged_copies_compute_the_same_and_leave_no_trace(monkeypatch):
    model = adapted(True, ["first", "last"])
    x = torch.randn(30, 6)
    layers = speed_up(model)
    assert len(layers) == 2
    calls = []
    monkeypatch.setattr(linear.LoRALinear, "apply", lambda *a: calls.append(1))
    weights = {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad(), merged(layers):
        inside = model(x)
    assert not calls, "inside, no adapter is multiplied separately"
    monkeypatch.undo()
    with torch.no_grad():
        torch.testing.assert_close(inside, model(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    monkeypatch.setattr(linear, "MERGED_COPIES", 10)
    monkeypatch.setattr(linear.FastLoRA, "merge", lambda self: pytest.fail("the copies are too large"))
    with merged(layers):
        pass


def test_sixteen_bits_are_never_merged(monkeypatch):
    layers = speed_up(adapted(True, ["first"], torch.bfloat16))
    monkeypatch.setattr(linear.FastLoRA, "merge", lambda self: pytest.fail("this would round the adapter away"))
    with merged(layers):
        pass


def packed(kind, targets, dtype, bias):
    """bitsandbytes layers with two adapters, computing in `dtype`."""
    torch.manual_seed(0)
    bnb = pytest.importorskip("bitsandbytes")
    model = Net(bias, width=64)
    for name in ("first", "last"):
        plain = getattr(model, name)
        shape = (plain.in_features, plain.out_features, bias)
        if kind == "nf4":
            quantised = bnb.nn.Linear4bit(*shape, compute_dtype=dtype, compress_statistics=True, quant_type="nf4")
        else:
            quantised = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=6.0)
        quantised.load_state_dict(plain.state_dict())
        setattr(model, name, quantised.to("cpu"))
    if bias:
        for layer in (model.first, model.last):
            layer.bias.data = layer.bias.data.to(dtype)
    return with_adapters(model, targets)


@pytest.mark.parametrize("shape", [(40, 64), (5, 9, 64), (2, 64)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_lora_on_quantised_layers_equals_peft(route, kind, bias, shape):
    model = packed(kind, ["first", "last"], torch.float32, bias)
    x = torch.randn(shape)
    expected = outcome(model, x)
    assert sum("lora_" in name for name in expected) == 4
    layers = speed_up(model)
    assert len(layers) == 2
    equal(outcome(model, x), expected, rtol=1e-4, atol=5e-3)
    for layer in model.modules():
        if hasattr(layer, "_disable_adapters"):
            layer._disable_adapters = True
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.base_model.model.last.base_layer(
            torch.tanh(model.base_model.model.first.base_layer(x))
        ))  # fmt: skip


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_lora_on_quantised_layers_keeps_one_input_in_its_own_precision(kind):
    """peft also keeps a float32 copy of the input."""
    model = packed(kind, ["first"], torch.bfloat16, False)
    x = torch.randn(40, 64, dtype=torch.bfloat16)
    expected = outcome(model, x)

    def kept():
        sizes = []
        y = x.clone().requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t) or t, lambda t: t):
            model.base_model.model.first(y)
        wide = [t for t in sizes if t.shape == (40, 64)]
        return {(t.data_ptr(), t.dtype) for t in wide}

    assert torch.float32 in {dtype for _, dtype in kept()}
    speed_up(model)
    assert {dtype for _, dtype in kept()} == {torch.bfloat16}
    assert len(kept()) == 1
    actual = outcome(model, x)
    assert all(g.dtype == torch.float32 for name, g in actual.items() if "lora_" in name)
    equal(actual, expected, rtol=0.1, atol=4.0)


def test_other_linear_classes_without_an_adapter_are_not_replaced():
    class Packed(nn.Linear):
        pass

    model = Net(True)
    model.first = Packed(6, 10)
    speed_up(model)
    assert "forward" not in vars(model.first)
    assert "forward" in vars(model.last)
