"""Alerts for PPO: rules over each update's metrics that report a symptom, its likely cause and a hint.

Pure functions of the metrics so far (docs/ppo.md): no torch, no files. A rule is printed once, when it first holds;
the log keeps counting the updates at which it holds. Thresholds are wide on purpose: warnings in healthy runs teach
users to ignore them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from pipeline.config.ppo import PPOConfig
from stages.ppo.watch.selection import Regression

Event = dict[str, Any]
"""`rule`, `update` (the first), `last`, `updates` (their number), `symptom` (at the first), `cause`, `hint`."""

WATCHED = (
    "objective/kl",
    "objective/kl_coef",
    "objective/entropy",
    "objective/scores",
    "objective/scores_std",
    "objective/scores_disagreement",
    "objective/equal_rewards",
    "objective/rlhf_reward",
    "response/length",
    "response/ended",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/grad_norm",
    "val/ratio",
    "val/explained_variance",
)
SOME, MANY = 3, 8
"""Updates that a level averages over, and updates that a condition must persist for."""


class History:
    """The watched metrics of all updates so far."""

    def __init__(self, values: Mapping[str, Sequence[float]] | None = None) -> None:
        self.values = {name: list(numbers) for name, numbers in (values or {}).items()}

    def add(self, metrics: Mapping[str, Any]) -> None:
        for name in WATCHED:
            if metrics.get(name) is not None:
                self.values.setdefault(name, []).append(float(metrics[name]))

    def of(self, name: str) -> list[float]:
        return self.values.get(name, [])

    def levels(self, name: str) -> tuple[float, float] | None:
        """The means of the first and the last `SOME` updates; None before 2 * `SOME` updates."""
        values = self.of(name)
        return None if len(values) < 2 * SOME else (fmean(values[:SOME]), fmean(values[-SOME:]))

    def recent(self, name: str) -> float | None:
        values = self.of(name)
        return None if len(values) < SOME else fmean(values[-SOME:])

    def last(self, name: str, count: int) -> list[float]:
        """The last `count` values; empty if there are fewer."""
        values = self.of(name)
        return [] if len(values) < count else values[-count:]


Symptom = Callable[[History, PPOConfig], str | None]
"""Describes the symptom at the current update; None if the rule does not hold."""


@dataclass(frozen=True)
class Rule:
    name: str
    symptom: Symptom
    cause: str
    hint: str


def _not_finite(history: History, config: PPOConfig) -> str | None:
    wrong = [name for name, values in history.values.items() if values and not math.isfinite(values[-1])]
    return f"{', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not finite" if wrong else None


def _ended_falls(history: History, config: PPOConfig) -> str | None:
    levels = history.levels("response/ended")
    if levels is None or levels[0] - levels[1] <= 0.1:
        return None
    return f"{levels[1]:.0%} of responses end with a stop token, {levels[0]:.0%} at the start"


def _kl_spikes(history: History, config: PPOConfig) -> str | None:
    values = history.of("objective/kl")
    before = values[-1 - MANY : -1]
    if len(before) < SOME or values[-1] <= 2 * max(before) or values[-1] - max(before) <= 1:
        return None
    return f"KL jumped to {values[-1]:.2f} nats in one update, from at most {max(before):.2f} in the updates before"


def _kl_beyond_target(history: History, config: PPOConfig) -> str | None:
    values = history.last("objective/kl", MANY)
    if config.kl.goal is None or not values or min(values) <= 2 * config.kl.goal:
        return None
    return f"KL has exceeded twice its target of {config.kl.goal:g} nats for {MANY} updates ({values[-1]:.2f})"


def _kl_negative(history: History, config: PPOConfig) -> str | None:
    value = history.recent("objective/kl")
    return (
        None
        if value is None or value >= -0.1
        else f"the KL estimate is {value:.2f} nats, but KL cannot be negative"
    )


def _kl_coef_runs_away(history: History, config: PPOConfig) -> str | None:
    values = history.of("objective/kl_coef")
    if config.kl.goal is None or not values or not values[0]:
        return None
    ratio = values[-1] / values[0]
    return None if 1 / 20 < ratio < 20 else f"the KL coefficient is {values[-1]:.2g}, {values[0]:.2g} at the start"


def _penalty_wins(history: History, config: PPOConfig) -> str | None:
    reward, scores = history.levels("objective/rlhf_reward"), history.levels("objective/scores")
    if reward is None or scores is None or reward[1] >= reward[0] - 0.5 or scores[1] <= scores[0]:
        return None
    return f"the score rises, but the reward minus the KL penalty fell from {reward[0]:.2f} to {reward[1]:.2f}"


def _length_grows(history: History, config: PPOConfig) -> str | None:
    levels = history.levels("response/length")
    if levels is None or levels[1] <= max(1.5 * levels[0], levels[0] + 4):
        return None
    return f"responses have {levels[1]:.0f} tokens, {levels[0]:.0f} at the start"


def _length_shrinks(history: History, config: PPOConfig) -> str | None:
    levels = history.levels("response/length")
    if levels is None or levels[1] >= 0.5 * levels[0]:
        return None
    return f"responses have {levels[1]:.1f} tokens, {levels[0]:.1f} at the start"


def _entropy_collapses(history: History, config: PPOConfig) -> str | None:
    levels = history.levels("objective/entropy")
    if levels is None or levels[1] >= 0.3 * levels[0]:
        return None
    return f"entropy is {levels[1]:.3f} nats per token, {levels[0]:.3f} at the start"


def _clips_much(history: History, config: PPOConfig) -> str | None:
    value = history.recent("policy/clipfrac_avg")
    return None if value is None or value <= 0.3 else f"clipping removes the gradient of {value:.0%} of the tokens"


def _steps_far(history: History, config: PPOConfig) -> str | None:
    value = history.recent("policy/approxkl_avg")
    return None if value is None or value <= 0.1 else f"an update moves the policy by {value:.2f} nats per token"


def _ratio_drifts(history: History, config: PPOConfig) -> str | None:
    value = history.recent("val/ratio")
    return None if value is None or abs(value - 1) <= 0.1 else f"the mean ratio is {value:.2f}, far from 1"


def _critic_useless(history: History, config: PPOConfig) -> str | None:
    values = history.of("val/explained_variance")
    if len(values) < 2 * MANY or max(values[-MANY:]) >= 0:
        return None
    return f"explained variance has been negative for {MANY} updates ({values[-1]:.2f})"


def _gradient_spikes(history: History, config: PPOConfig) -> str | None:
    values = history.of("policy/grad_norm")
    before = values[-1 - MANY : -1]
    if len(before) < MANY or values[-1] <= max(10 * median(before), config.max_grad_norm):
        return None
    return f"the policy's gradient norm is {values[-1]:.2g}, the recent median {median(before):.2g}"


def _scores_alike(history: History, config: PPOConfig) -> str | None:
    levels = history.levels("objective/scores_std")
    if levels is None or levels[1] >= 0.05 * levels[0]:
        return None
    return f"the std of scores within a batch is {levels[1]:.2g}, {levels[0]:.2g} at the start"


def _rewards_equal(history: History, config: PPOConfig) -> str | None:
    values = history.last("objective/equal_rewards", MANY)
    if not values or min(values) <= 0.8:
        return None
    return f"all responses to {values[-1]:.0%} of the prompts have the same reward"


def _members_disagree(history: History, config: PPOConfig) -> str | None:
    levels = history.levels("objective/scores_disagreement")
    if levels is None or levels[1] <= 2 * levels[0]:
        return None
    return f"the reward models disagree by {levels[1]:.2f}, {levels[0]:.2f} at the start"


def _stands_still(history: History, config: PPOConfig) -> str | None:
    values = history.last("objective/kl", 2 * MANY)
    if not values or max(map(abs, values)) >= 0.01:
        return None
    return f"KL is still {values[-1]:.4f} nats after {len(history.of('objective/kl'))} updates"


_SMALLER_STEPS = "lower ppo.learning_rate or ppo.num_ppo_epochs, or set ppo.target_kl"
RULES = (
    Rule(
        "not-finite",
        _not_finite,
        "numeric overflow, from too large a step or an extreme reward",
        "lower ppo.learning_rate, set ppo.score.clip, or use base.dtype: float32",
    ),
    Rule(
        "ended-falls",
        _ended_falls,
        "the reward model prefers incomplete answers, or ppo.response_length truncates them",
        "set ppo.missing_eos_penalty, or raise ppo.response_length",
    ),
    Rule("kl-spikes", _kl_spikes, "one update was too large", _SMALLER_STEPS),
    Rule(
        "kl-beyond-target",
        _kl_beyond_target,
        "the adaptive coefficient rises too slowly for the learning rate",
        "raise ppo.kl.init, lower ppo.kl.horizon or ppo.learning_rate",
    ),
    Rule(
        "kl-negative",
        _kl_negative,
        "tokens are sampled from another distribution than the one whose log-probs are used",
        "report this with the recipe; in 16 bits, try base.dtype: float32",
    ),
    Rule(
        "kl-coef-runs-away",
        _kl_coef_runs_away,
        "the controller cannot hold ppo.kl.target",
        "set ppo.kl.target to a KL that the run reaches, or ppo.kl.kind: fixed",
    ),
    Rule(
        "penalty-wins",
        _penalty_wins,
        "the KL penalty grows faster than the score",
        "lower ppo.learning_rate; if KL is small, ppo.kl.init is too high",
    ),
    Rule(
        "length-grows",
        _length_grows,
        "the reward model prefers longer answers (see its length correlation in the report)",
        "add rankings in which the shorter answer wins, or raise the KL coefficient",
    ),
    Rule(
        "length-shrinks",
        _length_shrinks,
        "the reward model prefers shorter answers, or does not penalise an early stop",
        "read the answers; check that the reward model prefers complete answers to truncated ones",
    ),
    Rule(
        "entropy-collapses",
        _entropy_collapses,
        "the policy has collapsed to few answers, usually ones that the reward model overrates",
        "raise the KL coefficient (ppo.kl), set ppo.entropy_coef, or lower ppo.learning_rate",
    ),
    Rule("clips-much", _clips_much, "steps are too large for ppo.cliprange", _SMALLER_STEPS),
    Rule("steps-far", _steps_far, "steps are too large", _SMALLER_STEPS),
    Rule(
        "ratio-drifts",
        _ratio_drifts,
        "steps are too large, or sampling and training compute different log-probs",
        _SMALLER_STEPS,
    ),
    Rule(
        "critic-useless",
        _critic_useless,
        "the value head predicts returns worse than their mean would, so advantages are noise",
        "raise ppo.value_learning_rate, or use ppo.value: adapter with ppo.critic_warmup_updates",
    ),
    Rule(
        "gradient-spikes",
        _gradient_spikes,
        "outlier advantages, from rare extreme scores",
        "set ppo.score.clip lower, or lower ppo.max_grad_norm",
    ),
    Rule(
        "scores-alike",
        _scores_alike,
        "all answers score alike: nothing is left to learn, or the policy has collapsed",
        "stop earlier, raise the KL coefficient, or rank the policy's new answers (rounds)",
    ),
    Rule(
        "rewards-equal",
        _rewards_equal,
        "the reward does not tell these responses apart, so they teach nothing",
        "raise ppo.num_generations, set ppo.max_resamples, or use prompts whose responses differ in reward",
    ),
    Rule(
        "members-disagree",
        _members_disagree,
        "the policy is outside the rankings that the reward models were trained on, where scores are unreliable",
        "set ppo.reward.aggregate: uncertainty, raise the KL coefficient, or rank the new answers (rounds)",
    ),
    Rule(
        "stands-still",
        _stands_still,
        "the learning rate is too low, or the KL coefficient too high",
        "raise ppo.learning_rate, or lower ppo.kl.init",
    ),
)
ALIKE = Rule(
    "answers-alike",
    lambda history, config: None,
    "the policy gives many prompts the same answer, which the reward model prefers for any prompt",
    "raise the KL coefficient (ppo.kl) or set ppo.entropy_coef; read the answers",
)
FALLS = Rule(
    "judge-falls",
    lambda history, config: None,
    "over-optimisation: the policy exploits errors of the reward model",
    "raise the KL coefficient (ppo.kl) or train less; train the reward model on more rankings, or an ensemble",
)
STOPPED = Rule("stopped", FALLS.symptom, FALLS.cause, FALLS.hint)
"""Rules on evaluation points rather than metrics."""


class AlertLog:
    """The alerts of a run. `state_dict` is complete, for the checkpoint."""

    def __init__(self, config: PPOConfig) -> None:
        self.config = config
        self.history = History()
        self.events: list[Event] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history.values, "events": self.events}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.history, self.events = History(state["history"]), [dict(event) for event in state["events"]]

    def update(self, update: int, metrics: Mapping[str, Any]) -> list[str]:
        """Applies the rules to an update's metrics. Returns a line for each rule that holds for the first time."""
        self.history.add(metrics)
        symptoms = [(rule, rule.symptom(self.history, self.config)) for rule in RULES]
        return self._note(update, [(rule, symptom) for rule, symptom in symptoms if symptom])

    def evaluation(
        self, points: Sequence[Mapping[str, Any]], regression: Regression | None, *, stop: bool
    ) -> list[str]:
        """Applies the rules on evaluation points to the newest point, and to the judge's regression there.

        Args:
            points: all points so far.
            stop: whether training stops here.
        """
        symptoms = []
        first, newest = (
            len(set(point["responses"])) / len(point["responses"]) for point in (points[0], points[-1])
        )
        if newest < first / 2:
            symptom = f"{newest:.0%} of the answers to held-out prompts are distinct, {first:.0%} at the start"
            symptoms.append((ALIKE, symptom))
        if regression is not None:
            symptoms.append((FALLS, regression.describe(points)))
            if stop:
                symptoms.append((STOPPED, f"stopped: {regression.describe(points)}"))
        return self._note(points[-1]["update"], symptoms)

    def _note(self, update: int, symptoms: Sequence[tuple[Rule, str]]) -> list[str]:
        lines = []
        for rule, symptom in symptoms:
            event = next((event for event in self.events if event["rule"] == rule.name), None)
            if event is None:
                event = {"rule": rule.name, "update": update, "last": update, "updates": 1, "symptom": symptom}
                self.events.append(event | {"cause": rule.cause, "hint": rule.hint})
                lines.append(f"alert, update {update}: {symptom}. Likely cause: {rule.cause}. Hint: {rule.hint}.")
            else:
                event["last"] = update
                event["updates"] += 1
        return lines
