"""The gate: decides from held-out metrics whether PPO may use a reward model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.config.reward import GateConfig
from pipeline.wording import percent, points_span


def _lead(metrics: Mapping[str, Any], baseline: str) -> str:
    """How much more accurate it is than a baseline, in words."""
    lead = points_span(metrics[f"above_{baseline}_low"], metrics[f"above_{baseline}_high"])
    return f"the 95 % interval of its lead is {lead}"


def _agreement(metrics: Mapping[str, Any]) -> str:
    """Describes the annotators' agreement on the held-out prompts, which bounds the accuracy of a reward model."""
    if metrics.get("agreement") is None:
        return "the agreement of two annotators on these prompts is unknown"
    return (
        f"two annotators agree on {metrics['agreement']:.3f} ({metrics['agreement_low']:.3f} to "
        f"{metrics['agreement_high']:.3f}) of {metrics['agreement_pairs']} pairs of these prompts"
    )


def summary(metrics: Mapping[str, Any], pairs: str = "held-out pairs") -> str:
    """A line with accuracy, baselines and agreement on `pairs`; empty if nothing was measured."""
    if not metrics.get("pairs"):
        return ""
    return (
        f"of {metrics['pairs']} {pairs} the reward model orders {metrics['accuracy']:.3f} as annotators did "
        f"({metrics['accuracy_low']:.3f} to {metrics['accuracy_high']:.3f}), a bag of words "
        f"{metrics['bag_of_words_accuracy']:.3f}, the longer answer {metrics['length_accuracy']:.3f}; "
        f"{_agreement(metrics)}"
    )


def _above_bag_of_words(metrics: Mapping[str, Any]) -> str | None:
    """The warning that the reward model may be no better than a bag of words; None if it is better."""
    if metrics.get("above_bag_of_words_low") is None or metrics["above_bag_of_words_low"] > 0:
        return None
    accuracy, words = metrics["accuracy"], metrics["bag_of_words_accuracy"]
    return (
        f"it may be no better ({accuracy:.3f}) than a logistic regression on the words of the answers "
        f"({words:.3f}): {_lead(metrics, 'bag_of_words')}"
    )


def warnings(config: GateConfig | None, metrics: Mapping[str, Any]) -> list[str]:
    """Warnings about a reward model that do not fail the gate."""
    words = _above_bag_of_words(metrics)
    if words is None or (config is not None and config.above_bag_of_words):
        return []
    return [f"{words} (set reward.gate.above_bag_of_words to true to stop PPO in this case)"]


def gate(config: GateConfig, metrics: Mapping[str, Any], left_out: str = "") -> list[str]:
    """The reasons why a reward model with these held-out metrics (`stages.reward.measure`) fails the gate; empty if
    it passes. A missing metric fails no check, unless no pair was measured at all.

    Args:
        left_out: which held-out rankings were left out and why; empty if none were.
    """
    if not metrics.get("pairs"):
        return ["it was measured on no held-out pair" + (f" ({left_out})" if left_out else "")]
    if not all(math.isfinite(metrics[name]) for name in ("score_mean", "score_std")):
        return ["its scores are not finite"]
    words = _above_bag_of_words(metrics)
    checks = (
        (
            metrics["accuracy"] < config.min_accuracy,
            f"its accuracy on held-out pairs is {metrics['accuracy']:.3f}, below {config.min_accuracy} "
            f"(reward.gate.min_accuracy); {_agreement(metrics)}",
        ),
        (
            config.above_chance and metrics["accuracy_low"] <= 0.5,
            f"its accuracy may be chance: the 95 % interval is {metrics['accuracy_low']:.3f} to "
            f"{metrics['accuracy_high']:.3f} (reward.gate.above_chance); {_agreement(metrics)}",
        ),
        (
            config.above_length and metrics["above_length_low"] <= 0,
            f"it may be no better than choosing the longer answer ({metrics['length_accuracy']:.3f}): "
            f"{_lead(metrics, 'length')} (reward.gate.above_length)",
        ),
        (
            config.above_bag_of_words and words is not None,
            f"{words} (reward.gate.above_bag_of_words)",
        ),
        (
            abs(metrics["length_correlation"]) > config.max_length_correlation,
            f"its scores follow length: Spearman {metrics['length_correlation']:.2f}, beyond "
            f"{config.max_length_correlation} (reward.gate.max_length_correlation)",
        ),
        (
            metrics["ece"] > config.max_ece,
            f"it is overconfident or underconfident: its expected calibration error is "
            f"{metrics['ece']:.3f}, above {config.max_ece} (reward.gate.max_ece)",
        ),
        (
            metrics["score_spread"] < config.min_score_spread,
            f"it scores all answers alike: the standard deviation within a prompt is "
            f"{metrics['score_spread']:.3g}, below {config.min_score_spread} (reward.gate.min_score_spread)",
        ),
        (
            metrics["ended_preferred"] < config.min_ended_preferred,
            f"it does not prefer complete answers: only {percent(metrics['ended_preferred'])} of held-out answers "
            f"score higher than their own first half, below {percent(config.min_ended_preferred)} "
            "(reward.gate.min_ended_preferred)",
        ),
    )
    return [reason for failed, reason in checks if failed]
