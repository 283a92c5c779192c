"""The terms of PPO's reward, and how a score is scaled (docs/rewards.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.endpoint import EndpointConfig
from pipeline.config.section import ADDED, RUNTIME, Count, LocalPath, Positive, field, section

RUN_MODEL = "reward"
"""The value of a term's `model` that means the reward model of the run's own `reward` stage."""
KINDS = ("model", "function", "pattern", "lexicon", "length", "overlong", "llm_judge")
"""The keys of a term that say what scores. Each term has exactly one of them."""


@section
class ScoreConfig:
    """How the reward model's score is scaled before it becomes the reward."""

    normalization: Literal["none", "reference", "running"] = "reference"
    """none: use the score as it is. reference: subtract the mean and divide by the standard deviation of the scores
    of the reference model's answers, measured once before training. running: the same with the mean and standard
    deviation of all batches so far."""
    clip: Positive | None = 5.0
    """Maximum absolute value of the normalised score; null: no limit."""


UNSCALED = ScoreConfig(normalization="none", clip=None)


@section
class LengthConfig:
    """0 for a response of `target` tokens, and linearly less for every token more or fewer."""

    target: Count
    """Tokens, the stop token included."""
    scale: Count | None = None
    """Tokens away from the target that cost 1; null: as many as `target`."""


@section
class OverlongConfig:
    """The soft overlong punishment of DAPO (Yu et al. 2025, arXiv:2503.14476, equation 13), with the names of TRL's
    `get_soft_overlong_punishment`: 0 up to `max_completion_len - soft_punish_cache` tokens, then falling linearly
    to -1 at `max_completion_len`; -1 beyond."""

    max_completion_len: Count
    """Tokens, the stop token included, from which the score is -1."""
    soft_punish_cache: Count
    """Tokens before that over which the score falls from 0."""


@section
class RatingConfig(EndpointConfig):
    """A language model behind an OpenAI-compatible endpoint rates each response from 1 to 10. Its replies are kept
    in the recipe's folder, beside those of `eval.llm_judge`, so no response is rated twice."""

    criteria: str = (
        "How well does the answer follow the request? Consider whether it is correct and complete, whether it "
        "makes anything up, and whether it is well written. Length alone is no merit."
    )
    """Instructions for the judge."""
    max_requests: Count | None = field(default=None, metadata=RUNTIME)
    """The most requests that one run of a stage sends; the next one stops it. Cached replies do not count. null: no
    limit. PPO needs up to one request per response."""


@section
class TermConfig:
    """A term of the reward: its name, its weight, and exactly one of `model`, `function`, `pattern`, `lexicon`,
    `length`, `overlong` and `llm_judge`."""

    name: Annotated[str, Field(max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name in metrics, files and reports."""
    weight: float = 1.0
    """The scaled score is multiplied by this before the terms are added. 0: as `held_out`."""
    held_out: bool = False
    """Measure and show the term without training on it. It is then a judge in `eval`."""
    score: ScoreConfig | None = None
    """How the term's score is scaled. null: as `ppo.score` for `model`, and not at all for the other kinds, whose
    scores have a unit."""
    model: LocalPath | None = None
    """`reward`: the reward model of the run's `reward` stage, with its ensemble combined by `ppo.reward.aggregate`.
    Otherwise as `ppo.reward_model`."""
    revision: str | None = None
    """Commit of `model`; required if that is a Hub id."""
    criterion: str | None = field(default=None, metadata=ADDED)
    """For `model: reward` with `data.rankings.criteria`: the criterion whose reward model it is."""
    function: LocalPath | None = None
    """A Python function with the signature of TRL's `reward_funcs`: `file.py:function`, or
    `package.module:function` for an installed package (docs/rewards.md)."""
    conversational: bool = True
    """For `function`: pass prompts as lists of messages and completions as lists with the assistant's message
    (TRL's conversational format). false: pass both as text (its standard format)."""
    timeout: Positive = field(default=60.0, metadata=RUNTIME)
    """For `function`: seconds that a call for one batch may take; a longer one stops the stage."""
    pattern: str | None = None
    """A regular expression (Python's `re.search`): 1 if it matches somewhere in the completion, else 0."""
    lexicon: LocalPath | None = None
    """A slot lexicon, as in `eval.judge`: the number of faults of the response, negative."""
    length: LengthConfig | None = None
    """A target for the length of a response."""
    overlong: OverlongConfig | None = None
    """A penalty for responses near the length limit."""
    llm_judge: RatingConfig | None = None
    """Ratings by a language model."""

    @property
    def kinds(self) -> list[str]:
        """The keys of `KINDS` that are set."""
        return [kind for kind in KINDS if getattr(self, kind) is not None]

    @property
    def kind(self) -> str:
        return self.kinds[0]

    @property
    def trained(self) -> bool:
        """Whether PPO optimises it."""
        return not self.held_out and self.weight != 0

    @property
    def run_model(self) -> bool:
        """Whether it is the run's own reward model."""
        return self.model == RUN_MODEL

    def scaling(self, default: ScoreConfig) -> ScoreConfig:
        """How its score is scaled, where `ppo.score` is `default`."""
        if self.score is not None:
            return self.score
        return default if self.model is not None else UNSCALED

    def describe(self) -> str:
        """What scores, in a few words."""
        if self.run_model:
            return "the run’s reward model" + (f" of {self.criterion}" if self.criterion is not None else "")
        value: Any = getattr(self, self.kind)
        texts = {
            "length": lambda: f"length near {value.target} tokens",
            "overlong": lambda: (
                f"overlong penalty from {value.max_completion_len - value.soft_punish_cache} tokens"
            ),
            "llm_judge": lambda: f"ratings by {value.model}",
            "lexicon": lambda: f"slot lexicon {value}",
        }
        return texts.get(self.kind, lambda: f"{self.kind} {value}")()
