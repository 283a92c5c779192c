"""Quantisation-aware training: outputs and gradients, compared with plain transformers on the exported weights."""

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from pipeline.errors import StageError
from stages.models.fast.linear import speed_up
from stages.models.precision import exact
from stages.models.quantization import grids, qat

IDS = torch.tensor(tiny.rows(3, 9, 9))


def adapted(quantization, seed=0):
    """A model with adapters one and two, both with large weights, on a backbone that may be marked."""
    config = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny.quantised_lm(quantization, seed), config, adapter_name="one")
    model.add_adapter("two", config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    model.base_model.set_adapter("two")
    qat.adapt(model)
    return model


def deployed(grid, model):
    """A plain model with the adapter merged by peft and every block's linear weight on the grid."""
    plain = copy.deepcopy(model).merge_and_unload()
    for name, parameter in plain.named_parameters():
        if name.endswith("proj.weight"):
            parameter.data = grids.onto(grid, parameter.data)
    return plain


@pytest.mark.parametrize("grid", grids.GRIDS)
@pytest.mark.parametrize("fast", [False, True])
def test_with_lora_it_computes_the_exported_model(grid, fast):
    model, plain = adapted({"qat": grid}), adapted("none")
    if fast:
        assert not speed_up(model), "layers that round are not replaced"
    expected = deployed(grid, plain)
    with torch.no_grad():
        actual = model(IDS).logits
        torch.testing.assert_close(actual, expected(IDS).logits, rtol=1e-4, atol=1e-4)
        assert (actual - plain(IDS).logits).abs().max() > 1e-3, (
            "rounding must have an effect for this test to be meaningful"
        )
    weights = dict(expected.named_parameters())
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, qat.MARK):
            assert torch.equal(getattr(module, qat.MARK).weight(), weights[name.replace("base_layer", "weight")])


def test_adapters_switch_and_switch_off():
    model = adapted({"qat": "int3-g32"})
    with torch.no_grad():
        two = model(IDS).logits
        with model.disable_adapter():
            none = model(IDS).logits
        model.base_model.set_adapter("one")
        one = model(IDS).logits
        other = adapted("none")
        other.base_model.set_adapter("one")
        torch.testing.assert_close(one, deployed("int3-g32", other)(IDS).logits, rtol=1e-4, atol=1e-4)
        bare = tiny.quantised_lm({"qat": "int3-g32"})
        torch.testing.assert_close(none, bare(IDS).logits, rtol=1e-4, atol=1e-4)
    assert min((two - one).abs().max(), (two - none).abs().max()) > 0.1


def explicit(x, base, a, b, scaling, grid):
    """The same layer through autograd: the rounding error is added as a constant."""
    latent = base.weight + scaling * (b @ a)
    return F.linear(x, latent + (grids.onto(grid, latent) - latent).detach(), base.bias)


