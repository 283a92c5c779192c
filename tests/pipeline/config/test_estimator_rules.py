"""Rules about advantage estimators and their options."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.config.load import LoadedRecipe
from pipeline.config.ppo import PPOConfig
from pipeline.config.section import content
from pipeline.errors import RecipeError

Load = Callable[..., LoadedRecipe]

GRPO = "ppo.advantage_estimator=grpo ppo.num_generations=4"
RLOO = "ppo.advantage_estimator=rloo ppo.num_generations=4"
REINFORCE = "ppo.advantage_estimator=reinforce"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("ppo.advantage_estimator=grpo", "ppo.num_generations: must be at least 2 with advantage_estimator: grpo"),
        ("ppo.advantage_estimator=rloo", "ppo.num_generations: must be at least 2 with advantage_estimator: rloo"),
        (f"{RLOO} ppo.value=adapter", "ppo.value: advantage_estimator: rloo has no critic"),
        (f"{RLOO} ppo.gamma=0.9", "ppo.gamma: must be 1"),
        (f"{GRPO} ppo.whiten_rewards=true", "set ppo.scale_rewards to batch"),
        (f"{GRPO} ppo.normalize_advantages=true", "with grpo, set ppo.scale_rewards"),
        ("ppo.scale_rewards=group", "with gae, set ppo.normalize_advantages"),
        (f"{RLOO} ppo.baseline=batch", "rloo defines its own"),
        (f"{REINFORCE} ppo.baseline=group", "set ppo.num_generations to 2 or more"),
        (f"{REINFORCE} ppo.baseline=running", "ppo.baseline: running has no effect"),
        (f"{GRPO} ppo.kl.kind=solved", "set ppo.kl.placement to reward"),
        (f"{GRPO} ppo.kl.estimator=k1", "a gradient with mean zero"),
        (f"{GRPO} ppo.kl.estimator=k2 ppo.kl.use_bias_correction=true", "is for k1 and k3"),
        ("ppo.kl.estimator=k3", "Use k1, or set ppo.kl.placement to loss"),
        ("ppo.kl.use_bias_correction=true", "set ppo.kl.placement to loss"),
        ("ppo.cliprange=0.3 ppo.cliprange_high=0.2", "ppo.cliprange_high: 0.2 must be at least cliprange (0.3)"),
        ("ppo.max_resamples=2 ppo.num_generations=4", "ppo.max_resamples: replaces prompts whose responses"),
        (f"{REINFORCE} ppo.max_resamples=2", "ppo.max_resamples: replaces prompts whose responses"),
    ],
)
def test_options_that_conflict_are_refused(load: Load, sets: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"\S") as error:
        load(sets)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("sets", "critic", "kl_loss", "whitens"),
    [
        ("", "trunk", None, True),
        (REINFORCE, None, None, True),
        (f"{REINFORCE} ppo.baseline=running ppo.normalize_advantages=false", None, None, False),
        (RLOO, None, None, False),
        (f"{RLOO} ppo.kl.kind=solved ppo.kl.target=1", None, None, False),
        (GRPO, None, "k3", False),
        (f"{GRPO} ppo.kl.placement=reward ppo.kl.kind=solved ppo.kl.target=1", None, None, False),
        (f"{GRPO} ppo.kl.estimator=k1 ppo.kl.use_bias_correction=true", None, "k1", False),
        (f"{GRPO} ppo.max_resamples=3 ppo.cliprange_high=0.28 ppo.loss_type=dapo", None, "k3", False),
        ("ppo.kl.placement=loss ppo.kl.estimator=k2", "trunk", "k2", True),
    ],
)
def test_estimators_have_the_defaults_of_their_papers(
    load: Load, sets: str, critic: str | None, kl_loss: str | None, whitens: bool
) -> None:
    ppo = load(sets).recipe.ppo
    assert (ppo.critic, ppo.kl_loss, ppo.whitens) == (critic, kl_loss, whitens)


def test_the_options_of_estimators_do_not_change_the_keys_of_earlier_recipes() -> None:
    kept = content(PPOConfig())
    names = {"baseline", "scale_rewards", "normalize_advantages", "loss_type", "max_resamples", "cliprange_high"}
    assert not names & set(kept)
    assert set(kept["kl"]) == {"kind", "init", "target", "horizon", "num_prompts", "num_generations"}
