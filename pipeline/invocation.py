"""Commands to print, in the form in which the user called this one: through make, or `tutelage` itself."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAKE = "TUTELAGE_MAKE"
"""The Makefile sets this variable for the commands that it calls."""


@dataclass(frozen=True)
class Invocation:
    """How the user called the present command.

    Attributes:
        recipe: the recipe as the user wrote it; empty for the default one.
        sets: values of --set.
        runs: the folder of all runs; empty for the default one.
        make: whether the Makefile called us.
        program: `tutelage`, or its path where it is not on PATH.
    """

    recipe: str = ""
    sets: Sequence[str] = ()
    runs: str = ""
    make: bool = False
    program: str = "tutelage"

    def command(self, name: str, *arguments: str) -> str:
        """The command line for a command of this recipe, to paste into a shell.

        Args:
            name: a command such as `run` or `chat`.
            arguments: its own arguments and flags: a stage for `run`, models for `chat`, `--fresh`.
        """
        sets = " ".join(text for text in self.sets if text.strip())
        runs = ["--runs", self.runs] if self.runs else []
        if not self.make:
            recipe = ["--recipe", self.recipe] if self.recipe else []
            values = ["--set", sets] if sets else []
            return shlex.join([self.program, name, *arguments, *recipe, *values, *runs])
        rest = [*arguments, *runs]
        if name == "run" and arguments and not arguments[0].startswith("-"):
            name, *rest = rest  # `make sft`, not `make run ARGS=sft`
        variables = {"RECIPE": self.recipe, "SET": sets, "ARGS": shlex.join(rest)}
        given = [f"{variable}={shlex.quote(value)}" for variable, value in variables.items() if value]
        return " ".join(["make", name, *given])


_present = Invocation()


def remember(recipe: Path | None, sets: Sequence[str] | None, runs: Path | None) -> None:
    """Records what the user gave, for `command`. None for what is the default."""
    global _present
    _present = Invocation(
        recipe=str(recipe or ""),
        sets=tuple(sets or ()),
        runs=str(runs or ""),
        make=bool(os.environ.get(MAKE)),
        program=_program(),
    )


def _program() -> str:
    called = Path(sys.argv[0])
    if called.name != "tutelage" or shutil.which("tutelage") == str(called.absolute()):
        return "tutelage"
    return os.path.relpath(called) if called.is_relative_to(Path.cwd()) else str(called)


def command(name: str, *arguments: str) -> str:
    """A command of the present recipe, in the form in which the user called this one."""
    return _present.command(name, *arguments)
