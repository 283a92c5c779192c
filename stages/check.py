"""What `tutelage check` and `tutelage plan` say about the tables of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.app import plan_notes, recipe_check, step_notes
from pipeline.config.data import TaskConfig
from pipeline.config.evaluate import JUDGES
from pipeline.config.load import LoadedRecipe
from pipeline.engine.plan import StagePlan, StageRun
from pipeline.engine.rounds import by_round, parse
from pipeline.errors import DataError, TutelageError
from stages.criteria import part

if TYPE_CHECKING:
    from data.tables.check import TableReport

SPLIT = ("data.demonstrations", "data.prompts", "data.rankings")
"""The tables whose prompts are split into training and held-out ones, or the beginnings of their paths."""


@recipe_check
def check_tables(loaded: LoadedRecipe, say: Callable[[str], None]) -> list[TutelageError]:
    """Says what each table of the recipe holds, and returns all that is wrong with them."""
    from data.tables.check import check_table
    from data.tables.mapping import tables_of

    reports = [check_table(name, table) for name, table in tables_of(loaded.recipe).items()]
    for report in reports:
        for line in report.describe():
            say(line)
    for line in _few_held_out(loaded, reports):
        say(line)
    problems = [problem.error(loaded.describe) for report in reports for problem in report.problems]
    return [*problems, *_rubric(loaded, reports)]


def _rubric(loaded: LoadedRecipe, reports: Sequence[TableReport]) -> Iterator[TutelageError]:
    """What is wrong with a rubric that the recipe names for the reward model, or with the first held-out prompt of
    the local tables that it does not fit."""
    from data.splits import split_of
    from stages.reward.by_fault import load_rubric

    recipe, rubric = loaded.recipe, loaded.recipe.reward.rubric
    if rubric == "eval":  # the stages report prompts that do not fit eval.judge
        return
    if rubric not in JUDGES and not Path(rubric).exists():  # reported with the recipe's other paths
        return
    ranked = ("data.rankings",) if recipe.rank.source == "data" else ("data.demonstrations", "data.prompts")
    ranked_prompts = (report for report in reports if report.name.startswith(ranked))
    held_out = (
        prompt
        for report in ranked_prompts
        for key, prompt in report.asked.items()
        if split_of(report.groups[key], recipe.data.eval_fraction) == "eval"
    )
    try:
        load_rubric(rubric, held_out)
    except DataError as error:
        yield error


@plan_notes
def few_held_out(loaded: LoadedRecipe, data: StageRun | None) -> list[str]:
    """Warnings about too few held-out prompts: from the finished `data` stage, or from small local tables."""
    from data.held_out import warnings
    from data.tables.check import check_table
    from data.tables.mapping import tables_of

    if data is not None:
        metrics = data.manifest.metrics
        held_out = metrics.get("prompts_eval")  # `data` of an older version has no `ranked_prompts_eval`
        criteria = loaded.recipe.data.criteria
        names = [f"{name}/ranked_prompts_eval" for name in criteria] or ["ranked_prompts_eval"]
        ranked = min((metrics[name] for name in names if name in metrics), default=None)
        return [] if held_out is None else warnings(loaded.recipe, held_out, ranked)
    tables = tables_of(loaded.recipe)
    if any(table.join is not None for table in tables.values()):
        return []  # a joined table is read whole, which may take long
    return _few_held_out(
        loaded, [check_table(name, table) for name, table in tables.items() if name.startswith(SPLIT)]
    )


@step_notes
def too_long_to_rank(loaded: LoadedRecipe, steps: Sequence[StagePlan]) -> list[str]:
    """What `reward.max_length` will leave out, once the base and the rankings are there. An encoder of its own
    (`reward.model`) is not loaded for it."""
    recipe = loaded.recipe
    waiting = [step for step in steps if parse(step.spec.name)[0] == "reward" and step.finished is None]
    runs = {step.spec.name: step.finished.artifact for step in steps if step.finished is not None}
    ranked = list(by_round(runs, "rank").values())
    if recipe.data.criteria and ranked:
        ranked = [part(rank, name) for rank in ranked for name in recipe.data.criteria]
    if not ranked and recipe.rank.source == "data" and recipe.data.rankings is not None and "data" in runs:
        ranked = [runs["data"]]
    if not waiting or not ranked or "base" not in runs or recipe.reward.model is not None:
        return []
    from stages.reward import forecast

    with suppress(TutelageError):  # the stage reports what it cannot read
        return [
            line if criterion is None else f"{criterion}: {line}"
            for criterion in recipe.data.criteria or (None,)
            for line in forecast.lines(recipe.reward, runs["base"], ranked, criterion)
        ]
    return []


def _few_held_out(loaded: LoadedRecipe, reports: Sequence[TableReport]) -> list[str]:
    """Warnings from the tables' own prompts, where every table was read to its end."""
    from data.held_out import warnings
    from data.splits import split_of

    read = {report.name: report for report in reports if report.name.startswith(SPLIT)}
    if isinstance(loaded.recipe.data.demonstrations, TaskConfig):
        return []  # generated prompts
    if not all(report.complete and not report.problems for report in read.values()):
        return []
    fraction = loaded.recipe.data.eval_fraction
    held_out = {
        name: {key for key, group in report.groups.items() if split_of(group, fraction) == "eval"}
        for name, report in read.items()
    }
    ranked = min((len(keys) for name, keys in held_out.items() if name.startswith("data.rankings")), default=None)
    return warnings(loaded.recipe, len(set().union(*held_out.values())), ranked)
