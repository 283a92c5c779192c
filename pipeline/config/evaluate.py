"""The `eval` stage: base, SFT and PPO model on held-out prompts, judged by one the reward model never saw."""

from __future__ import annotations

from pipeline.config.section import RUNTIME, Count, Natural, Positive, field, section


@section
class EvalConfig:
    judge: str = "none"
    """`venues` or `e2e`, a slot lexicon shipped in data/lexicons, a path to another, or `none`."""
    num_prompts: Count | None = 256
    """Held-out prompts; null: all."""
    max_prompt_length: Count = 128
    response_length: Count = 64
    temperature: Positive = 1.0
    bootstrap: Count = 2000
    """Resamples behind each 95 % interval."""
    samples: Natural = 8
    """Prompts shown side by side in the report."""
    batch_size: Count = field(default=256, metadata=RUNTIME)
