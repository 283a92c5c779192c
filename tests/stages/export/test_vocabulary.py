from __future__ import annotations

import re
from typing import Any

import pytest
import small
import tiny
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import Qwen2Tokenizer

from pipeline.errors import StageError
from stages.export.vocabulary import Vocabulary

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
REGEX = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def cutting(pre: Any, normalizer: Any = None) -> Any:
    made = small.bpe()
    made.backend_tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        made.backend_tokenizer.normalizer = normalizer
    return made


@pytest.mark.parametrize(
    ("pre", "name"),
    [
        (REGEX, "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), REGEX]), "smollm"),
        (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]), "llama-bpe"),
    ],
)
def test_llama_cpp_is_told_how_texts_are_cut(pre: Any, name: str) -> None:
    assert Vocabulary.of(cutting(pre), 290).pre == name


def test_qwen_cuts_as_its_name_says() -> None:
    given = small.bpe()
    made = Qwen2Tokenizer(vocab=given.get_vocab(), merges=[])
    assert Vocabulary.of(made, 300).pre == "qwen2"


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        (lambda: tiny.tokenizer(), "a WordLevel tokenizer"),
        (lambda: cutting(pre_tokenizers.Whitespace()), "no pre-tokenizer"),
        (lambda: cutting(pre_tokenizers.ByteLevel(add_prefix_space=True)), "no pre-tokenizer"),
        (lambda: cutting(REGEX, normalizers.Lowercase()), "normaliser"),
        (
            lambda: cutting(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("a+"), "isolated"), BYTES])),
            "no pre-tokenizer",
        ),
    ],
)
def test_what_llama_cpp_would_cut_otherwise_is_refused(tokenizer: Any, problem: str) -> None:
    with pytest.raises(StageError, match=re.escape(problem)):
        Vocabulary.of(tokenizer(), 300)


def test_merges_are_pairs_in_order() -> None:
    tokenizer = small.bpe()
    made = Vocabulary.of(tokenizer, 290)
    assert all(len(merge.split(" ")) == 2 for merge in made.merges)
    assert made.tokens[len(tokenizer) - 1] == "".join(made.merges[-1].split(" "))
    assert not made.adds_bos
