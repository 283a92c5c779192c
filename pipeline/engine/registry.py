"""What the engine knows of a stage, and which stages there are.

The stages stand above the engine and register themselves (`stages.registry`); the engine never names one. A
recipe's plan is made of steps: one per stage, or with `rounds` > 1 one per stage and round
(`pipeline.engine.rounds`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pipeline.config.recipe import Recipe
from pipeline.config.section import content
from pipeline.engine.rounds import REPEATED, parse, step_name
from pipeline.engine.stage import StageFunction


def _always(recipe: Recipe) -> bool:
    return True


@dataclass(frozen=True)
class StageSpec:
    """What the runner knows of a stage, or of its step in a later round.

    Attributes:
        name: the step's; the stage's own in `STAGES`.
        version: raised when the same config and inputs should give another result; makes finished runs stale.
        target: "module:function", imported only when the stage runs: planning needs no torch.
        needs: steps whose artifacts it gets, less those that are not planned for the recipe.
        later: the same in round r > 1, from the recipe and r; r is the last round for a stage that runs once.
            None: as `needs`.
        planned: whether the recipe has this stage at all.
        exists: for a stage that not every recipe has: the dotted path that decides it, and when there is one.
        paths: dotted recipe paths that may name local files or folders -> whether a value does. Their
            content enters the key.
        parallel: whether several processes can share the work. What it makes does not depend on their number
            beyond rounding; the first of them writes it.
        resolve: the stage's config from the recipe and its section; None: the section as it is.
    """

    name: str
    version: int
    target: str
    needs: tuple[str, ...] = ()
    later: Callable[[Recipe, int], tuple[str, ...]] | None = None
    planned: Callable[[Recipe], bool] = _always
    exists: tuple[str, str] = ("", "")
    paths: Mapping[str, Callable[[str], bool]] | None = None
    parallel: bool = False
    resolve: Callable[[Recipe, Any], Any] | None = None

    @property
    def section(self) -> str:
        """The stage's name, which is that of its section of the recipe."""
        return parse(self.name)[0]

    @property
    def round(self) -> int:
        return parse(self.name)[1]

    def config(self, recipe: Recipe) -> Any:
        """Its section of the recipe, with what it takes over from others filled in."""
        section = getattr(recipe, self.section)
        return section if self.resolve is None else self.resolve(recipe, section)

    def keyed(self, recipe: Recipe) -> Any:
        """What of its config decides its result: the runtime fields do not, nor, in the first round, those that
        only later rounds read."""
        return content(self.config(recipe), later=self.round > 1)

    def seed(self, recipe: Recipe) -> int:
        """The recipe's in the first round; each later one draws other numbers."""
        return recipe.seed + 1_000_003 * (self.round - 1)

    def in_round(self, recipe: Recipe, number: int) -> StageSpec:
        """Its step of a round; or itself after that many rounds, when it runs once."""
        name = step_name(self.name, number) if self.name in REPEATED else self.name
        needs = self.needs if number == 1 or self.later is None else self.later(recipe, number)
        return replace(self, name=name, needs=needs)

    def load(self) -> StageFunction:
        module, function = self.target.split(":")
        return cast(StageFunction, getattr(importlib.import_module(module), function))

    def files(self, recipe: Recipe) -> dict[str, Path]:
        """The local files and folders that the recipe names for this stage, by dotted path."""
        found = {}
        for dotted, is_path in (self.paths or {}).items():
            value: Any = recipe
            for name in dotted.split("."):
                value = getattr(value, name, None)
            if value is not None and is_path(value):
                found[dotted] = Path(value)
        return found


STAGES: dict[str, StageSpec] = {}
"""Stage name -> spec, in the order in which they run (in one round)."""


def register(specs: Iterable[StageSpec]) -> None:
    """Adds stages after those that are there."""
    STAGES.update({spec.name: spec for spec in specs})


def steps(recipe: Recipe) -> dict[str, StageSpec]:
    """The recipe's steps by name, in order: the repeated stages come once a round, where the first one is."""
    specs = [spec for spec in STAGES.values() if spec.planned(recipe)]
    repeated = [spec for spec in specs if spec.name in REPEATED]
    ordered: list[StageSpec] = []
    for spec in specs:
        if spec.name not in REPEATED:
            ordered.append(spec.in_round(recipe, recipe.rounds))
        elif spec is repeated[0]:
            ordered += [again.in_round(recipe, r) for r in range(1, recipe.rounds + 1) for again in repeated]
    return {spec.name: spec for spec in ordered}


def is_step(name: str) -> bool:
    """Whether a stage has this name in some round, whatever the recipe."""
    return parse(name)[0] in STAGES


def planned(recipe: Recipe, until: str | None = None) -> list[tuple[StageSpec, tuple[str, ...]]]:
    """The recipe's steps in order, each with its needs; with `until`, that one and what leads to it."""
    specs = steps(recipe)
    needs = {name: tuple(need for need in spec.needs if need in specs) for name, spec in specs.items()}
    if until is None:
        wanted = set(specs)
    else:
        wanted, open_ = set(), [until]
        while open_:
            name = open_.pop()
            wanted.add(name)
            open_ += needs[name]
    return [(spec, needs[name]) for name, spec in specs.items() if name in wanted]
