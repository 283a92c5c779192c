"""How a reward model with a tokenizer of its own reads a conversation: as text, in its own tokens.

Its own chat template renders the conversation with the response as the last turn. Without a template, the texts of
the turns are joined, each followed by a newline, then the response and the EOS token. The policy's template and
stop tokens are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from data.schema import Message
from stages.models.control_tokens import ControlTokens
from stages.models.templates import ChatTemplate, named
from stages.models.text import Codec


class Classifier(Protocol):
    """The part of a `stages.scoring.classifier.TextClassifier` that is needed here."""

    tokenizer: Any
    where: str

    @property
    def longest(self) -> int: ...


class TextEncoder:
    """Conversations and answers as rows of a text classifier's ids.

    Args:
        codec: the policy's. The classifier's template prints the codec's date and folds turns as the codec does;
            control tokens spelled in messages are treated as the codec treats them.

    Raises `StageError` when the classifier's chat template has no default or a syntax error.
    """

    def __init__(self, classifier: Classifier, codec: Codec) -> None:
        self.classifier, self.codec, self.tokenizer = classifier, codec, classifier.tokenizer
        self.pad_id = int(self.tokenizer.pad_token_id)
        self.template = None
        if self.tokenizer.chat_template:
            self.template = ChatTemplate(
                self.tokenizer, date=codec.date, folds=codec.template.folds, where=classifier.where
            )
        self.control = ControlTokens(self.tokenizer, self.template.talk if self.template else "")
        self._before, self._after = special_tokens_around(self.tokenizer)

    def prompt(self, messages: Sequence[Message]) -> list[Message]:
        return list(messages)

    def row(self, prompt: Sequence[Message], completion: str, longest: int | None = None) -> list[int]:
        """Ids of a conversation and its answer, special tokens included once. Texts of more than `longest` tokens
        lose their beginning: the response is at the end. Raises `templates.Refused`."""
        ids = self.control.encode(self._text(prompt, completion))
        # A template may write the BOS or EOS that the tokenizer also adds.
        start = len(self._before) if self._before and ids[: len(self._before)] == self._before else 0
        end = len(ids) - len(self._after)
        ids = ids[start : end if self._after and ids[end:] == self._after else None]
        if longest is not None:
            ids = ids[max(0, len(ids) + len(self._before) + len(self._after) - longest) :]
        return [*self._before, *ids, *self._after]

    def _text(self, prompt: Sequence[Message], completion: str) -> str:
        answer = {"role": "assistant", "content": completion}
        turns = [self.codec.cleaned(message) for message in (*prompt, answer)]
        if self.codec.literal:
            turns = [{**turn, "content": self.control.mark(turn["content"])} for turn in turns]
        if self.template is not None:
            return self.template.render(turns)
        *before, last = (turn["content"] for turn in turns)
        return "".join(text + "\n" for text in before) + last + (self.tokenizer.eos_token or "")

    def check(self, messages: Sequence[Message]) -> None:
        """Raises `templates.Refused` if the classifier's chat template does not take the conversation."""
        if self.template is not None:
            with named(f"{messages[-1]['content']!r:.80}"):
                self._text(messages, "")

    def prompt_length(self, prompt: Sequence[Message]) -> int:
        return len(self.row(prompt, ""))

    def cut(self, row: list[int], prompt_length: int) -> list[int]:
        # What closes the text for the classifier stays: it never sees the policy's stop token.
        special = set(self.tokenizer.all_special_ids)
        end = next((i for i in range(len(row), 0, -1) if row[i - 1] not in special), 0)
        closing = row[end:]
        start = prompt_length - len(closing)
        return row[: start + (end - start) // 2] + closing


def special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    whole, text = tokenizer("a")["input_ids"], tokenizer.encode("a", add_special_tokens=False)
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return list(whole[:start]), list(whole[start + len(text) :])
    return [], []
