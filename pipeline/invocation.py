"""Commands to print, in the form in which the user called this one: through make, or `tutelage` itself.

The options of the command line call `remember` with what the user gave, and messages print `command`, `again` or
`stage_again`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MAKE = "TUTELAGE_MAKE"
"""The Makefile sets this variable for the commands that it calls."""
WITHOUT_RECIPE = ("annotate", "compare", "init", "inspect")
"""Commands that take no recipe."""
WITHOUT_RUNS = (*WITHOUT_RECIPE, "show")
"""Commands that take no folder of runs."""


@dataclass(frozen=True)
class Invocation:
    """How the user called the present command.

    Attributes:
        name: the command, such as `run`.
        stage: the stage that the user asked for; empty for all.
        flags: the user's `--fresh`, `--force` and `--wait`.
        processes: the value of --nproc; None without it.
        recipe: the recipe as the user wrote it; empty for the default one.
        sets: values of --set.
        runs: the folder of all runs; empty for the default one.
        make: whether the Makefile called us.
        program: `tutelage`, or its path where it is not on PATH.
        running: the stage that is running now.
    """

    name: str = "run"
    stage: str = ""
    flags: tuple[str, ...] = ()
    processes: int | None = None
    recipe: str = ""
    sets: Sequence[str] = ()
    runs: str = ""
    make: bool = False
    program: str = "tutelage"
    running: str = ""

    def command(self, name: str, *arguments: str, processes: int | None = None) -> str:
        """The command line for a command of this recipe, to paste into a shell.

        Args:
            name: a command such as `run` or `chat`.
            arguments: its own arguments and flags: a stage for `run`, models for `chat`, `--fresh`.
            processes: how many processes share its stages; None: the default.
        """
        has_recipe = name not in WITHOUT_RECIPE
        recipe = self.recipe if has_recipe else ""
        sets = " ".join(text.strip() for text in self.sets if text.strip()) if has_recipe else ""
        runs = ["--runs", self.runs] if self.runs and name not in WITHOUT_RUNS else []
        if self.make:
            return _make(name, [*arguments, *runs], recipe, sets, processes)
        options = [
            *(["--recipe", recipe] if recipe else []),
            *(["--set", sets] if sets else []),
            *runs,
            *(["--nproc", str(processes)] if processes else []),
        ]
        return shlex.join([self.program, name, *arguments, *options])

    def again(self, *flags: str) -> str:
        """The user's command with further flags."""
        stage = [self.stage] if self.stage else []
        unique = dict.fromkeys((*self.flags, *flags))
        return self.command(self.name, *stage, *unique, processes=self.processes)


def _make(name: str, rest: list[str], recipe: str, sets: str, processes: int | None) -> str:
    if name == "run" and rest and not rest[0].startswith("-"):
        name, *rest = rest  # `make sft`, not `make run ARGS=sft`
    variables = {
        "RECIPE": recipe,
        "SET": sets,
        "NPROC": str(processes) if processes and processes > 1 else "",
        "ARGS": shlex.join(rest),
    }
    given = [
        f"{variable}={shlex.quote(value.replace('$', '$$'))}"  # make reads $ as a variable
        for variable, value in variables.items()
        if value
    ]
    return " ".join(["make", name, *given])


_present = Invocation()


def flags() -> tuple[str, ...]:
    """The flags of the present command that have been remembered."""
    return _present.flags


def program() -> str:
    """The program, as a user can call it."""
    return _present.program


def begin(name: str) -> None:
    """Forgets the command before this one."""
    global _present
    _present = Invocation(name=name, make=bool(os.environ.get(MAKE)), program=_program())


def remember(**values: Any) -> None:
    """Records attributes of `Invocation`, such as the recipe that the user gave."""
    global _present
    _present = replace(_present, **values)


def _program() -> str:
    called = Path(sys.argv[0])
    if called.name != "tutelage" or shutil.which("tutelage") == str(called.absolute()):
        return "tutelage"
    return os.path.relpath(called) if called.is_relative_to(Path.cwd()) else str(called)


def command(name: str, *arguments: str) -> str:
    """A command of the present recipe, in the form in which the user called this one."""
    return _present.command(name, *arguments)


def again(*flags: str) -> str:
    """The present command with further flags."""
    return _present.again(*flags)


def stage_again(*flags: str) -> str:
    """The command that runs only the stage that is running now, with these flags."""
    return _present.command("run", *([_present.running] if _present.running else []), *flags)
