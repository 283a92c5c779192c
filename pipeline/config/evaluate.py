"""The `eval` stage: every model on held-out prompts, by judges that PPO did not optimise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.data import TableConfig
from pipeline.config.endpoint import EndpointConfig
from pipeline.config.section import RUNTIME, Count, LocalPath, Natural, Positive, field, section

JUDGES = ("none", "venues", "venues-zh", "e2e")
"""The names that `eval.judge` knows; any other value is a path."""


@section
class LLMJudgeConfig(EndpointConfig):
    """A language model behind an OpenAI-compatible endpoint compares answers, each pair in both orders. Its
    verdicts are cached in the recipe's folder, so no comparison is requested twice."""

    against: list[Literal["base", "sft", "dpo", "raft", "best_of_n"]] = field(
        default_factory=lambda: ["sft", "base"]
    )
    """Models that PPO is compared with, if the run has them. Policies of DPO and RAFT are compared
    with SFT too."""
    num_prompts: Count | None = 64
    """How many of the evaluated prompts are judged, from the first on; null: all. Each comparison costs two
    requests per prompt."""
    criteria: str = (
        "Which answer follows the request better? Consider whether it is correct and complete, whether it makes "
        "anything up, and whether it is well written. Length alone is no merit."
    )
    """Instructions for the judge."""


@section
class EvalConfig:
    """Who judges the models, on how many prompts, and against which baselines."""

    judge: LocalPath = "none"
    """The rubric that counts fact errors: `venues`, `venues-zh` or `e2e`, slot lexicons that ship in
    data/venues/lexicons; the path of another slot lexicon; or `none`."""
    reward_model: LocalPath | None = None
    """A reward model that PPO did not use, as a further judge: the folder of a reward artifact or of a sequence
    classifier with one label; or `ensemble`, the members that `ppo.reward.held_out` keeps from PPO. null: none."""
    llm_judge: LLMJudgeConfig | None = None
    """A language model as a further judge; null: none."""
    num_prompts: Count | None = 256
    """Held-out prompts to evaluate on; null: all."""
    max_prompt_length: Count = 128
    """Maximum tokens of a prompt. Longer prompts are left out."""
    response_length: Count = 64
    """Maximum tokens of an answer."""
    temperature: Positive = 1.0
    """Sampling temperature of every model."""
    best_of_n: Annotated[int, Field(ge=2)] | None = 16
    """Answers of the SFT model per prompt for the best-of-n baseline, from which the reward model picks one. n is
    chosen so that the baseline's KL, log n - (n-1)/n, is as near PPO's as this many answers allow. null: no such
    baseline."""
    text: TableConfig | None = None
    """Held-out text on which every model's loss is measured: a `text` column, or `prompt` and `completion`. null:
    none."""
    bootstrap: Count = 2000
    """Bootstrap resamples for each 95 % interval."""
    samples: Natural = 8
    """Prompts whose answers the report shows side by side."""
    extremes: Natural = 10
    """How many of the most improved prompts, and of the most damaged, the report shows."""
    batch_size: Count = field(default=256, metadata=RUNTIME)
    """Answers sampled at the same time."""
