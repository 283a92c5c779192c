"""Writes a tokenizer into a GGUF file: tokens, their types, merges, special ids and the name of the pre-tokenizer.

Byte-level BPE only. A GGUF file names its pre-tokenizer and does not define it: llama.cpp implements a fixed list.
A tokenizer with another pre-tokenizer cannot be written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from pipeline.errors import StageError

_HINT = "remove the gguf formats from export.formats, or use a model with a byte-level BPE tokenizer"

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {_QWEN2: "qwen2", _LLAMA3: "llama-bpe"}
"""Regular expression of a pre-tokenizer -> llama.cpp's name for it."""


@dataclass(frozen=True)
class Vocabulary:
    """The fields of a tokenizer in a GGUF file.

    Attributes:
        tokens: by id, one per row of the model's embedding.
        kinds: the `gguf.TokenType` of each token.
        merges: pairs joined by a space, in order.
        pre: llama.cpp's name for the pre-tokenizer.
        adds_bos: whether every text starts with BOS.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre: str
    adds_bos: bool

    @classmethod
    def of(cls, tokenizer: Any, size: int) -> Vocabulary:
        """Reads a fast tokenizer. Raises `StageError` if llama.cpp does not support it.

        Args:
            size: rows of the model's embedding. Ids without a token become placeholders, which no text produces.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise StageError("a slow tokenizer is not written as GGUF", hint=_HINT)
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        pre = _pre_tokenizer(parts)
        tokens = [f"[PAD{i}]" for i in range(size)]
        kinds = [int(TokenType.UNUSED)] * size
        added = {token["content"]: token["special"] for token in parts["added_tokens"]}
        for token, i in tokenizer.get_vocab().items():
            tokens[i] = token
            kinds[i] = int(TokenType.NORMAL)
            if token in added:
                kinds[i] = int(TokenType.CONTROL if added[token] else TokenType.USER_DEFINED)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in parts["model"]["merges"]]
        first = tokenizer("a")["input_ids"][:1]
        adds_bos = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
        return cls(tokens, kinds, merges, pre, adds_bos)

    def write(self, writer: Any, tokenizer: Any, end_id: int) -> None:
        """Adds the tokenizer's fields to a `gguf.GGUFWriter`. `end_id`: the token that ends a turn, EOS or
        another."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        writer.add_add_bos_token(self.adds_bos)
        ids = {
            "bos": tokenizer.bos_token_id,
            "eos": tokenizer.eos_token_id,
            "unk": tokenizer.unk_token_id,
            "pad": tokenizer.pad_token_id,
            "eot": end_id if end_id != tokenizer.eos_token_id else None,
        }
        for name, i in ids.items():
            if i is not None:
                getattr(writer, f"add_{name}_token_id")(int(i))
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = [{"name": name, "template": text} for name, text in template.items()]
        writer.add_chat_template(template)


def _pre_tokenizer(parts: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer in `tokenizer.json`. Raises `StageError` if there is none."""
    kind = parts["model"]["type"]
    if kind != "BPE" or parts["model"].get("byte_fallback"):
        name = "SentencePiece" if parts["model"].get("byte_fallback") else kind
        raise StageError(f"a {name} tokenizer is not written as GGUF", where="tokenizer.json", hint=_HINT)
    if parts["normalizer"] not in (None, {"type": "NFC"}):
        raise StageError(
            "llama.cpp does not support this tokenizer's normaliser", where="tokenizer.json", hint=_HINT
        )
    pre_tokenizer = parts["pre_tokenizer"] or {"type": "none"}
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    match [step["type"] for step in steps]:
        case ["ByteLevel"] if steps[0].get("use_regex", True) and not steps[0]["add_prefix_space"]:
            return "gpt-2"
        case ["Digits", "ByteLevel"] if steps[0]["individual_digits"] and steps[1].get("use_regex", True):
            return "smollm"
        case ["Split", "ByteLevel"] if not steps[1].get("use_regex", True):
            split = SPLITS.get(steps[0]["pattern"].get("Regex", ""))
            if split:
                return split
    raise StageError("llama.cpp has no pre-tokenizer that matches this one", where="tokenizer.json", hint=_HINT)
