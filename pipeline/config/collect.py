"""The `collect` stage: K answers of the SFT model to each prompt."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.section import RUNTIME, Count, Positive, field, section


@section
class CollectConfig:
    num_prompts: Count | None = None
    """How many training prompts get answers; null: all."""
    eval_prompts: Count | None = None
    """How many held-out prompts get answers, to measure the reward model on; null: all."""
    num_completions: Annotated[int, Field(ge=2)] = 4
    """K, answers to a prompt."""
    max_prompt_length: Count = 128
    response_length: Count = 64
    """Longest answer in tokens."""
    temperature: Positive = 1.0
    batch_size: Count = field(default=256, metadata=RUNTIME)
    """Sequences decoded together."""
