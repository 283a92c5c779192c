"""The pass of each architecture, compared with the model's own forward over single rows."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pipeline.errors import StageError
from stages.models import acceptance
from stages.models.acceptance import Passes
from stages.models.actor import Actor, check_projection
from stages.models.fast.linear import speed_up
from stages.models.fast.plain import PlainDecoder, PlainSteps
from stages.models.miniature import NoMiniature, layer_groups, miniature
from stages.models.text import pad
from stages.sampling.decoding import Record, generate

VOCABULARY, STOPS, LENGTH = 64, {60, 61, 62, 63}, 14
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
RECURRENT = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def rope(kind, **values):
    return {"rope_parameters": {"rope_theta": 1e4, "rope_type": kind, **values}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16, "factor": 4.0}

# Name of the pass, model type and config values of each architecture.
FAST = {
    "llama": ("plain", "llama", SHAPE),
    "mistral": ("plain up to 8 tokens, own beyond", "mistral", {**SHAPE, "sliding_window": 8}),
    "gpt2": ("own", "gpt2", GPT2),
    "gemma2": ("own", "gemma2", {**SHAPE, "head_dim": 8, "sliding_window": 8}),
    "qwen3.5": ("own", "qwen3_5_text", {**SHAPE, "head_dim": 16, **LINEAR}),
    "mamba": (
        "own",
        "mamba",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
    "rwkv": (
        "own, without a cache",
        "rwkv",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 128},
    ),
}
SLOW = {
    "llama with biases": ("plain", "llama", {**SHAPE, "attention_bias": True, "mlp_bias": True}),
    "llama 3": ("plain", "llama", {**SHAPE, **LLAMA3}),
    "yarn": ("plain", "llama", {**SHAPE, **rope("yarn", factor=4.0, original_max_position_embeddings=16)}),
    "qwen2": ("plain", "qwen2", SHAPE),
    "qwen2 with windows": (
        "plain up to 8 tokens, own beyond",
        "qwen2",
        {**SHAPE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("plain", "qwen3", {**SHAPE, "head_dim": 16}),
    "smollm3": ("own", "smollm3", {**SHAPE, "no_rope_layers": [1, 0, 1]}),
    "phi3": ("own", "phi3", SHAPE),
    "starcoder2": ("own", "starcoder2", {**SHAPE, "sliding_window": 8}),
    "gemma3": ("own", "gemma3_text", {**SHAPE, "head_dim": 8, **WINDOWS}),
    "olmo3": ("own", "olmo3", {**SHAPE, **WINDOWS}),
    "cohere2": ("own", "cohere2", {**SHAPE, **WINDOWS, "logit_scale": 0.3}),
    "gpt-oss": ("own", "gpt_oss", {**SHAPE, "head_dim": 8, **EXPERTS, **WINDOWS}),
    "granite": (
        "own",
        "granite",
        {**SHAPE, "embedding_multiplier": 12.0, "residual_multiplier": 0.2, "logits_scaling": 8.0},
    ),
    "granite hybrid": (
        "own",
        "granitemoehybrid",
        {
            **SHAPE,
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
            "layer_types": ["mamba", "attention", "mamba"],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
    "qwen3-next": (
        "own",
        "qwen3_next",
        {**SHAPE, "head_dim": 16, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "lfm2": (
        "own",
        "lfm2",
        {**SHAPE, "layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    ),
    "jamba": (
        "own",
        "jamba",
        {
            **SHAPE,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "falcon-h1": (
        "own",
        "falcon_h1",
        {
            **SHAPE,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "lm_head_multiplier": 0.1,
        },
    ),
    "recurrent gemma": (
        "own, without a cache",
        "recurrent_gemma",
        {**SHAPE, "lru_width": 32, "attention_window_size": 8, "head_dim": 8, "logits_soft_cap": 3.0},
    ),
    "minimax": (
        "own, without a cache",
        "minimax",
        {
            **SHAPE,
            "head_dim": 8,
            "num_local_experts": 2,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "block_size": 8,
        },
    ),
    "bloom": ("own", "bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
}
LIMITED = {
    "dynamic rotary positions": (
        "plain, up to 16 tokens",
        "llama",
        {**SHAPE, "max_position_embeddings": 16, **rope("dynamic", factor=4.0)},
    ),
    "long rotary positions": (
        "own, up to 16 tokens",
        "phi3",
        {**SHAPE, **rope("longrope", **LONG), "original_max_position_embeddings": 16},
    ),
}


def make(kind, values) -> PreTrainedModel:
    """A model with weights, norms and biases that make mistakes visible."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**values), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            else:
                parameter.normal_(std=0.25)
    model.requires_grad_(False)
    return model.eval()


