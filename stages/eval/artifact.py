"""The files of the `eval` stage, for those who read them: `eval.json`, `judged.jsonl` and `samples.jsonl`.

Values that older runs do not have are optional. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.engine.stage import Artifact, parse
from pipeline.language import mark, translate
from stages.intervals import Interval

FILE, JUDGED, SAMPLES = "eval.json", "judged.jsonl", "samples.jsonl"
BASELINES = ("dpo", "raft")
"""Policies that are trained beside PPO, by the names of their stages."""


def reference_of(models: Iterable[str]) -> str:
    """Which of the evaluated models PPO started from: SFT or, where there is none, the base model."""
    return "sft" if "sft" in models else "base"


def in_words(reference: str) -> str:
    """A reference as texts name it."""
    return translate("SFT") if reference == "sft" else translate("the base model")


CUT = mark(" … (cut)")
"""After an answer that was cut at the length limit, wherever answers are shown."""


def marked(answer: str, finished: bool) -> str:
    """An answer with a mark if it does not end with a stop token."""
    return answer if finished else f"{answer.rstrip()}{translate(CUT)}"


@dataclass(frozen=True, kw_only=True)
class WinRate(Interval):
    """A win rate of PPO against the reference. `ties` is the share of ties, which count half."""

    ties: float | None = None


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One judge's win rate of a model (`ours`) against another (`theirs`).

    Attributes:
        disagreed: of an LLM judge, the share of pairs on which its verdict changed with the order of the answers.
        unreadable: of an LLM judge, replies without a verdict.
    """

    judge: str
    ours: str
    theirs: str
    value: float
    low: float
    high: float
    ties: float
    prompts: int
    disagreed: float | None = None
    unreadable: int = 0

    @property
    def side(self) -> int:
        """1 if the interval lies above one half, -1 if it lies below, 0 otherwise."""
        return int(self.low > 0.5) - int(self.high < 0.5)


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """What was measured of one model's answers. None where it was not: without a rubric there are no fact errors.

    Attributes:
        n: of best-of-n and RAFT, the answers per prompt among which the best is selected.
        kl: from the reference, nats per response.
        nll, text_nll: loss on held-out demonstrations and text, nats per token.
        score: the reward model's mean score.
    """

    score: float | None = None
    length: float | None = None
    ended: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    repetition: float | None = None
    kl: float | None = None
    kl_low: float | None = None
    kl_high: float | None = None
    nll: float | None = None
    text_nll: float | None = None
    n: int | None = None
    slot_error_rate: float | None = None
    slot_error_low: float | None = None
    slot_error_high: float | None = None
    missing: float | None = None
    wrong: float | None = None
    invented: float | None = None
    repeated: float | None = None
    faultless: float | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluatedPoint:
    """An evaluation point of a PPO run, with the rubric's error rate of its answers."""

    update: int
    kl: float | None = None
    score: float
    length: float | None = None
    slot_error_rate: float | None = None
    round: int = 1


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """KL from the reference, and the gains of the proxy and the judge over it, at an evaluation point."""

    update: int
    kl: Interval
    proxy: Interval
    gold: Interval


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The fitted form of the judge's gain. Only `reason` is set where it could not be fitted."""

    reason: str | None
    form: str = ""
    peak_kl: Interval | None = None
    farthest: float = 0.0
    set_in: bool = False
    share: float = 0.0
    lost: float = 0.0
    curve: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Judge and proxy along the last round of PPO."""

    judge: str
    prompts: int
    points: Sequence[FrontierPoint]
    fit: Fit


@dataclass(frozen=True, kw_only=True)
class BestOfNPoint:
    """Best-of-n for one n. `kl` is an upper bound, nats per response."""

    n: int
    kl: float
    proxy: Interval
    gold: Interval


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """The best-of-n baseline: answers per prompt, the n nearest PPO's KL, and the largest KL it reaches."""

    samples: int
    n: int
    reaches: float
    rows: Sequence[BestOfNPoint]


