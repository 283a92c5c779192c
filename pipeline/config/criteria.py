"""Rankings by several criteria (`data.rankings.criteria`): rules, and PPO's reward where it has no terms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.config.data import CriteriaConfig
from pipeline.config.recipe import Recipe
from pipeline.config.terms import RUN_MODEL, TermConfig

if TYPE_CHECKING:
    from pipeline.config.rules import Problem

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
"""Names of criteria become names of folders, adapters and metrics."""


def with_terms(recipe: Recipe) -> Recipe:
    """The recipe with a term of equal weight for each criterion, where the rankings have criteria and the recipe
    does not say how PPO combines them. The weights add up to 1."""
    criteria, ppo = recipe.data.criteria, recipe.ppo
    if not criteria or ppo.reward.terms is not None or ppo.reward_model is not None:
        return recipe
    terms = [TermConfig(name=name, model=RUN_MODEL, criterion=name, weight=1 / len(criteria)) for name in criteria]
    return replace(recipe, ppo=replace(ppo, reward=replace(ppo.reward, terms=terms)))


def conflicts(recipe: Recipe) -> Iterator[Problem]:
    """Values that do not go together with several criteria, or need them."""
    criteria, path = recipe.data.criteria, "data.rankings.criteria"
    if recipe.dpo is not None:
        yield from named("dpo.criterion", recipe.dpo.criterion, criteria, "DPO learns from", recipe.dpo.enabled)
    publish = recipe.publish
    yield from named(
        "publish.reward_criterion",
        publish.reward_criterion,
        criteria,
        "the published reward model is that of",
        publish.reward is not None,
    )
    if not isinstance(recipe.data.rankings, CriteriaConfig):
        return
    if len(criteria) < 2:
        yield (
            path,
            f"has {len(criteria)} of at least 2 criteria. Write a single table under data.rankings itself, without "
            "criteria",
        )
    for name in criteria:
        if not NAME.fullmatch(name):
            yield (
                path,
                f"{name!r} cannot be the name of a criterion: use up to 40 letters (A to Z), digits and "
                "underscores, the first one a letter",
            )
    names = {name.lower() for name in criteria}
    if len(names) < len(criteria):
        yield path, "has two names that differ in capital letters only, which some file systems do not tell apart"
    if recipe.rank.source != "data":
        yield (
            "rank.source",
            f"{recipe.rank.source} asks for one ranking of each set of answers, and data.rankings has several "
            "criteria. Set it to data, or remove data.rankings.criteria",
        )
    if recipe.reward.lora is None or recipe.reward.model is not None:
        unset = recipe.reward.model is not None
        yield (
            "reward.model" if unset else "reward.lora",
            f"{'must be null' if unset else 'is required'} with data.rankings.criteria: the reward model of each "
            "criterion is an adapter on the policy's backbone",
        )
    if publish.rankings is not None:
        yield (
            "publish.rankings",
            "would mix the rankings of several criteria in one data set. Leave it out, and write those by each "
            "criterion with `export-rankings --criterion`",
        )
    if recipe.ppo.reward.held_out:
        yield (
            "ppo.reward.held_out",
            "holds out members of one ensemble, and there is a reward model for each criterion. Hold out a "
            "criterion instead: a term of ppo.reward.terms with held_out: true",
        )
    if recipe.ppo.monitor.judge == "reward":
        yield (
            "ppo.monitor.judge",
            f"reward is one reward model, and there is one for each criterion ({', '.join(criteria)}). Name "
            "another judge",
        )


def named(path: str, name: str | None, criteria: tuple[str, ...], what: str, needed: bool) -> Iterator[Problem]:
    """What is wrong with a value that names a criterion.

    Args:
        path: of the value.
        what: the sentence that goes on with the criterion.
        needed: whether the value is required where there are criteria.
    """
    listed = ", ".join(criteria)
    if name is None:
        if criteria and needed:
            yield path, f"is required by data.rankings.criteria: {what} one of {listed}"
    elif not criteria:
        yield path, f"is {name}, and data.rankings has no criteria: leave it out"
    elif name not in criteria:
        yield path, f"must be a criterion of data.rankings ({listed}), got {name}"
