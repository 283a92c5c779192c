"""What the `base` stage finds out about a model, and what it refuses."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from pipeline.config import fit
from pipeline.config.base import BaseConfig, QATConfig
from pipeline.config.fit import ModelProfile
from pipeline.errors import StageError
from stages.base import stage as base
from stages.base.profile import profile, quantized_share
from stages.models.acceptance import OWN
from stages.models.loading import load_causal_lm
from stages.models.quantization import qat
from stages.models.text import Codec
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.classifier import TextClassifier, load_classifier
from stages.scoring.scorer import TextScorer

SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert() -> BertLMHeadModel:
    torch.manual_seed(0)
    return BertLMHeadModel(BertConfig(vocab_size=tiny.VOCABULARY, pad_token_id=0, **SIZES))


def mamba() -> MambaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    return MambaForCausalLM(MambaConfig(vocab_size=tiny.VOCABULARY, pad_token_id=0, **sizes))


def mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    values = {"num_key_value_heads": 2, "num_local_experts": 8, "max_position_embeddings": 64}
    return MixtralForCausalLM(MixtralConfig(vocab_size=tiny.VOCABULARY, pad_token_id=0, **SIZES, **values)).eval()


def alone():
    return tiny.lm()


def bart() -> BartForConditionalGeneration:
    sizes = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 16))}
    return BartForConditionalGeneration(BartConfig(vocab_size=tiny.VOCABULARY, d_model=16, **sizes))


def saved(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def run(folder: Path, tmp_path: Path, context, **values):
    out = tmp_path / "out"
    out.mkdir()
    config = BaseConfig(model=str(folder), check_tokens=2, dtype="float32", **values)
    return base.run(config, {}, out, context()), ModelProfile.read(out)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (bert, ["BertLMHeadModel", "encoder"]),
        (bart, ["encoder-decoder (bart)"]),
        (alone, ["LlamaForCausalLM cannot be"]),
    ],
    ids=["encoder", "encoder-decoder", "no decoder apart from the head"],
)
def test_models_that_no_stage_can_train_are_refused(model, words, tmp_path, context, monkeypatch):
    if model is alone:
        monkeypatch.setattr(LlamaForCausalLM, "get_decoder", lambda self: self)
    with pytest.raises(StageError) as caught:
        run(saved(model(), tmp_path / "model"), tmp_path, context)
    assert all(word in str(caught.value) for word in words), caught.value


def test_code_of_a_checkpoint_is_never_run_nor_offered(tmp_path, context, monkeypatch):
    """Neither a model's nor a tokenizer's; transformers would ask at the terminal."""

    def ask(*_):
        raise AssertionError("asked whether to run foreign code")

    monkeypatch.setattr("builtins.input", ask)
    marker = tmp_path / "it_ran"
    folder = saved(tiny.lm(), tmp_path / "model")
    code = f"open({str(marker)!r}, 'w')\nclass My: pass\n"
    for name, file, changes in (
        (
            "configuration_my.py",
            "config.json",
            {"model_type": "my", "auto_map": {"AutoConfig": "configuration_my.My"}},
        ),
        (
            "tokenization_my.py",
            "tokenizer_config.json",
            {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_my.My", None]}},
        ),
    ):
        (folder / name).write_text(code)
        text = (folder / file).read_text()
        (folder / file).write_text(json.dumps(json.loads(text) | changes))
        with pytest.raises(StageError, match="never run here"):
            run(folder, tmp_path, context)
        (folder / file).write_text(text)
        (tmp_path / "out").rmdir()
    assert not marker.exists()


def test_an_architecture_that_nobody_knows_is_named(tmp_path, context):
    folder = saved(tiny.lm(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama9"}))
    with pytest.raises(StageError, match=r"does not know its architecture \(llama9\)"):
        run(folder, tmp_path, context)


def with_nan(folder: Path, name: str) -> Path:
    file = folder / "model.safetensors"
    state = load_file(file)
    state[name].view(-1)[0] = float("nan")
    save_file(state, file, {"format": "pt"})
    return folder


def test_weights_that_are_nan_are_named(tmp_path, context):
    """Also where the few tokens that `base` tries do not meet them."""
    folder = with_nan(saved(tiny.lm(), tmp_path / "model"), "model.embed_tokens.weight")
    with pytest.raises(StageError, match=r"model\.embed_tokens\.weight"):
        run(folder, tmp_path, context)


def scores(classifier: TextClassifier, *texts: str) -> torch.Tensor:
    """Of empty responses to each text."""
    prompts = [EncodedPrompt(tiny.user(text), [], "train") for text in texts]
    return TextScorer(classifier, tiny.codec())(prompts, [[tiny.EOS]] * len(texts))


def test_a_reward_model_of_nan_is_named_as_such(tmp_path):
    folder = saved(LlamaForSequenceClassification(tiny.lm(num_labels=1).config), tmp_path / "rm")
    assert scores(load_classifier(folder, "cpu"), "abc").isfinite().all()
    with pytest.raises(StageError, match=r"the reward model are NaN or infinite \(score\.weight\)") as caught:
        load_classifier(with_nan(folder, "score.weight"), "cpu")
    assert caught.value.where == str(folder)


def test_a_reward_model_that_overflows_is_named_as_such(tmp_path):
    folder = saved(LlamaForSequenceClassification(tiny.lm(num_labels=1).config), tmp_path / "rm")
    classifier = load_classifier(folder, "cpu")
    with torch.no_grad():
        classifier.model.score.weight.fill_(3e38)
    with pytest.raises(StageError, match="reward model gives 2 of 2 texts a score that is NaN or infinite"):
        scores(classifier, "abcdef", "qz")


def test_the_profile_of_a_llama(tmp_path, context):
    """Against the model that it is written for, by torch's own walk through its modules."""
    _, found = run(saved(tiny.lm(tie_word_embeddings=True), tmp_path / "model"), tmp_path, context)
    assert found is not None
    assert found.context == 128
    assert (found.output, found.tied, found.unsupported) == ("lm_head", True, [])
    linear = {n for n, m in tiny.lm().named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(found.linear) == linear
    assert found.other["model.embed_tokens"] == "Embedding"
    # One token a character is no byte-level BPE, and rows of 16 fill no block of 32.
    assert {"gguf_f16", "nf4", "torchao_int4"} < set(found.formats)
    assert "safetensors" not in found.formats


def test_a_pretrained_llama_is_what_was_foreseen(tmp_path):
    """`plan` speaks of a model that is not there yet."""
    from pipeline.config.base import PretrainConfig
    from pipeline.config.data import TaskConfig

    values = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    pretrain = PretrainConfig(corpus=TaskConfig(task="venues", size=10), max_position_embeddings=128, **values)
    foreseen = fit._pretrained(pretrain)
    found = profile(tiny.lm(tie_word_embeddings=True, num_key_value_heads=2), Codec(tiny.tokenizer()), OWN)
    assert (foreseen.context, foreseen.output, foreseen.tied) == (found.context, found.output, found.tied)
    assert set(foreseen.linear) == set(found.linear)
    assert foreseen.other.items() <= found.other.items()
    assert set(foreseen.formats) == {name for name in found.formats if not name.startswith("gguf")}


def test_layers_that_peft_refuses_are_known(tmp_path):
    found = profile(mamba(), Codec(tiny.tokenizer()), OWN)
    assert found.unsupported == ["out_proj"]
    assert found.context is None


def test_the_context_ends_where_a_row_would_depend_on_its_batch(tmp_path, context):
    """Dynamic rotary positions change with the longest row past the original context."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    folder = saved(tiny.lm(tie_word_embeddings=True, rope_parameters=rope), tmp_path / "model")
    _, found = run(folder, tmp_path, context)
    assert found.context == 128


@pytest.mark.parametrize("quantization", ["nf4", {"qat": "nf4"}], ids=["nf4", "qat"])
def test_the_share_of_weights_on_the_grid(quantization, tmp_path):
    """Counted by hand: two layers, queries and output 64 x 64, keys and values 64 x 32, three of 128 x 64."""
    model = tiny.quantised_lm(quantization)
    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 128 * 64)
    norms = 64 * 5
    share, left = quantized_share(model, quantization)
    assert share == pytest.approx(linear / (linear + norms), abs=1e-12)
    assert left == []


@pytest.mark.parametrize("quantization", ["nf4", QATConfig(qat="nf4")], ids=["nf4", "qat"])
def test_a_mixture_of_experts_is_refused_where_its_experts_stay_as_they_are(quantization, tmp_path, context):
    """Eight experts of 3 x 64 x 64 against attention of 4 x 64 x 64: 14 % of the weights."""
    folder = saved(mixtral(), tmp_path / "model")
    with pytest.raises(StageError, match="14% of the weights") as caught:
        run(folder, tmp_path, context, quantization=quantization)
    assert "experts" in str(caught.value)


def test_a_dense_model_says_its_share(tmp_path, context):
    folder = saved(tiny.lm(hidden_size=64, intermediate_size=128), tmp_path / "model")
    metrics, _ = run(folder, tmp_path, context, quantization="nf4")
    assert metrics["quantized_share"] == pytest.approx(0.996, abs=1e-3)
    model = load_causal_lm(str(folder), "cpu", dtype="float32")
    assert not qat.quantised(model)
    assert quantized_share(model, "none")[0] == 0
