"""Encodes conversations and answers as token ids, and decodes them. All text is encoded here.

A sequence is always `prompt(messages) + completion(answer)`: two encodings, joined as ids. SFT, the reward model
and PPO all use it, so the tokens that are trained on are the tokens that are sampled and scored.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from data.schema import Message
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models import turns
from stages.models.control_tokens import ControlTokens
from stages.models.loading import load_tokenizer
from stages.models.templates import ANSWER, DATE, ChatTemplate, ending, starts_with_bos
from stages.models.templates import chat_template as chat_template

IGNORED = -100
"""The label of tokens that the loss ignores."""


class Codec:
    """Encodes prompts and completions for one tokenizer.

    Args:
        stop_ids: additional tokens that end a response, such as those of the model's generation config.
        date: the date that the chat template prints, if it prints one, YYYY-MM-DD.
        control_tokens: `text` encodes a control token spelled in a message as text, `tokens` as the token.
        fold_turns: as `folds` of `ChatTemplate`.

    Attributes:
        template: the chat template.
        end_id: the token that ends an assistant's turn under the chat template.
        stop_ids: every token that ends a response: `end_id`, EOS, the tokens between them if the template writes
            EOS after `end_id`, and the `stop_ids` passed in.
        pad_id: the token that pads a batch. Padding is identified by masks, never by this id.

    Raises `StageError` when the tokenizer has no EOS token or no usable chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        stop_ids: Collection[int] = (),
        date: str = DATE,
        control_tokens: str = "text",
        fold_turns: bool = False,
    ) -> None:
        self.template = ChatTemplate(tokenizer, date=date, folds=fold_turns)
        if tokenizer.eos_token_id is None:
            raise StageError("the tokenizer has no EOS token", hint="use a tokenizer that defines eos_token")
        self.tokenizer, self.date = tokenizer, date
        self.control = ControlTokens(tokenizer, self.template.talk)
        self.literal = control_tokens == "text"
        self._bos = int(tokenizer.bos_token_id) if starts_with_bos(tokenizer) else None
        eos = int(tokenizer.eos_token_id)
        ends = self._turn_ends(eos)
        self.end_id = ends[0]
        self.stop_ids = frozenset({*ends, eos, *stop_ids})
        self._stops = [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(self.stop_ids & self.control.ids)]
        self.pad_id = int(eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    def _turn_ends(self, eos: int) -> list[int]:
        """The control tokens that the template writes directly after an answer, up to EOS. If EOS is not among
        them, only the first, because the others may start the next turn. EOS alone if there are none."""
        ends: list[int] = []
        for i in self.tokenizer.encode(ending(self.template).strip(), add_special_tokens=False):
            if i in self.control.ids:
                ends.append(int(i))
                if i == eos:
                    return ends
            elif self.tokenizer.decode([i]).strip():
                break
        return ends[:1] or [eos]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to the start of the assistant's answer, with a leading BOS if the tokenizer adds
        one. Raises `templates.Refused` when the chat template rejects the conversation."""
        ids = self._rendered(messages)
        return [self._bos, *ids] if self._bos is not None and ids[:1] != [self._bos] else ids

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        return self.control.encode(self.template.render(self._turns(messages), generation=True))

    def _turns(self, messages: Sequence[Message]) -> list[Message]:
        cleaned = [self.cleaned(message) for message in messages]
        if not self.literal:
            return cleaned
        return [{**turn, "content": self.control.mark(turn["content"])} for turn in cleaned]

    @property
    def end(self) -> str:
        """The text of `end_id`."""
        return str(self.tokenizer.convert_ids_to_tokens(self.end_id))

    def prompt_labels(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """As `prompt`, and labels: the ids of the assistant's turns, each with the token that ends it, and
        `IGNORED` for the rest. The ids are those of `prompt`, except that no token extends over an end of a turn.

        Raises `turns.Unlocatable` if the chat template does not show where a turn is.
        """
        text, spans = turns.locate(self.template, self.template.accepted(self._turns(messages)), self.end)
        cuts = [0, *(cut for span in spans for cut in span), len(text)]
        parts = self.control.encode_parts([text[start:stop] for start, stop in pairwise(cuts)])
        ids = [i for part in parts for i in part]
        labels = [i if number % 2 else IGNORED for number, part in enumerate(parts) for i in part]
        if self._bos is not None and ids[:1] != [self._bos]:
            return [self._bos, *ids], [IGNORED, *labels]
        return ids, labels

    @property
    def no_turns(self) -> str:
        """Why `prompt_labels` would not label the tokens that the model samples; empty if it does."""
        if reason := turns.why_not(self.template, self.end):
            return reason
        if turns.marks_generation(self.template):
            return ""
        _, labels = self.prompt_labels(turns.probe(self.template))
        learned = [i for i in labels if i != IGNORED]
        answers = [self.completion(text) for text in (ANSWER, turns.LATER)]
        if learned in (answers[0] + answers[1], answers[0][:-1] + answers[1][:-1]):
            return ""
        return "its tokenizer encodes an answer inside a conversation differently from an answer after a prompt"

    @property
    def adds_bos(self) -> bool:
        """Whether `prompt` adds a BOS that the chat template does not write."""
        return self._bos is not None and self._rendered([{"role": "user", "content": "a"}])[:1] != [self._bos]

    def completion(self, text: str) -> list[int]:
        """Ids of an answer, followed by `end_id`."""
        return [*self.encode(self.without_stop(text)), self.end_id]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self.control.encode(self.control.mark(text) if self.literal else text)

    def cleaned(self, message: Message) -> Message:
        """The message; an answer is passed through `without_stop`."""
        if message["role"] != "assistant":
            return message
        return {**message, "content": self.without_stop(message["content"])}

    def without_stop(self, text: str) -> str:
        """An answer without the stop tokens spelled at its end, so that `completion` does not end it twice."""
        end = text.rstrip()
        while stop := next((stop for stop in self._stops if end.endswith(stop)), None):
            text = end = end.removesuffix(stop).rstrip()
        return text

    def ended_as_trained(self, response: Sequence[int]) -> list[int]:
        """A response with its final stop token, if any, replaced by `end_id`, as in the reward model's training
        data."""
        ids = list(response)
        return [*ids[:-1], self.end_id] if ids and ids[-1] in self.stop_ids else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response, up to its first stop token."""
        ids = [int(i) for i in ids]
        end = next((k for k, i in enumerate(ids) if i in self.stop_ids), len(ids))
        return str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))


def load_codec(base: Artifact) -> Codec:
    """The codec of a `base` artifact, with the settings that the `base` stage recorded. Every stage uses it."""
    spec = base.json("base.json")
    return Codec(
        load_tokenizer(base),
        stop_ids=spec.get("stop_ids", ()),
        date=spec.get("template_date") or DATE,
        control_tokens=spec.get("control_tokens", "text"),
        fold_turns=spec.get("fold_turns", False),
    )


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Pads rows of ids to ids (B, T) and a bool mask (B, T) that is true at real tokens. `left`: on the left."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = True
    return ids, mask
