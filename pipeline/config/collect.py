"""The `collect` stage: the newest policy answers each prompt K times, for annotators to rank."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import LATER, RUNTIME, Count, Positive, field, section


@section
class CollectConfig:
    """Which prompts get answers to rank, and how the answers are sampled."""

    num_prompts: Count | None = None
    """Training prompts that get answers in each round; null: all."""
    eval_prompts: Count | None = None
    """Held-out prompts that get answers in each round. Their rankings measure the reward model. null: all."""
    select: Literal["random", "disagreement"] = field(default="random", metadata=LATER)
    """How a later round chooses training prompts that are not ranked yet: at random, or those on whose answers the
    members of the newest reward ensemble disagree most (needs `reward.ensemble` >= 2)."""
    pool: Annotated[int, Field(ge=2)] = field(default=4, metadata=LATER)
    """For `select: disagreement`: the policy answers `pool` times `num_prompts` prompts, and the choice is among
    them."""
    num_completions: Annotated[int, Field(ge=2)] = 4
    """K, the number of answers per prompt."""
    max_prompt_length: Count = 128
    """Maximum tokens of a prompt. Longer prompts are left out and counted."""
    response_length: Count = 64
    """Maximum tokens of an answer."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    batch_size: Count = field(default=256, metadata=RUNTIME)
    """Answers sampled at the same time."""
