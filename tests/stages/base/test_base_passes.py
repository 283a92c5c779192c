"""The `base` stage says which pass a model gets, and refuses a model that none is right for."""

import json

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, MistralConfig

from pipeline.config.base import BaseConfig
from pipeline.errors import StageError
from stages.base import stage as base

SHAPE = {"vocab_size": tiny.VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": 4}
NARROW = SHAPE | {"hidden_size": 16, "intermediate_size": 24}
MODELS = {
    "mistral": MistralConfig(**NARROW, num_key_value_heads=2, sliding_window=16, max_position_embeddings=256),
    "gpt2": GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=24),
    "bert": BertConfig(**NARROW),
}


def run(name, tmp_path, context, **values):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS[name]).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    config = BaseConfig(model=str(tmp_path / "model"), check_tokens=2, **values)
    return base.run(config, {}, tmp_path / "out", context())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "expected"), [("mistral", "plain up to 16 tokens, own beyond"), ("gpt2", "own")])
def test_the_pass_is_in_the_metrics(name, expected, dtype, tmp_path, context):
    """Also for a context that is shorter than the text it is compared on."""
    metrics = run(name, tmp_path, context, dtype=dtype)
    assert metrics["pass"] == expected
    json.dumps(metrics)


def test_a_model_that_no_pass_is_right_for_is_refused(tmp_path, context):
    with pytest.raises(StageError, match="BertLMHeadModel is not causal"):
        run("bert", tmp_path, context)
