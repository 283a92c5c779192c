from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from pipeline.errors import StageError
from stages.export import gguf_file
from stages.models.loading import load_gguf
from stages.models.quantization import grids
from stages.models.text import Codec

IDS = torch.arange(5, 25)[None]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    found = GGUFReader(path).tensors
    return {tensor.name: torch.tensor(dequantize(tensor.data, tensor.tensor_type)) for tensor in found}


def qwen(kind: str) -> Any:
    torch.manual_seed(0)
    values = small.WIDE | {
        "vocab_size": 290, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "tie_word_embeddings": kind == "qwen2", "bos_token_id": None,
        "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    if kind == "qwen2":
        model: Any = Qwen2ForCausalLM(Qwen2Config(**values))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**values, head_dim=128))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # biases and norms start as zeros and ones
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.ndim == 1 else 0.0)
            assert parameter.std() > 0, name
    return model.eval()


def test_a_file_that_lacks_a_tensor_is_refused_with_its_name(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = small.small_lm(codec.tokenizer)
    lost = "model.layers.1.mlp.up_proj.weight"
    kept = [(name, tensor) for name, tensor in gguf_file.tensors(lm) if name != lost]
    monkeypatch.setattr(gguf_file, "tensors", lambda _: kept)
    gguf_file.write(lm, codec, tmp_path / "m.gguf", "f32", name="small")
    with pytest.raises(StageError, match=rf"would be random \({lost}\)") as caught:
        load_gguf(tmp_path / "m.gguf")
    assert caught.value.where == str(tmp_path / "m.gguf")


def test_a_tensor_that_gguf_does_not_know_is_refused(codec: Codec) -> None:
    lm = small.small_lm(codec.tokenizer)
    lm.model.layers[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(StageError, match=r"no name for model\.layers\.0\.extra\.weight"):
        gguf_file.check(lm)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda t: small.small_lm(t), id="llama"),
        pytest.param(lambda t: small.small_lm(t, tie_word_embeddings=True, rope_theta=50_000.0), id="llama, tied"),
        pytest.param(lambda t: qwen("qwen2"), id="qwen2"),
        pytest.param(lambda t: qwen("qwen3"), id="qwen3"),
    ],
)
def test_transformers_reads_the_same_model_back(model: Any, codec: Codec, tmp_path: Path) -> None:
    lm = model(codec.tokenizer)
    done = []
    gguf_file.write(lm, codec, tmp_path / "m.gguf", "f32", name="small", on_tensor=lambda: done.append(1))
    assert len(done) == len(list(gguf_file.tensors(lm)))
    read = gguf_file.reload(tmp_path / "m.gguf", "cpu")
    assert type(read) is type(lm)
    for name, tensor in lm.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(lm(IDS).logits, read(IDS).logits)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_the_file_holds_the_grid_bit_for_bit(kind: str, codec: Codec, tmp_path: Path) -> None:
    lm = small.small_lm(codec.tokenizer, num_key_value_heads=2)
    counts = gguf_file.write(lm, codec, tmp_path / "m.gguf", kind, name="small")
    assert counts == {kind.upper(): 14, "F16": 2, "F32": 5}
    read = gguf_file.reload(tmp_path / "m.gguf", "cpu").state_dict()
    for name, weight in lm.state_dict().items():
        if ".layers." in name and weight.ndim == 2:
            assert torch.equal(read[name], grids.onto(kind, weight)), name
            assert not torch.equal(read[name], weight)
        elif weight.ndim == 2:
            assert torch.equal(read[name], weight.half().float()), name
        else:
            assert torch.equal(read[name], weight), name


def test_query_and_key_rows_are_in_the_order_of_llama_cpp(codec: Codec, tmp_path: Path) -> None:
    """Row 2i of a head is transformers' row i, row 2i + 1 its row i + half: pairs that rotate together."""
    lm = small.small_lm(codec.tokenizer)
    gguf_file.write(lm, codec, tmp_path / "m.gguf", "f32", name="small")
    written, own = tensors(tmp_path / "m.gguf"), lm.model.layers[1].self_attn
    half = lm.config.head_dim // 2
    for theirs, ours, heads in (("attn_q", own.q_proj.weight, 2), ("attn_k", own.k_proj.weight, 1)):
        found = written[f"blk.1.{theirs}.weight"]
        for head in range(heads):
            for i in range(half):
                row = 2 * half * head + 2 * i
                assert torch.equal(found[row], ours[2 * half * head + i])
                assert torch.equal(found[row + 1], ours[2 * half * head + half + i])
    assert torch.equal(written["blk.1.attn_v.weight"], own.v_proj.weight)


def test_rows_that_no_block_fills_stay_in_16_bits(codec: Codec, tmp_path: Path) -> None:
    lm = small.small_lm(codec.tokenizer, intermediate_size=72)
    counts = gguf_file.write(lm, codec, tmp_path / "m.gguf", "q4_0", name="small")
    assert counts == {"Q4_0": 12, "F16": 4, "F32": 5}
    down = "model.layers.0.mlp.down_proj.weight"
    read = gguf_file.reload(tmp_path / "m.gguf", "cpu").state_dict()[down]
    assert torch.equal(read, lm.state_dict()[down].half().float())


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (lambda t: tiny.gpt2(), "a gpt2 model is not written as GGUF"),
        (lambda t: small.small_lm(t, attention_bias=True), "biases"),
        (lambda t: small.small_lm(t, hidden_act="gelu"), "computes llama with silu, but this model uses gelu"),
        (
            lambda t: small.small_lm(t, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
            "rotary positions of type linear",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    model: Any, problem: str, codec: Codec, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=problem):
        gguf_file.write(model(codec.tokenizer), codec, tmp_path / "m.gguf", "f32", name="small")
    assert not (tmp_path / "m.gguf").exists()


TEXTS = [
    "the blue fox",
    "  two  spaces, 12 345",
    "<|im_start|>user\nthe pub<|im_end|>\n",
    "é 漢字\t🙂 we've",
    "<|endoftext|>",
]


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_the_tokenizer_goes_with_the_file(template: str, tmp_path: Path) -> None:
    tokenizer = small.bpe(template)
    codec = Codec(tokenizer)
    gguf_file.write(small.small_lm(tokenizer, vocab_size=300), codec, tmp_path / "m.gguf", "f16", name="small")
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"], text
    assert read.chat_template == tokenizer.chat_template
    assert (read.eos_token, read.pad_token, read.bos_token) == ("<|endoftext|>", "<|pad|>", None)
    fields = GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.tokens"].contents()[len(tokenizer) :] == [
        f"[PAD{i}]" for i in range(len(tokenizer), 300)
    ]
    assert fields["tokenizer.ggml.token_type"].contents()[:5] == [3, 3, 3, 3, 1]
    assert ("tokenizer.ggml.eot_token_id" in fields) == (template == "chatml")
    assert read.encode(tokenizer.decode([3]))[0] == 3