@pytest.mark.parametrize("learns", ["adapter", "all"])
@pytest.mark.parametrize("shape", [(40, 64), (5, 3, 64), (0, 64)])
def test_gradients_pass_straight_through(learns, shape):
    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    quantised = qat.Quantised(layer, "int3-g32", "none")
    a, b = nn.Parameter(torch.randn(3, 64)), nn.Parameter(torch.randn(32, 3))
    if learns == "adapter":
        layer.requires_grad_(False)

        class Lora:
            disable_adapters, merged, active_adapters = False, False, ("x",)
            lora_A, lora_B, scaling = (
                {"x": nn.Linear(64, 3, bias=False)},
                {"x": nn.Linear(3, 32, bias=False)},
                {"x": 2.0},
            )

        Lora.lora_A["x"].weight, Lora.lora_B["x"].weight = a, b
        quantised.lora = Lora
    x = torch.randn(shape, requires_grad=True)
    learners = [x, *((a, b) if learns == "adapter" else (layer.weight, layer.bias))]
    scaling = 2.0 if learns == "adapter" else 0.0
    weights = torch.randn(*shape[:-1], 32)
    expected = explicit(x, layer, a, b, scaling, "int3-g32")
    torch.testing.assert_close(quantised(x), expected, rtol=1e-4, atol=1e-4)
    actual = torch.autograd.grad((quantised(x) * weights).sum(), learners)
    for ours, theirs in zip(actual, torch.autograd.grad((expected * weights).sum(), learners), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_weights_are_rounded_in_every_pass_and_only_once_inside_kept(monkeypatch):
    model = adapted({"qat": "q4_0"})
    layers = qat.quantised(model)
    assert len(layers) == 2 * 7
    rounded = []
    onto = grids.onto
    monkeypatch.setattr(grids, "onto", lambda *args: rounded.append(1) or onto(*args))
    with torch.no_grad():
        before = model(IDS).logits
        with qat.kept(layers):
            rounded.clear()
            for _ in range(3):
                assert torch.equal(model(IDS).logits, before)
            assert len(rounded) == len(layers)
        for name, parameter in model.named_parameters():
            if ".two." in name:
                parameter.data.add_(0.1)  # as bitsandbytes' optimizers do, unseen by autograd's version counter
        rounded.clear()
        after = model(IDS).logits
        assert len(rounded) == len(layers)
    assert (after - before).abs().max() > 0.01


def test_embeddings_and_the_output_layer_are_not_quantised():
    model = tiny.quantised_lm({"qat": "int2-g32"})
    names = qat.linears(model)
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    kinds += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert set(names) == {f"model.layers.{i}.{kind}" for i in range(2) for kind in kinds}
    tied = tiny.lm(0, hidden_size=64, tie_word_embeddings=True)
    assert "lm_head" not in qat.linears(tied)
    # The layers that bitsandbytes packs are the same ones.
    packed = {n for n, m in tiny.quantised_lm("nf4").named_modules() if type(m).__name__ == "Linear4bit"}
    assert packed == set(names)


def test_settle_gives_a_plain_model_with_the_rounded_weights():
    model = adapted({"qat": "int4-g32"})
    expected = deployed("int4-g32", adapted("none"))
    merged = model.merge_and_unload()
    with torch.no_grad():
        before = merged(IDS).logits
    qat.settle(merged)
    assert not qat.quantised(merged)
    for (name, ours), theirs in zip(merged.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, before, rtol=1e-4, atol=1e-4)


def test_activations_are_rounded_per_token():
    torch.manual_seed(0)
    x = torch.randn(6, 64) * torch.tensor([0.0, 1e-6, 0.1, 1.0, 50.0, 1.0])[:, None]
    x[5] = x[5].abs() + 3
    actual = grids.int8_per_token(x)
    for row, x_row in zip(actual, x, strict=True):
        step = (x_row.max().clamp(min=0) - x_row.min().clamp(max=0)) / 255
        assert len(row.unique()) <= 256
        assert (row - x_row).abs().max() <= 0.51 * step + 1e-12
        assert torch.equal(grids.int8_per_token(x_row[None])[0], row), "a token's grid depends on itself only"
    layer = nn.Linear(64, 8)
    quantised = qat.Quantised(layer, "q8_0", "int8")
    y = x.clone().requires_grad_(True)
    quantised(y).sum().backward()
    q = grids.onto("q8_0", layer.weight.data)
    torch.testing.assert_close(quantised(x), F.linear(actual, q, layer.bias))
    torch.testing.assert_close(y.grad, q.sum(0).expand(6, -1))
    torch.testing.assert_close(layer.weight.grad, actual.sum(0).expand(8, -1))


@pytest.mark.filterwarnings("ignore")
def test_activations_equal_torchao():
    name = "torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor"
    theirs = pytest.importorskip(name)._apply_int8_act_asym_per_token_quant_dequant
    torch.manual_seed(0)
    x = torch.randn(200, 64) * torch.logspace(-4, 3, 200)[:, None] + torch.randn(200, 1)
    x[7] = 0
    assert torch.equal(grids.int8_per_token(x), theirs(x))


def test_unsupported_models_are_refused():
    with pytest.raises(StageError, match="in its blocks: quantisation-aware"):
        qat.mark(tiny.gpt2(), {"qat": "q4_0", "activations": "none"})
    with pytest.raises(StageError, match="blocks of 32 weights"):
        qat.mark(tiny.lm(), {"qat": "q4_0", "activations": "none"})


def test_models_with_rounded_inputs_are_not_exact():
    assert not exact(tiny.quantised_lm("int8"))
    assert not exact(adapted({"qat": "q4_0", "activations": "int8"}))
    assert not exact(tiny.lm().bfloat16())
    assert exact(tiny.lm())
    assert exact(adapted({"qat": "q4_0"}))
    assert exact(tiny.quantised_lm("nf4"))
