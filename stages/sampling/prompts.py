"""Loads and encodes the prompts of the `data` artifact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.schema import Message, Split, prompt_key
from pipeline.engine.stage import Artifact
from stages.left_out import LeftOut, of_split
from stages.models.text import Codec


@dataclass(frozen=True)
class EncodedPrompt:
    messages: list[Message]
    ids: list[int]
    split: Split


def load_prompts(
    data: Artifact,
    codec: Codec,
    split: Split,
    max_length: int,
    *,
    key: str = "ppo.max_prompt_length",
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[EncodedPrompt], LeftOut]:
    """The prompts of a split, and what was left out because it exceeds `max_length` tokens.

    Held-out prompts come in a fixed order that does not depend on the table's: PPO, evaluation and export take the
    first or last of them, and tables are often sorted.

    Args:
        key: the recipe key of `max_length`.
        advance: called for each prompt.
    """
    prompts, left_out = [], LeftOut("prompts", of_split(split), key, max_length)
    for row in data.jsonl("prompts.jsonl"):
        if row["split"] != split:
            continue
        ids = codec.prompt(row["prompt"])
        if left_out.fits(len(ids)):
            prompts.append(EncodedPrompt(row["prompt"], ids, split))
        advance()
    return mixed(prompts) if split == "eval" else prompts, left_out


def mixed(prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
    """The prompts in hash order."""
    return sorted(prompts, key=lambda prompt: prompt_key(prompt.messages))
