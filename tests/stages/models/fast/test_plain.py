"""Compares outputs and gradients of the plain pass with transformers, and checks which models it rejects."""

import weakref

import pytest
import tiny
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from stages.models.actor import Actor
from stages.models.bank import checkpoint_activations
from stages.models.fast import plain
from stages.models.fast.plain import Attention, GatedSiLU, PlainDecoder, RMSNorm, Rotary

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
IDS = torch.randint(40, (3, 11), generator=torch.Generator().manual_seed(0))


def make(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms of one and biases of zero would hide a mistake
                parameter.add_(0.3 * torch.randn(parameter.shape))
            assert parameter.isfinite().all(), name
    return model.eval()


def llama(**values):
    return tiny.lm(0, num_attention_heads=4, num_key_value_heads=2, **values)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PLAIN = {
    "llama": llama,
    "llama with biases": lambda: make(llama(attention_bias=True, mlp_bias=True).config),
    "llama 3 positions": lambda: make(llama(rope_parameters=LLAMA3).config),
    "tied": lambda: llama(tie_word_embeddings=True),
    "mistral": lambda: make(MistralConfig(**SHAPE, sliding_window=None)),
    "qwen2": lambda: make(Qwen2Config(**SHAPE)),
    "qwen3": lambda: make(Qwen3Config(**SHAPE, head_dim=8)),
}
OTHER = {
    "another activation": lambda: make(llama(hidden_act="gelu").config),
    "fused projections": lambda: make(Phi3Config(**SHAPE)),
    "norms after and soft caps": lambda: make(Gemma2Config(**SHAPE, head_dim=4)),
    "learned positions": tiny.gpt2,
}


@pytest.mark.parametrize("kind", PLAIN)
def test_hidden_states_and_gradients(kind):
    model = PLAIN[kind]()
    decoder = PlainDecoder(model)
    assert Actor(model).passes.name == "plain"
    weigh = torch.randn(3, 11, 16, generator=torch.Generator().manual_seed(1))
    runs = []
    for run in (
        lambda: model.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state,
        lambda: decoder.hidden(IDS),
    ):
        hidden = run()
        (hidden * weigh).sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        runs.append((hidden.detach(), grads))
    (theirs, expected), (ours, grads) = runs
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", OTHER)
def test_other_architectures_keep_their_own_pass(kind):
    assert not Actor(OTHER[kind]()).passes.plain


def test_a_long_row_goes_through_the_fused_kernel(monkeypatch):
    """Beyond `EXPLICIT_ATTENTION` positions, explicit scores would take too much memory."""
    model = llama()
    ids = torch.randint(40, (2, 30), generator=torch.Generator().manual_seed(0))
    decoder = PlainDecoder(model)
    with torch.no_grad():
        short = decoder.hidden(ids)
        monkeypatch.setattr("stages.models.fast.plain.EXPLICIT_ATTENTION", 8)
        torch.testing.assert_close(decoder.hidden(ids), short, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [8, 128])
def test_decoding_equals_a_pass_over_full_rows(limit, monkeypatch):
    """Left-padded prompts, a row dropped on the way, short and long caches."""
    monkeypatch.setattr("stages.models.fast.plain.EXPLICIT_ATTENTION", limit)
    model = llama()
    decoder = PlainDecoder(model)
    from stages.models.fast.plain import PlainSteps

    prompts, more = [[5, 6, 7, 8], [9], [10, 11]], [[12, 13, 14], [15, 16, 17], [18, 19, 20]]
    ids = torch.tensor([[0] * (4 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (4 - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        steps = PlainSteps(decoder, ids, mask, 3)
        live = [0, 1, 2]
        for t in range(4):
            if t == 0:
                hidden = steps.start()
            else:
                if t == 2:
                    steps.keep(torch.tensor([0, 2]))
                    live = [0, 2]
                hidden = steps.next(torch.tensor([more[i][t - 1] for i in live]))
            for row, i in enumerate(live):
                full = torch.tensor([prompts[i] + more[i][:t]])
                theirs = model.get_decoder()(input_ids=full, use_cache=False).last_hidden_state[0, -1]
                torch.testing.assert_close(hidden[row], theirs, rtol=1e-4, atol=1e-4)


def test_attention_gets_no_mask_together_with_grouped_queries(monkeypatch):
    """PyTorch's fused kernels do not accept both, and its fallback materialises all scores."""
    calls = []
    attend = plain.F.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
        calls.append((attn_mask is not None, enable_gqa))
        assert attn_mask is None or (not enable_gqa and query.shape[1] == key.shape[1])
        assert is_causal == (attn_mask is None)
        return attend(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)

    monkeypatch.setattr(plain, "EXPLICIT_ATTENTION", 0)
    monkeypatch.setattr(plain.F, "scaled_dot_product_attention", watched)
    decoder = PlainDecoder(llama())
    for takes_groups in (True, False):
        monkeypatch.setattr(plain, "_takes_groups", lambda *heads, takes=takes_groups: takes)
        hidden = decoder.hidden(IDS)
        steps = decoder.decode(IDS[:, :-1], torch.ones(3, 10), 1)
        steps.start()
        torch.testing.assert_close(steps.next(IDS[:, -1]), hidden[:, -1], rtol=1e-4, atol=1e-5)
    assert set(calls) == {(False, True), (False, False), (True, False)}


def test_gradients_by_finite_differences():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    angle = random(1, 3, 1, 2).detach()
    assert torch.autograd.gradcheck(lambda x: Rotary.apply(x, angle.cos(), angle.sin()), random(2, 3, 2, 4))
    assert torch.autograd.gradcheck(GatedSiLU.apply, (random(3, 4), random(3, 4)))
    mask = torch.full((3, 3), -torch.inf, dtype=torch.float64).triu_(1)
    heads = random(2, 4, 3, 2), random(2, 2, 3, 2), random(2, 2, 3, 2)  # two query heads per key head
    assert torch.autograd.gradcheck(lambda *args: Attention.apply(*args, mask, 0.7), heads)


def test_rms_norm_by_its_formula():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 6, generator=generator), torch.randn(6, generator=generator)
    for tensor in (x, weight):
        tensor.requires_grad_(True)
    weigh = torch.randn(5, 6, generator=generator)
    formula = x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    expected = torch.autograd.grad((formula * weigh).sum(), (x, weight))
    ours = RMSNorm.apply(x, weight, 1e-3)
    torch.testing.assert_close(ours, formula)
    for actual, gradient in zip(torch.autograd.grad((ours * weigh).sum(), (x, weight)), expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=1e-5)


def test_the_gated_product_is_recomputed_instead_of_saved(monkeypatch):
    """The gated product, as wide as the MLP, is not saved: for its gradient, the next layer's, or by the hooks."""
    model = llama()
    model.requires_grad_(False)
    decoder = PlainDecoder(model)
    model.get_input_embeddings().weight.requires_grad_(True)
    weigh = [layer.mlp.down_proj.weight.requires_grad_(True) for layer in model.get_decoder().layers]
    saved, products = [], []
    apply = GatedSiLU.apply

    def applied(gate, up):
        product = apply(gate, up)
        products.append(weakref.ref(product))
        return product

    monkeypatch.setattr(GatedSiLU, "apply", applied)
    with saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda tensor: tensor):
        hidden = decoder.hidden(IDS)
        assert len(products) == len(weigh)
        assert not any(product() is not None for product in products)
        hidden.sum().backward()
    wide = [shape for shape in saved if shape[-1] == model.config.intermediate_size and len(shape) == 3]
    assert len(wide) == 2 * len(weigh), "gate and up of each layer"
    assert all(weight.grad.any() for weight in weigh)


def test_a_checkpointed_block_saves_nothing_of_its_mlp(monkeypatch):
    model = llama()
    checkpoint_activations(model)
    decoder = PlainDecoder(model)
    gates = []
    apply = GatedSiLU.apply
    monkeypatch.setattr(GatedSiLU, "apply", lambda gate, up: gates.append(weakref.ref(gate)) or apply(gate, up))
    hidden = decoder.hidden(IDS)
    assert len(gates) == model.config.num_hidden_layers
    assert not any(gate() is not None for gate in gates)
    hidden.sum().backward()
    assert all(layer.mlp.up_proj.weight.grad.any() for layer in model.get_decoder().layers)
