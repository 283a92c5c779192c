"""A tokenizer as a GGUF file spells it: tokens, their kinds, merges, special ids and the name of its pre-tokenizer.

Byte-level BPE only. llama.cpp does not read how a text is cut before merging from the file: it knows a list of
pre-tokenizers by name, so that a tokenizer that cuts in a way of its own cannot be written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from pipeline.errors import StageError

_MEND = "leave the gguf formats out of export.formats, or use a model with a byte-level BPE tokenizer"

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {_QWEN2: "qwen2", _LLAMA3: "llama-bpe"}
"""Regular expression that cuts a text -> llama.cpp's name of it."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file holds of a tokenizer.

    Attributes:
        tokens: by id, as many as the model embeds.
        kinds: `gguf.TokenType` of each.
        merges: pairs joined by a space, in order.
        pre: llama.cpp's name of the pre-tokenizer.
        adds_bos: whether every text is to start with BOS.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre: str
    adds_bos: bool

    @classmethod
    def of(cls, tokenizer: Any, size: int) -> Vocabulary:
        """Reads a fast tokenizer. Raises `StageError` when llama.cpp has no name for what it does.

        Args:
            size: rows of the model's embedding; ids without a token become placeholders, never produced by text.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise StageError("a slow tokenizer is not written as GGUF", hint=_MEND)
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
        """Adds the tokenizer's fields to a `gguf.GGUFWriter`. `end_id` ends a turn, and may not be EOS."""
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
    """llama.cpp's name for how `tokenizer.json` cuts a text. Raises `StageError` when there is none."""
    kind = parts["model"]["type"]
    if kind != "BPE" or parts["model"].get("byte_fallback"):
        what = "SentencePiece" if parts["model"].get("byte_fallback") else kind
        raise StageError(f"a {what} tokenizer is not written as GGUF", where="tokenizer.json", hint=_MEND)
    if parts["normalizer"] not in (None, {"type": "NFC"}):
        raise StageError("llama.cpp normalises no text as this tokenizer does", where="tokenizer.json", hint=_MEND)
    found = parts["pre_tokenizer"] or {"type": "none"}
    steps = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    match [step["type"] for step in steps]:
        case ["ByteLevel"] if steps[0].get("use_regex", True) and not steps[0]["add_prefix_space"]:
            return "gpt-2"
        case ["Digits", "ByteLevel"] if steps[0]["individual_digits"] and steps[1].get("use_regex", True):
            return "smollm"
        case ["Split", "ByteLevel"] if not steps[1].get("use_regex", True):
            name = SPLITS.get(steps[0]["pattern"].get("Regex", ""))
            if name:
                return name
    raise StageError(
        "llama.cpp knows no pre-tokenizer that cuts texts as this one does", where="tokenizer.json", hint=_MEND
    )
