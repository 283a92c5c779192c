"""The stages, in order: what each is called, what it needs, and where its code is.

Targets are names, imported only when a stage runs, so that planning needs no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipeline.config.recipe import Recipe
from pipeline.config.rules import is_hub_id, is_local
from pipeline.stage import StageFunction


def _always(recipe: Recipe) -> bool:
    return True


def _ranks_itself(recipe: Recipe) -> bool:
    return recipe.rank.source != "data"


@dataclass(frozen=True)
class StageSpec:
    """What the runner knows of a stage. The stage's section of the recipe has the stage's name.

    Attributes:
        version: raised when the same config and inputs should give another result; makes finished runs stale.
        target: "module:function".
        needs: stages whose artifacts it gets, less those that are not planned for the recipe.
        planned: whether the recipe has this stage at all.
        paths: dotted recipe paths that may name local files or folders -> whether a value does. Their
            content enters the key.
        parallel: whether several processes can share the work. What it makes does not depend on their number
            beyond rounding; the first of them writes it.
    """

    name: str
    version: int
    target: str
    needs: tuple[str, ...] = ()
    planned: Callable[[Recipe], bool] = _always
    paths: Mapping[str, Callable[[str], bool]] | None = None
    parallel: bool = False

    def config(self, recipe: Recipe) -> Any:
        return getattr(recipe, self.name)

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


STAGES = {
    spec.name: spec
    for spec in (
        StageSpec(
            "base",
            version=1,
            target="stages.base:run",
            paths={
                "base.model": lambda model: not is_hub_id(model),
                "base.pretrain.corpus.path": is_local,
                "base.chat_template": lambda template: template.endswith(".jinja"),
            },
        ),
        StageSpec(
            "data",
            version=2,
            target="stages.data:run",
            paths={
                "data.demonstrations.path": is_local,
                "data.prompts.path": is_local,
                "data.rankings.path": is_local,
            },
        ),
        StageSpec("sft", version=1, target="stages.sft:run", needs=("base", "data"), parallel=True),
        StageSpec(
            "collect",
            version=1,
            target="stages.collect:run",
            needs=("base", "data", "sft"),
            planned=_ranks_itself,
        ),
        StageSpec("rank", version=2, target="stages.rank:run", needs=("data", "collect")),
        StageSpec(
            "reward",
            version=2,
            target="stages.reward.stage:run",
            needs=("base", "data", "sft", "rank"),
            paths={
                "reward.model": lambda model: not is_hub_id(model),
                "reward.pretrain_on.path": is_local,
            },
            parallel=True,
        ),
        StageSpec(
            "ppo",
            version=1,
            target="stages.ppo.stage:run",
            needs=("base", "data", "sft", "reward"),
            paths={"ppo.reward_model": lambda _: True},
            parallel=True,
        ),
        StageSpec(
            "eval",
            version=2,
            target="stages.evaluate:run",
            needs=("base", "data", "sft", "reward", "ppo"),
            paths={"eval.judge": lambda judge: judge not in ("none", "venues", "e2e")},
        ),
        StageSpec("export", version=1, target="stages.export:run", needs=("base", "sft", "ppo")),
    )
}
"""Stage name -> spec, in the order in which they run."""


def planned(recipe: Recipe, until: str | None = None) -> list[tuple[StageSpec, tuple[str, ...]]]:
    """The recipe's stages in order, each with its needs; with `until`, that one and what leads to it."""
    specs = {name: spec for name, spec in STAGES.items() if spec.planned(recipe)}
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
