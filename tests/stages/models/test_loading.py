import gc
import json
from pathlib import Path

import pytest
import tiny
import torch

from pipeline.errors import StageError
from stages.models.loading import (
    describe_dtype,
    dtype_of,
    load_causal_lm,
    read_tokenizer,
    readable_checkpoint,
)


@pytest.mark.parametrize("error", [OSError(), ValueError("first line\nsecond line"), KeyError("weight")])
def test_any_error_while_reading_a_checkpoint_is_one_message(error):
    with pytest.raises(StageError, match="checkpoint cannot be loaded: ") as caught, readable_checkpoint("x"):
        raise error
    assert "second line" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_dtype_on_a_cpu(name, expected):
    assert dtype_of(name, "cpu") == expected
    assert describe_dtype(name, "cpu") == f"computing in {str(expected).removeprefix('torch.')}"


@pytest.fixture(params=["computes", "emulates"])
def card(request, monkeypatch):
    """A GPU that computes in bfloat16, or one on which CUDA emulates it, as on a T4."""
    computes = request.param == "computes"
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or computes
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    return request.param


def test_auto_is_bfloat16_only_on_cards_that_support_it(card):
    expected = {"computes": torch.bfloat16, "emulates": torch.float32}[card]
    assert dtype_of("auto", "cuda") == expected
    assert str(expected).removeprefix("torch.") in describe_dtype("auto", "cuda")
    assert ("Tesla T4" in describe_dtype("auto", "cuda")) == (card == "emulates")


def test_an_explicit_dtype_is_used_with_a_warning_if_it_is_emulated(card):
    assert dtype_of("bfloat16", "cuda") == torch.bfloat16
    assert dtype_of("float16", "cuda") == torch.float16
    assert describe_dtype("bfloat16", "cuda").startswith("warning") == (card == "emulates")
    assert describe_dtype("float16", "cuda") == "computing in float16"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_model_releases_its_file(quantization, tmp_path):
    """Otherwise the pages read for quantisation, the size of the full model, would count towards the process."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux says what is mapped")
    tiny.lm(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path), "cpu", dtype="float32", quantization=quantization)
    gc.collect()
    assert str(tmp_path) not in maps.read_text()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (embedding is head) == model.config.tie_word_embeddings


def garbled(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


SPOILED = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "config that is no JSON": lambda folder: garbled(folder, "config.json", b"\xff{"),
    "config that is a list": lambda folder: garbled(folder, "config.json", b"[]"),
    "config that names no architecture": lambda folder: garbled(folder, "config.json", b"{}"),
    "weights that are none": lambda folder: garbled(folder, "model.safetensors", b"garbage"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "an adapter's config that is no JSON": lambda folder: garbled(folder, "adapter_config.json", b"{"),
}
VALUES = {
    "hidden_size": "64",
    "num_attention_heads": 0,
    "hidden_act": "nope",
    "rope_parameters": {"rope_type": "x"},
}


@pytest.mark.parametrize("case", [*SPOILED, *VALUES])
def test_damaged_checkpoints_raise_a_stage_error(case, tmp_path):
    tiny.lm().save_pretrained(tmp_path)
    if case in SPOILED:
        SPOILED[case](tmp_path)
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {case: VALUES[case]}))
    with pytest.raises(StageError) as caught:
        load_causal_lm(str(tmp_path), "cpu", dtype="float32")
    assert str(tmp_path) in caught.value.where
    assert caught.value.hint


def test_a_file_is_not_a_checkpoint(tmp_path):
    tiny.lm().save_pretrained(tmp_path)
    with pytest.raises(StageError, match="it is a file"):
        load_causal_lm(str(tmp_path / "model.safetensors"), "cpu", dtype="float32")


@pytest.mark.parametrize("content", [b"{", b'{"version": "1.0"}'])
def test_a_damaged_tokenizer_raises_a_stage_error(content, tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    garbled(tmp_path, "tokenizer.json", content)
    with pytest.raises(StageError, match="the tokenizer cannot be loaded"):
        read_tokenizer(tmp_path)
