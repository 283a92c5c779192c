"""llama.cpp reads the GGUF files that the stage writes, and says what transformers says."""

from __future__ import annotations

from pathlib import Path

import pytest
import small
import torch
from llamacpp import LlamaCpp

from stages.export import gguf_file
from stages.models.text import Codec

PROMPTS = ("the blue fox", "<|im_start|>user\nthe pub<|im_end|>\n<|im_start|>assistant\n", "a  red  12 fox, 漢")
TEXTS = (*PROMPTS, "é\t🙂 we've  x", "<|endoftext|>", "1 22 333")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("heads", [1, 2])
def test_greedy_tokens_are_equal(kind: str, heads: int, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    tokenizer = small.bpe("chatml")
    codec = Codec(tokenizer)
    lm = small.small_lm(tokenizer, num_key_value_heads=heads, rope_theta=5_000.0)
    path = tmp_path / "m.gguf"
    gguf_file.write(lm, codec, path, kind, name="small")
    read, theirs = gguf_file.reload(path, "cpu"), LlamaCpp(path)
    for text in TEXTS:
        assert theirs.tokenize(text) == tokenizer(text)["input_ids"], text
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            ours = read.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=24, do_sample=False,
                eos_token_id=sorted(codec.stop_ids), pad_token_id=codec.pad_id,
            )[0, len(ids) :].tolist()  # fmt: skip
        spoken = [token for token in ours if token not in codec.stop_ids]
        answer = [token for token in theirs.greedy(ids, 24) if token not in codec.stop_ids]
        assert answer == spoken, prompt
        assert len(spoken) > 3
