"""Encodes the demonstrations of the `data` artifact."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.schema import Message, Split
from pipeline.engine.stage import Artifact
from stages.left_out import LeftOut, of_split
from stages.models.text import IGNORED, Codec
from stages.models.turns import Unlocatable

UNLOCATED = "an assistant's turn that the chat template changes"
"""The reason for leaving a demonstration out."""


def encode_demonstrations(
    data: Artifact,
    codec: Codec,
    split: Split,
    max_length: int,
    *,
    key: str = "sft.max_length",
    prefix: str | None = None,
    every_turn: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, list[int]]], LeftOut]:
    """Rows of ids and labels for the demonstrations of a split, and what was left out, because it exceeds
    `max_length` tokens or one of the assistant's turns cannot be located. Labels of prompt tokens are `IGNORED`.

    Args:
        key: the recipe key, or sum of keys, of `max_length`.
        prefix: which demonstrations these are, one of `stages.left_out.PREFIXES`; None: those of the split.
        every_turn: the assistant's turns inside the prompt have labels, too.
        advance: called for each demonstration.
    """
    left_out = LeftOut("demonstrations", of_split(split) if prefix is None else prefix, key, max_length)
    left_out.measured = "with prompt and answer"
    left_out.hints = {UNLOCATED: "set sft.assistant_only_loss to false"}
    rows = []
    for demonstration in data.jsonl("demonstrations.jsonl"):
        if demonstration["split"] != split:
            continue
        advance()
        try:
            prompt, labels = _prompt(demonstration["prompt"], codec, every_turn)
        except Unlocatable:
            left_out.read += 1
            left_out.counts[UNLOCATED] += 1
            continue
        completion = codec.completion(demonstration["completion"])
        if left_out.fits(len(prompt) + len(completion)):
            rows.append({"input_ids": prompt + completion, "labels": labels + completion})
    return rows, left_out


def _prompt(messages: Sequence[Message], codec: Codec, every_turn: bool) -> tuple[list[int], list[int]]:
    """Ids and labels."""
    if every_turn:
        return codec.prompt_labels(messages)
    ids = codec.prompt(messages)
    return ids, [IGNORED] * len(ids)
