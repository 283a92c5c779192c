"""Models are never loaded with weights that their checkpoint does not contain."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
)

from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models.adapters import ADAPTER, attach_adapter, load_full, load_policy
from stages.models.loading import load_backbone, load_causal_lm, load_pretrained
from stages.scoring.classifier import load_classifier

State = dict[str, torch.Tensor]
LAYER = "model.layers.1.mlp.up_proj.weight"


def rewrite(folder: Path, change: Callable[[State], State], config: dict | None = None) -> Path:
    """Changes a checkpoint's tensors, and values of its config.json."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    return folder


def checkpoint(folder: Path, change: Callable[[State], State], config: dict | None = None, **values) -> Path:
    tiny.lm(**values).save_pretrained(folder)
    return rewrite(folder, change, config)


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def with_value_head(state: State) -> State:
    return state | {"v_head.summary.weight": torch.zeros(1, tiny.HIDDEN), "v_head.summary.bias": torch.zeros(1)}


def halved(state: State) -> State:
    return state | {LAYER: state[LAYER][:, :8].contiguous()}


def as_gptq(state: State) -> State:
    return without(LAYER)(state) | {f"{LAYER.removesuffix('weight')}qweight": torch.zeros(4, 4, dtype=torch.int32)}


DAMAGED = {
    "a layer's weight is missing": (without(LAYER), {}, [LAYER, "1 weight is not in it", "incomplete"]),
    "config with more layers": (dict, {"num_hidden_layers": 3}, ["model.layers.2.", "and 6 more", "random"]),
    "config with fewer layers": (dict, {"num_hidden_layers": 1}, ["no place", "model.layers.1.", "smaller model"]),
    "other vocabulary": (dict, {"vocab_size": 99}, ["embed_tokens", rf"\({tiny.VOCABULARY}, 16\)", r"\(99, 16\)"]),
    "one weight of another shape": (halved, {}, [LAYER, r"\(24, 8\)", r"\(24, 16\)"]),
    "untied, and no head": (without("lm_head.weight"), {}, ["lm_head.weight", "tie_word_embeddings"]),
    "compiled": (prefixed("_orig_mod."), {}, [r"_orig_mod\.model", "torch.compile", 'take "_orig_mod."']),
    "parts compiled": (
        lambda state: {name.replace("layers.1.", "layers.1._orig_mod."): t for name, t in state.items()},
        {},
        ["torch.compile"],
    ),
    "data parallel": (prefixed("module."), {}, ["DataParallel", 'take "module."']),
    "foreign prefix": (prefixed("policy."), {}, [r'take "policy\." out']),
    "trl value head": (
        lambda state: with_value_head(prefixed("pretrained_model.")(state)),
        {},
        ["AutoModelForCausalLMWithValueHead", 'take "pretrained_model."', r"v_head\."],
    ),
    "value head beside the model": (with_value_head, {}, [r"v_head\.summary\.weight", "value head from a PPO run"]),
    "quantised, but not declared": (as_gptq, {}, ["qweight", "base.quantization"]),
}


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_names(case, quantization, tmp_path):
    if quantization != "none" and "shape" in case:
        pytest.skip("bitsandbytes itself refuses the shape, without the name")
    change, config, expected = DAMAGED[case]
    checkpoint(tmp_path, change, config)
    with pytest.raises(StageError) as caught:
        load_causal_lm(str(tmp_path), "cpu", dtype="float32", quantization=quantization)
    for pattern in expected:
        assert re.search(pattern, str(caught.value)), caught.value
    assert str(tmp_path) in caught.value.where


@pytest.mark.parametrize("tied", [True, False])
def test_legitimately_missing_or_unexpected_weights_are_accepted(tied, tmp_path):
    """A tied head is stored once; old GPT-2 files contain their causal masks."""
    folder = checkpoint(tmp_path / "llama", dict, tie_word_embeddings=tied)
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) != tied
    model = load_causal_lm(str(folder), "cpu", dtype="float32")
    expected = tiny.lm(tie_word_embeddings=tied).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())

    gpt2: GPT2LMHeadModel = tiny.gpt2()
    gpt2.save_pretrained(tmp_path / "gpt2")
    masks = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    rewrite(tmp_path / "gpt2", lambda state: state | masks)
    load_causal_lm(str(tmp_path / "gpt2"), "cpu", dtype="float32")


