"""Rules about the advantage estimator of PPO, and about the options that suit only some estimators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.ppo import PPOConfig

if TYPE_CHECKING:
    from pipeline.config.rules import Problem


def problems(ppo: PPOConfig) -> Iterator[Problem]:
    """Values that conflict with each other."""
    name, method = ppo.advantage_estimator, ppo.method
    if method.grouped and ppo.num_generations < 2:
        yield (
            "ppo.num_generations",
            f"must be at least 2 with advantage_estimator: {name} (got {ppo.num_generations}): it compares the "
            "responses to a prompt. Set it to 4, e.g.",
        )
    yield from _whole_response(ppo) if method.scale_rewards else _by_token(ppo)
    yield from _baseline(ppo)
    yield from _kl(ppo)
    if ppo.cliprange_high is not None and ppo.cliprange_high < ppo.cliprange:
        yield "ppo.cliprange_high", f"{ppo.cliprange_high:g} must be at least cliprange ({ppo.cliprange:g})"
    if ppo.max_resamples and not ppo.compares:
        yield (
            "ppo.max_resamples",
            "replaces prompts whose responses all have the same reward, and these still have advantages with the "
            f"baseline of advantage_estimator: {name}. Set it to 0, or use rloo or grpo",
        )


def _whole_response(ppo: PPOConfig) -> Iterator[Problem]:
    """A response is a single action."""
    name = ppo.advantage_estimator
    if ppo.normalize_advantages is not None:
        yield "ppo.normalize_advantages", f"is for gae and reinforce: with {name}, set ppo.scale_rewards"
    if ppo.gamma != 1:
        yield "ppo.gamma", f"must be 1 with advantage_estimator: {name}: a response is a single action"
    if ppo.whiten_rewards:
        yield (
            "ppo.whiten_rewards",
            f"scales the rewards of tokens, and {name} rewards a whole response: set ppo.scale_rewards to batch",
        )


def _by_token(ppo: PPOConfig) -> Iterator[Problem]:
    if ppo.scale_rewards is not None:
        yield (
            "ppo.scale_rewards",
            f"is for rloo and grpo: with {ppo.advantage_estimator}, set ppo.normalize_advantages",
        )


def _baseline(ppo: PPOConfig) -> Iterator[Problem]:
    if ppo.baseline is None:
        return
    if ppo.advantage_estimator != "reinforce":
        yield (
            "ppo.baseline",
            f"is for advantage_estimator: reinforce, and {ppo.advantage_estimator} defines its own. Leave it out",
        )
    elif ppo.baseline == "group" and ppo.num_generations < 2:
        yield "ppo.baseline", "group is the mean over a prompt's responses: set ppo.num_generations to 2 or more"
    elif ppo.baseline == "running" and ppo.whitens:
        yield (
            "ppo.baseline",
            "running has no effect, because normalised advantages have mean 0 whatever constant is subtracted: set "
            "ppo.normalize_advantages to false, or leave baseline out",
        )


def _kl(ppo: PPOConfig) -> Iterator[Problem]:
    kl, in_loss = ppo.kl, ppo.kl_loss
    if in_loss is None:
        if kl.estimator not in (None, "k1"):
            yield (
                "ppo.kl.estimator",
                f"{kl.estimator} is for the loss: as a reward its own gradient would be missing, so it would not "
                "lower the KL as its value says. Use k1, or set ppo.kl.placement to loss",
            )
        if kl.use_bias_correction:
            yield "ppo.kl.use_bias_correction", "is for a KL term in the loss: set ppo.kl.placement to loss"
        return
    if kl.kind == "solved":
        yield (
            "ppo.kl.kind",
            "solved computes the coefficient of a KL penalty in the reward, and a KL term in the loss has another "
            "optimum: set ppo.kl.placement to reward, or kind to adaptive",
        )
    if in_loss == "k1" and not kl.use_bias_correction:
        yield (
            "ppo.kl.estimator",
            "k1 in the loss has a gradient with mean zero, so it would not hold the policy. Use k2 or k3, or set "
            "ppo.kl.use_bias_correction to true",
        )
    if in_loss == "k2" and kl.use_bias_correction:
        yield (
            "ppo.kl.use_bias_correction",
            "is for k1 and k3: the gradient of k2 is already that of the KL. Set it to false",
        )
