"""What `tutelage check` says about the tables of a recipe."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.cli.app import recipe_check
from pipeline.config.load import LoadedRecipe
from pipeline.errors import TutelageError


@recipe_check
def check_tables(loaded: LoadedRecipe, say: Callable[[str], None]) -> list[TutelageError]:
    """Says what each table of the recipe holds, and returns all that is wrong with them."""
    from data.tables.check import check_table
    from data.tables.mapping import tables_of

    reports = [check_table(name, table) for name, table in tables_of(loaded.recipe).items()]
    for report in reports:
        for line in report.describe():
            say(line)
    return [problem.error(loaded.describe) for report in reports for problem in report.problems]
