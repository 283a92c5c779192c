"""Conversations and answers as token ids, and back: the one place where text is encoded.

A sequence is always `prompt(messages) + completion(answer)`, two encodings joined as ids, in SFT, in the reward
model and in PPO alike, so that what was trained on is what is sampled and what is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.schema import Message
from pipeline.errors import StageError

IGNORED = -100
"""The label of a token that a loss leaves out."""

TEMPLATES = Path(__file__).resolve().parents[2] / "data" / "templates"


def chat_template(choice: str, tokenizer: Any) -> str:
    """The Jinja chat template that `base.chat_template` names. Raises `StageError`."""
    if choice == "auto":
        if tokenizer.chat_template:
            return str(tokenizer.chat_template)
        choice = "plain"
    path = TEMPLATES / f"{choice}.jinja"
    if not path.exists():
        path = Path(choice)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
        raise StageError(
            f"no chat template {choice!r}",
            where="base.chat_template",
            mend=f"use auto, a .jinja file, or one of: {known}",
        )
    template = path.read_text(encoding="utf-8")
    # A tokenizer that starts every text with BOS was pretrained so; the template has to say it, because
    # conversations are encoded without special tokens.
    starts_with_bos = (
        tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    )
    return "{%- set add_bos = true %}" + template if starts_with_bos else template


class Codec:
    """Encodes prompts and completions for one tokenizer.

    Attributes:
        end_id: the token that ends an assistant's turn under the chat template.
        stop_ids: every token that ends a response: `end_id`, and the tokenizer's EOS.
        pad_id: what fills a batch. Masks, never this id, say what is padding.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise StageError("the tokenizer has no chat template", mend="set base.chat_template")
        if tokenizer.eos_token_id is None:
            raise StageError("the tokenizer has no EOS token", mend="use a tokenizer that defines eos_token")
        self.tokenizer = tokenizer
        self.end_id = self._find_end_id()
        self.stop_ids = frozenset({self.end_id, int(tokenizer.eos_token_id)})
        self.pad_id = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    def _find_end_id(self) -> int:
        turn = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "zAz"}]
        text = self.tokenizer.apply_chat_template(turn, tokenize=False)
        ending = text.rpartition("zAz")[2].strip()
        ids = self.tokenizer.encode(ending, add_special_tokens=False) if ending else []
        return int(ids[0] if len(ids) == 1 else self.tokenizer.eos_token_id)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, up to where the assistant's answer begins."""
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def completion(self, text: str) -> list[int]:
        """Ids of an answer, ended by `end_id`."""
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response: what stands before its first stop token."""
        ids = [int(i) for i in ids]
        end = next((k for k, i in enumerate(ids) if i in self.stop_ids), len(ids))
        return str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of ids -> ids (B, T) and mask (B, T), bool, true on real tokens. `left` pads in front."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = True
    return ids, mask