def logprobs_alone(model, prompt, response):
    """Log-probs of the response tokens, from the model's own forward over one row without padding or cache."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def check(kind, values, expected, lengths=(3, 25, 9, 18, 6, 12)):
    """Compares sampling (rows stop and are dropped) and a pass over right-padded rows with single rows."""
    model = make(kind, values)
    speed_up(model)
    actor = Actor(model)
    assert actor.passes.name == expected
    check_projection(actor)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    uniform = torch.rand((len(prompts), LENGTH), generator=generator)
    record = Record.empty(tuple(uniform.shape), "cpu")
    responses = generate(
        actor, prompts, uniform, temperature=1.0, stop_ids={*STOPS, *range(0, 60, 6)}, pad_id=0, record=record
    )
    assert len({len(response) for response in responses}) > 2, "some rows must stop before others"
    ids, _ = pad([p + r for p, r in zip(prompts, responses, strict=True)], 0, left=False)
    with torch.no_grad():
        padded = actor.project(actor.hidden(ids).flatten(0, 1)).view(*ids.shape, -1).log_softmax(-1)
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            alone = logprobs_alone(model, prompt, response)
            torch.testing.assert_close(record.logp_BT[i, : len(response)], alone, rtol=1e-3, atol=1e-4)
            places = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
            torch.testing.assert_close(padded[i, places, torch.tensor(response)], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FAST)
def test_decoding_and_padded_rows_equal_a_pass_over_each_row_alone(name):
    expected, kind, values = FAST[name]
    check(kind, values, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_decoding_and_padded_rows_of_more_architectures(name):
    expected, kind, values = SLOW[name]
    check(kind, values, expected)


@pytest.mark.parametrize("name", LIMITED)
def test_positions_that_depend_on_the_longest_row_bound_the_length(name):
    """Rotary frequencies change for the entire batch when its longest row exceeds the original context."""
    expected, kind, values = LIMITED[name]
    model = make(kind, values)
    actor = Actor(model)
    assert actor.passes.name == expected
    assert actor.passes.longest == 16
    row = torch.randint(3, VOCABULARY, (1, 17), generator=torch.Generator().manual_seed(0))
    theirs = model.get_decoder()(input_ids=row[:, :16], use_cache=False).last_hidden_state
    torch.testing.assert_close(actor.hidden(row[:, :16]), theirs, rtol=1e-3, atol=1e-4)
    with pytest.raises(StageError, match="a row has 17 tokens"):
        actor.hidden(row)
    with pytest.raises(StageError, match="a row has 20 tokens"):
        actor.decode(row[:, :10], torch.ones(1, 10), 10)


def test_rows_within_a_window_get_the_plain_pass_and_longer_ones_do_not(monkeypatch):
    model = make("mistral", {**SHAPE, "sliding_window": 8})
    actor = Actor(model)
    row = torch.randint(3, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(0))
    theirs = model.get_decoder()(input_ids=row, use_cache=False).last_hidden_state
    monkeypatch.setattr(model.get_decoder(), "forward", None)  # only the plain pass does without it
    torch.testing.assert_close(actor.hidden(row[:, :8]), theirs[:, :8], rtol=1e-3, atol=1e-4)
    with pytest.raises(TypeError):
        actor.hidden(row)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_keep_the_plain_pass(dtype):
    """Even with a few weights that are much larger than the others, as in trained models."""
    model = make("llama", SHAPE)
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            layer.mlp.down_proj.weight[0] *= 20
    assert Actor(model.to(dtype)).passes.name == "plain"


def test_a_plain_pass_that_fails_on_the_real_model_is_not_used():
    """The plain pass is correct for the architecture, but one of the modules was replaced."""
    model = make("llama", SHAPE)
    norm = model.get_decoder().layers[0].input_layernorm
    norm.forward = lambda x: x * norm.weight * 3
    actor = Actor(model)
    assert actor.passes.name == "own"
    row = torch.arange(3, 20)[None]
    torch.testing.assert_close(actor.hidden(row), model.get_decoder()(input_ids=row).last_hidden_state)


def encoder():
    values = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return AutoModelForCausalLM.from_config(BertConfig(**values, intermediate_size=48)).eval()


def test_an_encoder_is_refused():
    with pytest.raises(
        StageError, match="BertLMHeadModel cannot be trained here: the output at a token depends on later"
    ):
        Actor(encoder())


def test_without_a_small_copy_the_model_itself_is_tested(monkeypatch):
    def none(lm, within=False):
        raise NoMiniature

    monkeypatch.setattr(acceptance, "miniature", none)
    monkeypatch.setattr(acceptance, "_accepted", {})
    assert Actor(make("llama", SHAPE)).passes.name == "own"
    assert Actor(make("llama", {**SHAPE, "attention_bias": True}).bfloat16()).passes.name == "own"
    with pytest.raises(StageError, match="later tokens"):
        Actor(encoder())
    broken = make("llama", {**SHAPE, "mlp_bias": True})
    broken.get_decoder = nn.Identity
    with pytest.raises(StageError, match="cannot be trained here: its forward pass fails"):
        Actor(broken)


@pytest.mark.parametrize("where", ["rows", "decoding"])
def test_nan_is_not_accepted(where, monkeypatch):
    """NaN compares false with any tolerance."""
    monkeypatch.setattr(acceptance, "_accepted", {})
    if where == "rows":
        monkeypatch.setattr(PlainDecoder, "hidden", lambda self, ids: torch.full((*ids.shape, 32), torch.nan))
    else:
        monkeypatch.setattr(PlainSteps, "next", lambda self, token: torch.full((len(token), 32), torch.nan))
    assert Actor(make("llama", SHAPE)).passes.name == "own"


def test_each_config_is_tested_once(monkeypatch):
    calls = []
    test = acceptance._test
    monkeypatch.setattr(acceptance, "_accepted", {})
    monkeypatch.setattr(acceptance, "_test", lambda *args: calls.append(1) or test(*args))
    for _ in range(2):
        assert Actor(make("llama", SHAPE)).passes == Passes(math.inf, math.inf)
    Actor(make("llama", {**SHAPE, "attention_bias": True}))
    assert len(calls) == 2


def test_accepting_a_model_draws_no_random_numbers():
    model = make("llama", {**SHAPE, "rms_norm_eps": 1e-5})
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Actor(model)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
QWEN2 = {"num_hidden_layers": 12, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 9}
JAMBA = {"num_hidden_layers": 8, "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}
NEO = {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "hidden_size": 256}
PHI = {"hidden_size": 640, "intermediate_size": 2560, "num_attention_heads": 8, "partial_rotary_factor": 0.4}


@pytest.mark.parametrize(
    ("kind", "values", "layers"),
    [
        ("llama", {"num_hidden_layers": 16}, 2),
        ("llama", SMOLLM2, 2),
        ("qwen2", QWEN2, 2),
        ("gemma3_text", {"num_hidden_layers": 12}, 2),
        ("jamba", JAMBA, 5),
        ("gpt_neo", NEO, 2),
        ("phi", PHI, 2),
    ],
)
def test_a_copy_is_small_and_has_every_kind_of_layer(kind, values, layers):
    """For models with published shapes, on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**values))
    copy = miniature(model)
    assert len(layer_groups(copy)) == layers
    assert set(layer_groups(copy)) == set(layer_groups(model))
    assert sum(p.numel() for p in copy.parameters()) < 3e6
    assert {p.device.type for p in copy.parameters()} == {"cpu"}
    assert copy.config.num_attention_heads == model.config.num_attention_heads
    assert type(copy) is type(model)