@dataclass(frozen=True, kw_only=True)
class OptimumPoint:
    """The reward model's score of the optimum with a KL from the reference, as a gain over the reference."""

    kl: float
    gain: Interval


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The optimum of PPO's objective, from several answers of the reference per prompt.

    Attributes:
        samples: answers per prompt.
        reach: the largest KL that they resolve, nats per response.
        share: PPO's gain in parts of the optimum's at PPO's KL; None if that KL is beyond `reach`.
    """

    samples: int
    reach: float
    points: Sequence[OptimumPoint]
    share: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyPoint:
    """A trained policy's KL from the reference and the judge's gain over it."""

    kl: float
    gold: Interval


@dataclass(frozen=True, kw_only=True)
class Extreme:
    """A prompt with the answers of the reference (`sft`, or `base` without SFT) and of PPO, what the judge gained,
    and which answers end with a stop token."""

    prompt: str
    gain: float
    base: str = ""
    sft: str = ""
    ppo: str
    finished: Mapping[str, bool] = field(default_factory=dict)

    def shown(self, model: str) -> str:
        """The answer of `base`, `sft` or `ppo` as it is shown."""
        return marked(getattr(self, model), self.finished.get(model, True))


@dataclass(frozen=True, kw_only=True)
class Extremes:
    """The prompts that improved most and those that were damaged most."""

    judge: str
    improved: Sequence[Extreme]
    damaged: Sequence[Extreme]
    share_improved: float
    share_damaged: float


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the evaluated answers were sampled."""

    max_prompt_length: int
    response_length: int
    temperature: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`eval.json`.

    Attributes:
        judge: the rubric that counts fact errors; None: there is none.
        models: by name: base, sft (if the run has that stage), ppo, ppo-1 (of an earlier round), dpo, raft,
            best_of_n.
        wins: every judge's win rates.
        win_rate, reduction: of PPO against the reference by the rubric; `reduction` is the relative change of fact
            errors.
        by_round: relative change of fact errors of each round's policy from the one before.
        along: the evaluation points of all rounds.
        points: PPO, DPO and RAFT beside the frontier.
        json: the file's content.
    """

    judge: str | None = None
    prompts: int = 0
    bootstrap: int = 0
    settings: Settings | None = None
    models: Mapping[str, ModelResult] = field(default_factory=dict)
    wins: Sequence[Contest] = ()
    win_rate: WinRate | None = None
    reduction: Interval | None = None
    by_round: Sequence[Interval] = ()
    along: Sequence[EvaluatedPoint] = ()
    frontier: Frontier | None = None
    best_of_n: BestOfN | None = None
    optimum: Optimum | None = None
    points: Mapping[str, PolicyPoint] = field(default_factory=dict)
    extremes: Extremes | None = None
    json: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def reference(self) -> str:
        """As `reference_of`."""
        return reference_of(self.models)

    @property
    def start(self) -> str:
        """The reference as texts name it."""
        return in_words(self.reference)

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str = FILE) -> Evaluation:
        return replace(parse(cls, content, where), json=content)

    @classmethod
    def read(cls, artifact: Artifact) -> Evaluation:
        return cls.of(artifact.json(FILE), str(artifact.path / FILE))


@dataclass(frozen=True, kw_only=True)
class JudgedPrompt:
    """What the rubric found in the answers to one prompt, by model.

    Attributes:
        given: facts that the prompt gives.
        errors: fact errors of each model's answer.
        faults: all faults of each model's answer; None in older runs.
    """

    prompt: str
    given: int
    errors: Mapping[str, int]
    faults: Mapping[str, int] | None = None


def read_judged(artifact: Artifact) -> Iterator[JudgedPrompt]:
    """`judged.jsonl`; nothing where no rubric judged."""
    if (artifact.path / JUDGED).is_file():
        yield from artifact.rows(JUDGED, JudgedPrompt)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt with every model's answer and, by model and kind, the faults that the rubric found.

    Attributes:
        finished: by model, whether its answer ends with a stop token; older runs do not have it.
    """

    prompt: str
    answers: Mapping[str, str]
    faults: Mapping[str, Mapping[str, Sequence[str]]]
    finished: Mapping[str, bool] = field(default_factory=dict)

    def shown(self, model: str) -> str:
        """A model's answer as it is shown."""
        return marked(self.answers[model], self.finished.get(model, True))


def read_samples(artifact: Artifact) -> list[Sample]:
    return list(artifact.rows(SAMPLES, Sample))
