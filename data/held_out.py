"""Whether enough prompts are held out to measure anything."""

from __future__ import annotations

from pipeline.config.recipe import Recipe
from pipeline.language import mark, translate

FEW = 30
"""Below this number of prompts a result decides nothing: a bootstrap interval over so few is too narrow (three wins
of three give 100 % to 100 %), and a single prompt moves a share by more than 3 points."""
EVALUATED, RANKED = mark("to evaluate on"), mark("with rankings")
MORE = mark("add prompts, or raise data.eval_fraction")


def too_few(count: int, purpose: str, hint: str = MORE) -> str:
    """A warning if fewer than `FEW` prompts are held out; empty otherwise.

    Args:
        count: number of held-out prompts.
        purpose: what they are for, `EVALUATED` or `RANKED`.
        hint: what to change.
    """
    if count >= FEW:
        return ""
    values = {"purpose": translate(purpose), "few": FEW, "hint": translate(hint)}
    if count == 1:
        return translate(
            "only 1 held-out prompt {purpose}: results on fewer than {few} decide nothing ({hint})", **values
        )
    return translate(
        "only {count} held-out prompts {purpose}: results on fewer than {few} decide nothing ({hint})",
        count=count,
        **values,
    )


def warnings(recipe: Recipe, held_out: int, ranked: int | None) -> list[str]:
    """Warnings for a recipe whose tables have `held_out` held-out prompts, of which `ranked` have rankings (None:
    there is no table of rankings)."""
    watched = min(recipe.ppo.eval_prompts, held_out // 2) if recipe.ppo.eval_updates else 0
    evaluated, hint = held_out - watched, MORE
    if watched and held_out >= FEW:
        hint = f"{MORE}, or lower ppo.eval_prompts, which takes {watched} of {held_out}"
    if recipe.eval.num_prompts is not None and recipe.eval.num_prompts < evaluated:
        evaluated, hint = recipe.eval.num_prompts, "raise eval.num_prompts"
    lines = [too_few(evaluated, EVALUATED, hint)]
    if recipe.rank.source != "data":
        every_round = recipe.collect.eval_prompts
        asked = held_out if every_round is None else every_round * recipe.rounds
        hint = "raise collect.eval_prompts" if asked < held_out else MORE
        lines.append(too_few(min(asked, held_out), RANKED, hint))
    elif ranked is not None:
        lines.append(too_few(ranked, RANKED))
    return [f"warning: {line}" for line in lines if line]
