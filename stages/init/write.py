"""The text of the recipe: every value with a comment that says why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data.tables.guess.guess import Guess
from data.tables.guess.section import Line, aligned, columns, scalar
from stages.init.base import Base
from stages.init.sizing import Section, Value, Values


@dataclass(frozen=True)
class Draft:
    """What the recipe is written from.

    Attributes:
        command: the command that writes it, for the first line.
        demonstrations, rankings: the tables' paths; one of them may be absent.
        counted: the table -> what is in it, for a comment.
        annotators: who ranks, where there are no rankings.
    """

    name: str
    command: str
    base: Base
    demonstrations: str | None
    demonstration_columns: Guess
    rankings: str | None
    ranking_columns: Guess
    counted: Mapping[str, str]
    annotators: Sequence[str]
    values: Values


def text(draft: Draft) -> str:
    """The recipe in YAML."""
    return "\n".join(aligned(_lines(draft))) + "\n"


def _lines(draft: Draft) -> Iterator[Line]:
    base, values = draft.base, draft.values
    yield f"# Written by {draft.command}", ""
    yield "# Change what you like: docs/recipes.md describes every value, and what is not here has its default.", ""
    yield f"name: {scalar(draft.name)}", f"results go to runs/{draft.name}"
    yield "", ""
    yield "base:", ""
    size = (
        "unknown size"
        if base.parameters is None
        else f"{_count(base.parameters)} parameters {base.parameters_from}"
    )
    context = "" if base.context is None else f", reads {base.context:,} tokens"
    yield f"  model: {scalar(base.model)}", size + context
    if base.revision is not None:
        yield f'  revision: "{base.revision}"', "the commit, because branches move"
    yield "", ""
    yield "data:", ""
    if draft.demonstrations is not None:
        yield "  demonstrations:", draft.counted["demonstrations"]
        yield f"    path: {scalar(draft.demonstrations)}", ""
        yield from columns(draft.demonstration_columns)
    if draft.rankings is not None:
        guess = draft.ranking_columns
        yield "  rankings:", draft.counted.get("rankings", "")
        yield f"    path: {scalar(draft.rankings)}", ""
        yield from columns(guess)
    yield f"  eval_fraction: {values.eval_fraction.yaml}", values.eval_fraction.why
    yield "", ""
    if draft.rankings is not None:
        yield "rank: {source: data}", "the rankings above"
    else:
        yield from _app(draft)
    yield "", ""
    if draft.demonstrations is not None:
        yield from _section("sft", values.sft, values.sft_trainer)
    else:
        yield "sft: null", "no demonstrations: everything starts from the base model (docs/instruct_models.md)"
        yield "", ""
    yield from _section("reward", values.reward, values.reward_trainer)
    yield from _section("ppo", values.ppo, {}, more={"kl": values.kl})
    yield from _section("eval", values.eval, {})


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"


def _app(draft: Draft) -> Iterator[Line]:
    yield "rank:", ""
    yield "  source: app", "people rank the model's answers in a browser (docs/rankings/collecting.md)"
    yield "  app:", ""
    yield f"    annotators: [{', '.join(map(scalar, draft.annotators))}]", "each gets a link"
    overlap = min(2, len(draft.annotators))
    yield (
        f"    overlap: {overlap}",
        "annotators per set of answers" + ("; agreement needs two" if overlap < 2 else ""),
    )
    yield "", ""
    yield "collect:", ""
    for name, value in draft.values.collect.items():
        yield f"  {name}: {value.yaml}", value.why


def _section(
    name: str, values: Section, trainer: Section, more: Mapping[str, Section] | None = None
) -> Iterator[Line]:
    yield f"{name}:", ""
    yield from _values(values, "  ")
    for inner, section in {"trainer": trainer, **(more or {})}.items():
        if section:
            yield f"  {inner}:", ""
            yield from _values(section, "    ")
    yield "", ""


def _values(section: Mapping[str, Value], indent: str) -> Iterator[Line]:
    for name, value in section.items():
        yield f"{indent}{name}: {value.yaml}", value.why