def test_a_fully_fine_tuned_policy_is_checked(tmp_path):
    base = tiny.base_artifact(tmp_path / "base")
    checkpoint(tmp_path / "model", without(LAYER))
    with pytest.raises(StageError, match=re.escape(LAYER)):
        load_full(base, Artifact("sft", tmp_path, ""), "cpu")


def adapter_of(artifact, change: Callable[[State], State]) -> None:
    file = artifact.path / ADAPTER / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: dict(list(state.items())[1:]), "1 weight is not in it"),
        (lambda state: {name.replace("layers.1", "layers.7"): t for name, t in state.items()}, "layers.7"),
        (lambda state: {}, "not in it"),
    ],
    ids=["a weight is missing", "of a deeper model", "empty"],
)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
def test_an_adapter_that_does_not_fit_is_refused(change, words, beside, tmp_path):
    base = tiny.base_artifact(tmp_path / "base")
    good = tiny.policy_artifact(tmp_path / "good", base)
    bad = tiny.policy_artifact(tmp_path / "bad", base)
    adapter_of(bad, change)
    model = attach_adapter(load_backbone(base, "cpu"), good.file(ADAPTER), "one")
    if not beside:
        with pytest.raises(StageError, match=words):
            load_policy(base, bad, "cpu")
        return
    with pytest.raises(StageError, match=words):
        attach_adapter(model, bad.file(ADAPTER), "two")


def bert(kind, **values):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return kind(BertConfig(vocab_size=tiny.VOCABULARY, pad_token_id=0, **sizes, **values))


def test_a_classifier_without_its_head_is_refused(tmp_path):
    """Its head would be random, and so would every score in PPO."""
    tiny.lm(num_labels=1).save_pretrained(tmp_path / "lm")
    bert(BertForMaskedLM, num_labels=1).save_pretrained(tmp_path / "encoder")
    for name, head in (("lm", "score.weight"), ("encoder", "classifier.bias")):
        tiny.tokenizer().save_pretrained(tmp_path / name)
        with pytest.raises(StageError, match=head) as caught:
            load_classifier(tmp_path / name, "cpu")
        assert "no trained scoring head" in caught.value.hint


def test_a_new_head_may_be_missing_but_no_layer_of_the_trunk(tmp_path):
    kind = AutoModelForSequenceClassification
    for name, model in (("masked", bert(BertForMaskedLM)), ("bare", bert(BertModel)), ("lm", tiny.lm())):
        model.save_pretrained(tmp_path / name)
        loaded = load_pretrained(kind, tmp_path / name, new_head=True, num_labels=1)
        assert loaded.config.num_labels == 1
        layer = {
            "masked": "bert.encoder.layer.1.output.dense.weight",
            "bare": "encoder.layer.1.output.dense.weight",
        }
        rewrite(tmp_path / name, without(layer.get(name, LAYER)))
        with pytest.raises(StageError, match="would be random"):
            load_pretrained(kind, tmp_path / name, new_head=True, num_labels=1)
    for name, model in (("masked", bert(BertForMaskedLM)), ("bare", bert(BertModel))):
        model.save_pretrained(tmp_path / name)
        rewrite(tmp_path / name, dict, {"num_hidden_layers": 1})
        with pytest.raises(StageError, match="no place for"):
            load_pretrained(kind, tmp_path / name, new_head=True, num_labels=1)


def test_a_complete_classifier_loads(tmp_path):
    models = {
        "decoder": LlamaForSequenceClassification(tiny.lm(num_labels=1).config),
        "encoder": bert(BertForSequenceClassification, num_labels=1),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
        state = load_classifier(tmp_path / name, "cpu").model.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_the_same_function_loads_a_language_model(tmp_path):
    checkpoint(tmp_path, without(LAYER))
    with pytest.raises(StageError, match="would be random"):
        load_pretrained(AutoModelForCausalLM, tmp_path)
