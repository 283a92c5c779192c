"""The stages, in order: what each is called, what it needs, and where its code is.

A recipe's plan is made of steps: a stage each, or with `rounds` > 1 a stage and a round (`pipeline.rounds`).
Targets are names, imported only when a stage runs, so that planning needs no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pipeline.config.recipe import Recipe
from pipeline.config.rules import is_hub_id, is_local, look_judge
from pipeline.config.section import content
from pipeline.rounds import REPEATED, parse, step_name
from pipeline.stage import StageFunction


def _always(recipe: Recipe) -> bool:
    return True


def _ranks_itself(recipe: Recipe) -> bool:
    return recipe.rank.source != "data"


def _has_dpo(recipe: Recipe) -> bool:
    return recipe.dpo is not None and recipe.dpo.enabled


@dataclass(frozen=True)
class StageSpec:
    """What the runner knows of a stage, or of its step in a later round.

    Attributes:
        name: the step's; the stage's own in `STAGES`.
        version: raised when the same config and inputs should give another result; makes finished runs stale.
        target: "module:function".
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


def _is_file(judge: str) -> bool:
    return judge not in ("none", "venues", "e2e")


def _collect_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    """The newest policy, what was ranked before it and, to choose by disagreement, the newest reward model."""
    before = tuple(step_name("rank", earlier) for earlier in range(1, number))
    judges = (step_name("reward", number - 1),) if recipe.collect.select == "disagreement" else ()
    return ("base", "data", step_name("ppo", number - 1), *before, *judges)


def _rank_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    return ("data", step_name("collect", number))


def _reward_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    """The rankings of all rounds so far."""
    return ("base", "data", "sft", *(step_name("rank", r) for r in range(1, number + 1)))


def _ppo_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    """SFT is the reference in every round; the policy starts as the round before left it."""
    return ("base", "data", "sft", step_name("reward", number), step_name("ppo", number - 1))


def _eval_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    policies = tuple(step_name("ppo", r) for r in range(1, number + 1))
    return ("base", "data", "sft", step_name("reward", number), *policies, "dpo")


def _export_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    return ("base", "data", step_name("reward", number), step_name("ppo", number), "eval")


STAGES = {
    spec.name: spec
    for spec in (
        StageSpec(
            "base",
            version=2,
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
            version=2,
            target="stages.collect:run",
            needs=("base", "data", "sft"),
            later=_collect_later,
            planned=_ranks_itself,
            exists=("rank.source", "with rank.source=app or simulated only"),
        ),
        StageSpec("rank", version=2, target="stages.rank:run", needs=("data", "collect"), later=_rank_later),
        StageSpec(
            "reward",
            version=2,
            target="stages.reward.stage:run",
            needs=("base", "data", "sft", "rank"),
            later=_reward_later,
            paths={
                "reward.model": lambda model: not is_hub_id(model),
                "reward.pretrain_on.path": is_local,
            },
            parallel=True,
        ),
        StageSpec(
            "ppo",
            version=5,
            target="stages.ppo.stage:run",
            needs=("base", "data", "sft", "reward"),
            later=_ppo_later,
            paths={
                "ppo.reward_model": lambda _: True,
                "ppo.guards.judge": lambda judge: judge not in ("eval", "member", "reward") and _is_file(judge),
                "eval.judge": _is_file,
            },
            parallel=True,
            resolve=lambda recipe, ppo: replace(ppo, guards=replace(ppo.guards, judge=look_judge(recipe))),
        ),
        StageSpec(
            "dpo",
            version=1,
            target="stages.dpo:run",
            needs=("base", "data", "sft", "rank"),
            later=_reward_later,
            planned=_has_dpo,
            exists=("dpo.enabled", "with a `dpo` section, or with dpo.enabled=true"),
            parallel=True,
        ),
        StageSpec(
            "eval",
            version=6,
            target="stages.eval.stage:run",
            needs=("base", "data", "sft", "reward", "ppo", "dpo"),
            later=_eval_later,
            paths={
                "eval.judge": _is_file,
                "eval.reward_model": lambda model: model != "ensemble",
                "eval.text.path": is_local,
            },
        ),
        StageSpec(
            "export",
            version=3,
            target="stages.export.stage:run",
            needs=("base", "data", "reward", "ppo", "eval"),
            later=_export_later,
        ),
    )
}
"""Stage name -> spec, in the order in which they run (in one round)."""


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
