"""The gate: may PPO trust this reward model?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.config.reward import GateConfig


def gate(config: GateConfig, metrics: Mapping[str, Any]) -> list[str]:
    """Why PPO should not trust a reward model with these held-out metrics (`stages.reward.measure`); empty when it
    may. What could not be measured gives no reason, except that nothing could."""
    if not metrics.get("pairs"):
        return ["it was measured on no held-out pair at all"]
    if not all(math.isfinite(metrics[name]) for name in ("score_mean", "score_std")):
        return ["its scores are not finite"]
    checks = (
        (
            metrics["accuracy"] < config.min_accuracy,
            f"its accuracy on held-out pairs is {metrics['accuracy']:.3f}, below {config.min_accuracy} "
            "(reward.gate.min_accuracy)",
        ),
        (
            config.above_chance and metrics["accuracy_low"] <= 0.5,
            f"its accuracy may be chance: the 95 % interval is {metrics['accuracy_low']:.3f} to "
            f"{metrics['accuracy_high']:.3f} (reward.gate.above_chance)",
        ),
        (
            config.above_length and metrics["above_length_low"] <= 0,
            f"it may be no better than choosing the longer answer ({metrics['length_accuracy']:.3f}): the 95 % "
            f"interval of what it is better by is {metrics['above_length_low']:+.3f} to "
            f"{metrics['above_length_high']:+.3f} (reward.gate.above_length)",
        ),
        (
            abs(metrics["length_correlation"]) > config.max_length_correlation,
            f"its scores follow length: Spearman {metrics['length_correlation']:.2f}, beyond "
            f"{config.max_length_correlation} (reward.gate.max_length_correlation)",
        ),
        (
            metrics["ece"] > config.max_ece,
            f"it is too sure of itself, or not sure enough: its expected calibration error is "
            f"{metrics['ece']:.3f}, above {config.max_ece} (reward.gate.max_ece)",
        ),
        (
            metrics["score_spread"] < config.min_score_spread,
            f"it scores all answers alike: the standard deviation within a prompt is "
            f"{metrics['score_spread']:.3g}, below {config.min_score_spread} (reward.gate.min_score_spread)",
        ),
        (
            metrics["ended_preferred"] < config.min_ended_preferred,
            f"it likes answers without an end: only {metrics['ended_preferred']:.0%} of held-out answers score "
            f"above themselves cut in half, below {config.min_ended_preferred:.0%} "
            "(reward.gate.min_ended_preferred)",
        ),
    )
    return [reason for failed, reason in checks if failed]
