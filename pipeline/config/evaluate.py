"""The `eval` stage: every model on held-out prompts, by judges that the reward model of PPO never was."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.data import TableConfig
from pipeline.config.section import RUNTIME, Count, LocalPath, Natural, Positive, field, section


@section
class LLMJudgeConfig:
    """A language model behind an OpenAI-compatible endpoint compares answers, each pair in both orders. Verdicts
    are kept in the recipe's folder: none is asked for twice."""

    base_url: str
    """Up to the version, as in `https://api.example.org/v1`; `/chat/completions` is added."""
    model: str
    """As the endpoint calls it."""
    api_key_env: str | None = field(default=None, metadata=RUNTIME)
    """The environment variable that holds the key; null: none is sent. The key itself is written nowhere."""
    against: list[Literal["base", "sft", "dpo", "best_of_n"]] = field(default_factory=lambda: ["sft", "base"])
    """What PPO's answers are compared with, where it is there; a DPO policy is compared with SFT, too."""
    num_prompts: Count | None = 64
    """The first of the evaluated prompts; null: all. A prompt costs two requests for each comparison."""
    criteria: str = (
        "Which answer follows the request better? Consider whether it is correct and complete, whether it makes "
        "anything up, and whether it is well written. Length alone is no merit."
    )
    """What the judge is told to look at."""
    parameters: dict[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 512})
    """Sent with every request, by the endpoint's own names."""
    concurrency: Count = field(default=4, metadata=RUNTIME)
    """Requests at a time."""
    timeout: Positive = field(default=120.0, metadata=RUNTIME)
    """Seconds without an answer after which a request is repeated."""
    retries: Natural = field(default=5, metadata=RUNTIME)
    """How often a request that the endpoint could not answer is repeated, after growing pauses."""


@section
class EvalConfig:
    judge: LocalPath = "none"
    """`venues` or `e2e`, a slot lexicon shipped in data/lexicons, a path to another, or `none`."""
    reward_model: LocalPath | None = None
    """A reward model that PPO did not use, as a further judge: the folder of a reward artifact or of a sequence
    classifier with one label; or `ensemble`, the members that `ppo.reward.held_out` kept from PPO."""
    llm_judge: LLMJudgeConfig | None = None
    num_prompts: Count | None = 256
    """Held-out prompts; null: all."""
    max_prompt_length: Count = 128
    response_length: Count = 64
    temperature: Positive = 1.0
    best_of_n: Annotated[int, Field(ge=2)] | None = 16
    """Answers of the SFT model to each prompt from which the reward model picks the best: the baseline at PPO's KL,
    as far as log n - (n-1)/n reaches. null: none."""
    text: TableConfig | None = None
    """Held-out text to measure every model's perplexity on: a `text` column, or `prompt` and `completion`."""
    bootstrap: Count = 2000
    """Resamples behind each 95 % interval."""
    samples: Natural = 8
    """Prompts shown side by side in the report."""
    extremes: Natural = 10
    """Most improved and most damaged prompts that are kept, each."""
    batch_size: Count = field(default=256, metadata=RUNTIME)
