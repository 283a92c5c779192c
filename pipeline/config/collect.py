"""The `collect` stage: K answers of the newest policy to each prompt that annotators are to rank."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import LATER, RUNTIME, Count, Positive, field, section


@section
class CollectConfig:
    num_prompts: Count | None = None
    """How many training prompts get answers, in each round; null: all."""
    eval_prompts: Count | None = None
    """How many held-out prompts get answers, in each round, to measure the reward model on; null: all."""
    select: Literal["random", "disagreement"] = field(default="random", metadata=LATER)
    """How a later round chooses its training prompts among those not ranked yet: at random, or those on whose
    answers the newest reward model's ensemble disagrees most (`reward.ensemble` >= 2)."""
    pool: Annotated[int, Field(ge=2)] = field(default=4, metadata=LATER)
    """For `disagreement`: how many times `num_prompts` prompts are answered to choose among."""
    num_completions: Annotated[int, Field(ge=2)] = 4
    """K, answers to a prompt."""
    max_prompt_length: Count = 128
    response_length: Count = 64
    """Longest answer in tokens."""
    temperature: Positive = 1.0
    batch_size: Count = field(default=256, metadata=RUNTIME)
    """Sequences decoded together."""
