"""Encodes control tokens that are spelled in messages as ordinary text.

A tokenizer turns `</s>` into the token that ends a response wherever it occurs, even inside a user's message. Only
the markers that a chat template writes around messages should become control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from pipeline.errors import StageError

START, END = "\ufdd0", "\ufdd1"
"""Marks around a spelled token while a chat template renders it: Unicode noncharacters, reserved for such use."""


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens, and the added tokens that the chat template writes
    around turns (some tokenizers do not declare their turn markers special).

    Args:
        rendered: a conversation rendered by the chat template; "" without a template.
    """

    def __init__(self, tokenizer: Any, rendered: str = "") -> None:
        self.tokenizer = tokenizer
        by_id = {
            int(i): token.content
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.content and (token.special or (token.content in rendered and _is_marker(token.content)))
        }
        self.ids = frozenset(by_id)
        # Longest first, so that a token is matched before the tokens that it contains.
        spelled = "|".join(re.escape(text) for text in sorted(by_id.values(), key=len, reverse=True)) or "(?!)"
        self._spelled = re.compile(spelled)
        self._marked = re.compile(f"{START}({spelled}){END}|[{START}{END}]")

    def spelled(self, text: str) -> bool:
        """Whether a text spells a control token."""
        return self._spelled.search(text) is not None

    def mark(self, text: str) -> str:
        """The text with marks around each control token that it spells; unchanged if it spells none."""
        if not self.spelled(text):
            return text
        return self._spelled.sub(f"{START}\\g<0>{END}", text.replace(START, "").replace(END, ""))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without added special tokens. Marked tokens are encoded as text; a text without marks is
        passed to the tokenizer unchanged.

        The marked tokens and the text between them are encoded piece by piece. Raises `StageError` when the
        tokenizer cannot encode a control token as text.
        """
        if START not in text:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        return self._pieces(text, inner=False)

    def encode_parts(self, parts: Sequence[str]) -> list[list[int]]:
        """Ids of each part of a text. Together they are the ids of the whole, unless a token of the whole extends
        over two parts: then the second part is encoded on its own."""
        encoded: list[list[int]] = []
        text, before = "", list[int]()
        for part in parts:
            text += part
            ids = self.encode(text)
            whole = ids[: len(before)] == before
            encoded.append(ids[len(before) :] if whole else self._pieces(part, inner=True))
            before = ids
        return encoded

    def _pieces(self, text: str, *, inner: bool) -> list[int]:
        """`inner`: whether something stands before the text."""
        ids: list[int] = []
        for number, piece in enumerate(self._marked.split(text)):
            if piece:  # None if the template separated a pair of marks
                encode = self._as_text if number % 2 else self._piece
                ids += encode(piece, inner=inner or bool(ids))
        return ids

    def _as_text(self, token: str, *, inner: bool) -> list[int]:
        ids = self._piece(token, inner=inner, split=True)
        if self.ids.intersection(ids):  # not declared special, so `split_special_tokens` does not split it
            ids = self._piece(token[0], inner=inner) + self._piece(token[1:], inner=True)
        if self.ids.intersection(ids):
            raise StageError(
                f"the tokenizer cannot write {token!r} as text",
                where="base.control_tokens",
                hint="remove it from the data, or set base.control_tokens: tokens",
            )
        return ids

    def _piece(self, piece: str, *, inner: bool, split: bool = False) -> list[int]:
        encode = partial(self.tokenizer.encode, add_special_tokens=False, split_special_tokens=split)
        # SentencePiece adds a space before a text. To avoid it for a piece inside a text, encode the piece after an
        # anchor character, and remove the anchor's tokens if they come out the same as alone.
        for anchor in ("\n", "a", "<") if inner else ():
            before, ids = encode(anchor), encode(anchor + piece)
            if ids[: len(before)] == before:
                return list(ids[len(before) :])
        return list(encode(piece))


def _is_marker(text: str) -> bool:
    """Whether an added token looks like markup rather than a word or white space that a template may also write."""
    return not text.isspace() and not text.strip().isalnum()
