"""What the engine knows about a stage, and the list of stages.

The stages register themselves (`stages.registry`); the engine names none of them. A recipe's plan consists of
steps: one per stage or, for stages that repeat, one per stage and round (`pipeline.engine.rounds`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pipeline.config.recipe import Recipe
from pipeline.config.section import content
from pipeline.config.table_files import by_name
from pipeline.engine.rounds import parse, step_name
from pipeline.engine.stage import Artifact, StageFunction


def _always(recipe: Recipe) -> bool:
    return True


def _never(recipe: Recipe) -> bool:
    return False


@dataclass(frozen=True)
class StageSpec:
    """What the runner knows about a stage, or about its step in a later round.

    Attributes:
        name: of the step; in `STAGES`, of the stage.
        version: raised when the same config and inputs give another result than before. Finished runs become stale.
        target: "module:function", imported only when the stage runs, because planning must not import torch.
        summary: one line of the report on what a run made, as a format string of its metrics, of `size` (its metric
            `bytes`, readable) and of `who` (the annotators).
        needs: steps whose artifacts it gets. Those that the recipe does not have are left out.
        also: further needs, which depend on the recipe. They may be registered after this stage, and run before it.
        reads: stage -> patterns of the files of its artifact that decide this stage's result (`stage.matches`); all
            files of a stage that is not named. Other files may change without this stage running again.
        checks: as `reads`: further files that it reads only to refuse early what a later stage would refuse. They
            must not change its result, and do not enter its key.
        later: as `needs`, for round r > 1, from the recipe and r. For a stage that runs once, r is the last round.
            None: as `needs`.
        repeats: whether every round runs it.
        planned: whether the recipe has this stage.
        exists: for a stage that not every recipe has: the dotted path that decides, and when the stage exists.
        paths: dotted recipe paths that may name local files or folders -> whether a value does. The content of
            these files enters the key.
        also_reads: further local files and folders, by dotted path, where `paths` cannot name them.
        parallel: whether several processes can share the work. Their number does not change the result beyond
            rounding; the first of them writes it.
        private: whether the result also depends on the recipe's folder, such as on people's rankings there. Another
            recipe's run of the same key is then not used (`pipeline.engine.reuse`).
        resolve: the stage's config from the recipe and its section; None: the section as it is.
    """

    name: str
    version: int
    target: str
    summary: str = ""
    needs: tuple[str, ...] = ()
    also: Callable[[Recipe], tuple[str, ...]] | None = None
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    checks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    later: Callable[[Recipe, int], tuple[str, ...]] | None = None
    repeats: bool = False
    planned: Callable[[Recipe], bool] = _always
    exists: tuple[str, str] = ("", "")
    paths: Mapping[str, Callable[[str], bool]] | None = None
    also_reads: Callable[[Recipe], Mapping[str, Path]] | None = None
    parallel: bool = False
    private: Callable[[Recipe], bool] = _never
    resolve: Callable[[Recipe, Any], Any] | None = None

    @property
    def section(self) -> str:
        """The stage's name, which is also the name of its section of the recipe."""
        return parse(self.name)[0]

    @property
    def round(self) -> int:
        return parse(self.name)[1]

    def config(self, recipe: Recipe) -> Any:
        """Its section of the recipe, with values from other sections filled in by `resolve`."""
        section = getattr(recipe, self.section)
        return section if self.resolve is None else self.resolve(recipe, section)

    def keyed(self, recipe: Recipe) -> Any:
        """The part of its config that decides its result: without runtime fields and, in the first round, without
        the fields that only later rounds read."""
        return content(self.config(recipe), later=self.round > 1)

    def seed(self, recipe: Recipe) -> int:
        """The seed of its section, or else the recipe's; another one in each later round."""
        own: int | None = getattr(self.config(recipe), "seed", None)
        return (recipe.seed if own is None else own) + 1_000_003 * (self.round - 1)

    def in_round(self, recipe: Recipe, number: int) -> StageSpec:
        """Its step of a round. For a stage that runs once: the stage after that many rounds."""
        name = step_name(self.name, number) if self.repeats else self.name
        needs = self.needs if number == 1 or self.later is None else self.later(recipe, number)
        if self.also is not None:
            needs += self.also(recipe)
        return replace(self, name=name, needs=needs)

    def reads_of(self, need: str) -> tuple[str, ...] | None:
        """Patterns of the files of an input that decide the result; None: all of them."""
        return self.reads.get(parse(need)[0])

    def view(self, need: str, artifact: Artifact, fingerprint: str) -> Artifact:
        """An input as the stage gets it: with the files that it may read.

        Args:
            fingerprint: of the files that decide its result.
        """
        reads = self.reads_of(need)
        if reads is None:
            return artifact
        declared = (*reads, *self.checks.get(parse(need)[0], ()))
        return replace(artifact, declared=declared, fingerprint=fingerprint)

    def load(self) -> StageFunction:
        module, function = self.target.split(":")
        return cast(StageFunction, getattr(importlib.import_module(module), function))

    def files(self, recipe: Recipe) -> dict[str, Path]:
        """The local files and folders that the recipe names for this stage, by dotted path."""
        named: dict[str, Path] = {}
        for dotted, is_path in (self.paths or {}).items():
            value: Any = recipe
            for name in dotted.split("."):
                value = getattr(value, name, None)
            if value is not None:
                sources = by_name(dotted, value)
                named |= {at: Path(source) for at, source in sources.items() if is_path(source)}
        return named | dict(self.also_reads(recipe) if self.also_reads else {})


STAGES: dict[str, StageSpec] = {}
"""Stage name -> spec, in the order in which the stages run."""


def register(specs: Iterable[StageSpec]) -> None:
    """Adds stages to the end of the list."""
    STAGES.update({spec.name: spec for spec in specs})


def steps(recipe: Recipe) -> dict[str, StageSpec]:
    """The recipe's steps by name, in order. All rounds of the repeated stages come where the first of these stages
    is."""
    specs = [spec for spec in STAGES.values() if spec.planned(recipe)]
    repeated = [spec for spec in specs if spec.repeats]
    ordered: list[StageSpec] = []
    for spec in specs:
        if not spec.repeats:
            ordered.append(spec.in_round(recipe, recipe.rounds))
        elif spec is repeated[0]:
            ordered += [again.in_round(recipe, r) for r in range(1, recipe.rounds + 1) for again in repeated]
    return _after_needs({spec.name: spec for spec in ordered})


def _after_needs(specs: Mapping[str, StageSpec]) -> dict[str, StageSpec]:
    """Steps in the same order, except that each comes after those that it needs."""
    placed: dict[str, StageSpec] = {}

    def place(spec: StageSpec) -> None:
        for need in spec.needs:
            if need in specs and need not in placed:
                place(specs[need])
        placed.setdefault(spec.name, spec)

    for spec in specs.values():
        place(spec)
    return placed


def is_step(name: str) -> bool:
    """Whether this is the name of a stage's step in some round, under any recipe."""
    stage, number = parse(name)
    return stage in STAGES and (number == 1 or STAGES[stage].repeats)


def planned(recipe: Recipe, until: str | None = None) -> list[tuple[StageSpec, tuple[str, ...]]]:
    """The recipe's steps in order, each with its needs; with `until`, only that step and the ones it depends on."""
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
