"""Loads and encodes the prompts of the `data` artifact."""

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
    """The prompts of a split, and the number left out because they exceed `max_length` tokens.

    Held-out prompts come in a fixed order that does not depend on the table's: PPO, evaluation and export take the
    first or last of them, and tables are often sorted.
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
    """The prompts in hash order."""
    return sorted(prompts, key=lambda prompt: prompt_key(prompt.messages))
