"""Rules about the terms of PPO's reward (`ppo.reward.terms`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import functions
from pipeline.config import criteria, endpoint
from pipeline.config.evaluate import JUDGES
from pipeline.config.recipe import Recipe
from pipeline.config.terms import KINDS, RUN_MODEL, TermConfig

if TYPE_CHECKING:
    from pipeline.config.rules import Problem

TERMS = "ppo.reward.terms"


def terms_of(recipe: Recipe) -> dict[str, TermConfig]:
    """Dotted path -> term."""
    return {f"{TERMS}[{i}]": term for i, term in enumerate(recipe.ppo.reward.terms or ())}


def conflicts(recipe: Recipe) -> Iterator[Problem]:
    """Values of terms that conflict with each other or with other sections."""
    terms = terms_of(recipe)
    if recipe.ppo.reward.terms is None:
        return
    if recipe.ppo.reward_model is not None:
        yield "ppo.reward_model", f"is not used with {TERMS}: give a term `model: {recipe.ppo.reward_model}`"
    names: set[str] = set()
    for path, term in terms.items():
        if term.name in names:
            yield f"{path}.name", f"two terms are called {term.name}"
        names.add(term.name)
        if len(term.kinds) != 1:
            listed = f"has {' and '.join(term.kinds)}" if term.kinds else "says nothing about what scores"
            yield path, f"{listed}: it needs exactly one of {', '.join(KINDS)}"
            continue
        yield from _term(path, term, recipe)
    if not any(term.trained for term in terms.values()):
        yield TERMS, "has no term to train on: give at least one a weight, without held_out"
    if recipe.rounds > 1 and not recipe.ppo.reward.trains_on_run_model:
        yield (
            TERMS,
            f"has no `model: {RUN_MODEL}` with a weight, so none of the {recipe.rounds} rounds would learn from "
            "its rankings",
        )
    if recipe.ppo.reward.held_out and not recipe.ppo.reward.uses_run_model:
        yield "ppo.reward.held_out", f"applies to the run's own ensemble, and no term has `model: {RUN_MODEL}`"


def _term(path: str, term: TermConfig, recipe: Recipe) -> Iterator[Problem]:
    from pipeline.config.rules import is_hub_id, no_revision

    if term.model is not None and not term.run_model and is_hub_id(term.model) and not term.revision:
        yield no_revision(f"{path}.model", f"{path}.revision", term.model)
    elif term.revision is not None and (term.model is None or term.run_model or not is_hub_id(term.model)):
        yield f"{path}.revision", f"belongs to a Hub id in {path}.model, which is not set"
    if term.run_model:
        yield from criteria.named(
            f"{path}.criterion", term.criterion, recipe.data.criteria, "the term is the reward model of", True
        )
    elif term.criterion is not None:
        yield f"{path}.criterion", f"belongs to `model: {RUN_MODEL}`"
    if term.function is None and not term.conversational:
        yield f"{path}.conversational", "belongs to `function`"
    elif term.function is not None and functions.FunctionName.parse(term.function) is None:
        yield (
            f"{path}.function",
            f"must be file.py:function or package.module:function, got {term.function!r}",
        )
    if term.pattern is not None:
        try:
            re.compile(term.pattern)
        except re.error as error:
            yield f"{path}.pattern", f"is not a regular expression: {error}"
    if term.lexicon is not None and (term.lexicon == "none" or Path(term.lexicon).is_dir()):
        names = ", ".join(name for name in JUDGES if name != "none")
        yield f"{path}.lexicon", f"must be a slot lexicon ({names} or a .yaml file), got {term.lexicon}"
    yield from _lengths(path, term, recipe.ppo.response_length)
    if term.llm_judge is not None:
        yield from endpoint.problems(f"{path}.llm_judge", term.llm_judge)
    judges = {
        "eval.judge": recipe.eval.judge,
        "eval.llm_judge.model": getattr(recipe.eval.llm_judge, "model", None),
    }
    for judge, value in judges.items():
        if not term.trained and value == term.name:
            yield (
                f"{path}.name",
                f"{term.name} is also {judge}, and a held-out term is a judge of its own: rename it",
            )
    if term.trained:
        yield from _independence(path, term, recipe)
        if recipe.ppo.kl.kind == "solved" and term.scaling(recipe.ppo.score).normalization == "running":
            yield (
                f"{path}.score.normalization" if term.score else "ppo.score.normalization",
                "running changes the scale of the score during training, and the coefficient of kl.kind: solved is "
                "for one scale. Set it to reference",
            )


def _lengths(path: str, term: TermConfig, longest: int) -> Iterator[Problem]:
    """Lengths that no response can have."""
    if term.length is not None and term.length.target > longest:
        yield (
            f"{path}.length.target",
            f"{term.length.target} is more than ppo.response_length ({longest}), so no response reaches it",
        )
    if term.overlong is None:
        return
    limit, falls = term.overlong.max_completion_len, term.overlong.soft_punish_cache
    if falls >= limit:
        yield f"{path}.overlong.soft_punish_cache", f"{falls} must be below max_completion_len ({limit})"
    elif limit - falls >= longest:
        yield (
            f"{path}.overlong",
            f"starts at {limit - falls} tokens, and no response is longer than ppo.response_length ({longest})",
        )


def _independence(path: str, term: TermConfig, recipe: Recipe) -> Iterator[Problem]:
    """A judge must not be what PPO optimises."""
    from pipeline.config.rules import monitor_judge

    if term.lexicon is not None:
        for judge, value in {"eval.judge": recipe.eval.judge, "ppo.monitor.judge": monitor_judge(recipe)}.items():
            if value == term.lexicon:
                yield (
                    f"{path}.lexicon",
                    f"{value} is also {judge}, which would judge what PPO optimises. Set held_out to true, or "
                    f"{judge} to none or another lexicon",
                )
    for judge, model in {
        "eval.reward_model": recipe.eval.reward_model,
        "ppo.monitor.judge": recipe.ppo.monitor.judge,
    }.items():
        if term.model is not None and not term.run_model and model == term.model:
            yield (
                f"{path}.model",
                f"{model} is also {judge}, which would judge what PPO optimises. Set held_out to true, or name "
                f"another model in {judge}",
            )


def problems(recipe: Recipe) -> Iterator[Problem]:
    """What the functions of terms need and do not have, as far as their files show."""
    columns = recipe.data.prompts.metadata if recipe.data.prompts is not None else []
    for path, term in terms_of(recipe).items():
        if term.function is not None and (why := functions.problem(term.function, columns)):
            yield f"{path}.function", why


def unset_keys(recipe: Recipe) -> Iterator[Problem]:
    """API keys that are not in the environment."""
    for path, term in terms_of(recipe).items():
        name = term.llm_judge.api_key_env if term.llm_judge is not None else None
        if name and not os.environ.get(name):
            yield f"{path}.llm_judge.api_key_env", f"the environment variable {name} is not set: export {name}=..."


def local_files(recipe: Recipe) -> Mapping[str, Path]:
    """The files and folders that terms name, by dotted path. Their content enters the `ppo` stage's key."""
    from pipeline.config.rules import is_hub_id

    files: dict[str, Path] = {}
    for path, term in terms_of(recipe).items():
        if term.model is not None and not term.run_model and not is_hub_id(term.model):
            files[f"{path}.model"] = Path(term.model)
        if term.lexicon is not None and term.lexicon not in JUDGES:
            files[f"{path}.lexicon"] = Path(term.lexicon)
        function = functions.FunctionName.parse(term.function) if term.function is not None else None
        if function is not None and (file := function.file()) is not None:
            files[f"{path}.function"] = file
    return files
