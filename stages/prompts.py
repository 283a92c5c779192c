"""Prompts of the `data` artifact, encoded."""

from __future__ import annotations

from dataclasses import dataclass

from data.schema import Message, Split
from pipeline.stage import Artifact
from stages.models.text import Codec


@dataclass(frozen=True)
class EncodedPrompt:
    messages: list[Message]
    ids: list[int]
    split: Split


def load_prompts(data: Artifact, codec: Codec, split: Split, max_length: int) -> tuple[list[EncodedPrompt], int]:
    """The prompts of a split in the artifact's order, and how many were left out for their length in tokens."""
    prompts, too_long = [], 0
    for row in data.jsonl("prompts.jsonl"):
        if row["split"] != split:
            continue
        ids = codec.prompt(row["prompt"])
        if len(ids) > max_length:
            too_long += 1
        else:
            prompts.append(EncodedPrompt(row["prompt"], ids, split))
    return prompts, too_long
