"""Small tokenizers that behave like published ones: SentencePiece as in Llama 2 and Gemma, byte-level BPE as in
GPT-2, and their chat templates."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The blue fox is a pub. What is 1+1? Two!\n\nNo, <|im never: the red fox, is it a pub? <a_b/> Be brief."
] * 3

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ '<<SYS>>' + m.content + '<</SYS>>' }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
DATED = "{{ '<|im_start|>system\n' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + CHATML


def sentencepiece(template: str | None, *, prefix: str = "first", special: tuple[str, ...] = ()) -> Any:
    """As in Llama: spaces are part of words, other characters fall back to bytes, and BOS starts every text."""
    small = Tokenizer(models.BPE())
    small.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    small.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=90, show_progress=False))
    learnt = json.loads(small.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *learnt["vocab"]]
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))},
            merges=[tuple(merge) for merge in learnt["merges"]],
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_bos(backend, template, special, bos="<s>", eos="</s>", unk="<unk>")


def gemma(template: str | None = GEMMA) -> Any:
    """As in Gemma: no leading space, and line breaks are added tokens that are not special."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_previous")
    names = ["<pad>", "<eos>", "<bos>"]
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=120, special_tokens=names, show_progress=False),
    )
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    backend.add_tokens([AddedToken("\n\n", normalized=False)])
    turns = ("<start_of_turn>", "<end_of_turn>")
    return _with_bos(backend, template, turns, bos="<bos>", eos="<eos>", pad="<pad>")


def byte_level(template: str | None = CHATML, *, special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")) -> Any:
    """As in GPT-2: BOS equals EOS and is not added to texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=list(special),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def _with_bos(
    backend: Tokenizer, template: str | None, special: tuple[str, ...], *, bos: str, **names: str
) -> PreTrainedTokenizerFast:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        additional_special_tokens=list(special),
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": token for name, token in names.items()},
    )
    tokenizer.chat_template = template
    return tokenizer


MARKERS = ("<|im_start|>", "<|im_end|>")
KINDS = {
    "Llama": lambda: sentencepiece(LLAMA),
    "Llama, legacy": lambda: sentencepiece(LLAMA, prefix="always"),
    "Llama with ChatML": lambda: sentencepiece("{{ bos_token }}" + CHATML, special=MARKERS),
    "Gemma": gemma,
    "GPT-2": byte_level,
}
"""Name -> a function that makes the tokenizer with its chat template."""
