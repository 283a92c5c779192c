"""The count of operations against PyTorch's own counter, and the bytes against what tensors there are."""

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, RwkvConfig

from stages.ppo.cost import ModelCost, attainable, shape_of, update_flops

LENGTHS = [(4, 3), (9, 6), (1, 2)]


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("make", [lambda: tiny.lm(), tiny.gpt2], ids=["llama", "gpt2"])
def test_a_forward_pass_is_what_pytorch_counts(make):
    """Row by row; PyTorch counts the masked half of attention too."""
    model = make()
    model.set_attn_implementation("eager")
    shape = shape_of(model)
    total = 0.0
    for prompt, response in LENGTHS:
        tokens = prompt + response - 1
        ids = torch.randint(40, (1, tokens))
        with torch.no_grad():
            trunk = counted(lambda ids=ids: model.get_decoder()(input_ids=ids, use_cache=False))
            head = counted(lambda r=response: model.get_output_embeddings()(torch.randn(r, tiny.HIDDEN)))
        total += trunk + head - 4 * shape.mixing * (tokens**2 - tokens * (tokens + 1) / 2)
    assert shape.forward(LENGTHS) == pytest.approx(total)


def test_a_recurrent_model_has_no_attention_to_count():
    config = RwkvConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, context_length=32)
    model = AutoModelForCausalLM.from_config(config).eval()
    shape = shape_of(model)
    assert (shape.mixing, shape.cached) == (0, 0)
    with torch.no_grad():
        total = counted(lambda: model(torch.randint(40, (1, 7)), use_cache=False))
    assert shape.forward([(1, 7)]) == pytest.approx(total)


def test_adapters_add_nothing_to_the_shape():
    assert shape_of(tiny.lora_bank().model.get_base_model()) == shape_of(tiny.lm())


def test_cached_numbers_are_those_in_a_cache():
    model = tiny.lm()
    cache = model(torch.randint(40, (1, 7))).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert shape_of(model).cached * 7 == held


def test_an_update_phase_by_phase():
    """By hand for a shape of round numbers: 1,000 trunk weights, 100 of the head, no attention."""
    shape = ModelCost(trunk=1000, head=100, mixing=0, cached=0)
    lengths = [(4, 2), (3, 3)]  # 5 + 5 tokens pass, 5 are predicted
    policy, bare = 2 * 1000 * 10 + 2 * 100 * 5, 2 * 1000 * 10
    lora = update_flops(shape, lengths, epochs=3, adapter_value=True, full=False)
    assert lora == {
        "rollout": policy,
        "score": bare,
        "passes": policy + bare,
        "train": 3 * 2 * (policy + bare),
    }
    full = update_flops(shape, lengths, epochs=3, adapter_value=False, full=True)
    assert full == {"rollout": policy, "score": bare, "passes": policy, "train": 3 * 3 * policy}


def test_a_large_product_says_what_is_attainable():
    assert attainable("cpu", torch.float32) > 1e9
