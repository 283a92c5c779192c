"""Errors that a user can fix.

Each is a `TutelageError`: *what* is wrong, *where* (file and line, dotted recipe path, or artifact), and *how* to
fix it. The command line prints it without a traceback and exits with its `exit_code`. Any other exception that
escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class TutelageError(Exception):
    """Base class of the errors that a user can fix.

    Args:
        what: one sentence, what is wrong.
        where: file and line, dotted recipe path or artifact folder; empty if `what` says it.
        hint: one sentence, what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  hint:  {self.hint}")
        return "\n".join(lines)


class RecipeError(TutelageError):
    """A recipe, a `--set` or a flag is wrong."""

    exit_code = 2


class DataError(TutelageError):
    """A data set, a ranking file or a row of one is wrong."""

    exit_code = 3


class StageError(TutelageError):
    """A stage cannot run or continue, because of a checkpoint, an artifact, a model or a measurement."""

    exit_code = 4


class DiskFull(StageError):
    """A write failed for lack of disk space. Earlier files are kept."""


class Interrupted(TutelageError):
    """The user or the system stopped the command. Its state is kept."""

    exit_code = 130


def all_of(problems: Sequence[TutelageError], where: str) -> TutelageError:
    """One error that lists several. It has the lowest of their exit codes, so a wrong recipe comes first.

    Args:
        where: what the problems are in.
    """
    if len(problems) == 1:
        return problems[0]
    lines = [f"{len(problems)} problems in {where}"]
    for problem in problems:
        lines += ["", *(f"  {line}" for line in str(problem).splitlines())]
    return type(min(problems, key=lambda problem: problem.exit_code))("\n".join(lines))
