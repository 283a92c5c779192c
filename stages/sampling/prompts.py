"""Prompts of the `data` artifact, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.schema import Message, Split, prompt_key
from pipeline.engine.stage import Artifact
from stages.models.text import Codec


@dataclass(frozen=True)
class EncodedPrompt:
    messages: list[Message]
    ids: list[int]
    split: Split


def load_prompts(data: Artifact, codec: Codec, split: Split, max_length: int) -> tuple[list[EncodedPrompt], int]:
    """The prompts of a split, and how many were left out for their length in tokens.

    Held-out ones come in an order that has nothing to do with the table's, and is always the same: PPO,
    evaluation and export take the last or first of them, and tables are often sorted.
    """
    prompts, too_long = [], 0
    for row in data.jsonl("prompts.jsonl"):
        if row["split"] != split:
            continue
        ids = codec.prompt(row["prompt"])
        if len(ids) > max_length:
            too_long += 1
        else:
            prompts.append(EncodedPrompt(row["prompt"], ids, split))
    return mixed(prompts) if split == "eval" else prompts, too_long


def mixed(prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
    """In the order of a hash."""
    return sorted(prompts, key=lambda prompt: prompt_key(prompt.messages))
