"""What a run is foreseen to need: refused before it starts when it cannot fit, noted beside what it took."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.config.load import LoadedRecipe
from pipeline.config.recipe import Recipe
from pipeline.errors import RecipeError, StageError
from pipeline.files import readable_bytes
from pipeline.memory.advice import propose
from pipeline.memory.flops import stage_flops
from pipeline.memory.plan import MemoryPlan, predict, resolve


@dataclass(frozen=True)
class Forecast:
    """Memory and operations of a recipe's stages.

    Attributes:
        loaded: the recipe as given.
        recipe: the same, with what is `auto` decided.
        plan: None when the model's shape is not known.
        flops: operations by stage, of those that can be counted.
        unknown: why there is no plan.
    """

    loaded: LoadedRecipe
    recipe: Recipe
    plan: MemoryPlan | None
    flops: dict[str, float]
    unknown: str = ""

    @classmethod
    def of(cls, loaded: LoadedRecipe, data: Any = None) -> Forecast:
        """Of a recipe; `data` is the `data` stage's finished run, whose counts it then takes."""
        try:
            plan = predict(loaded.recipe)
        except RecipeError as error:
            return cls(loaded, resolve(loaded.recipe, None), None, {}, error.what)
        recipe = resolve(loaded.recipe, plan)
        if recipe is not loaded.recipe:
            plan = predict(recipe, plan.model.shape)
        counts = data.manifest.metrics if data else {}
        return cls(loaded, recipe, plan, stage_flops(recipe, plan.model.shape, counts))

    @property
    def is_tight(self) -> bool:
        """Whether the recipe says what a CPU run may take: then room that is free goes back to the system."""
        return self.plan is not None and self.plan.model.device == "cpu" and self.plan.limit is not None

    def check(self, stages: Iterable[str], force: bool = False) -> None:
        """Raises `StageError` when one of these stages needs more than the device has, with what would fit; not
        when the user insists, nor with `sharding: full`, which the plan does not know."""
        large = [] if self.plan is None else self.plan.too_large(set(stages))
        if not large or force or self.recipe.sharding == "full":
            return
        assert self.plan is not None
        assert self.plan.limit is not None
        needs = ", ".join(f"{name} {readable_bytes(self.plan.stages[name].total)}" for name in large)
        steps = propose(self.recipe, self.plan)
        way = "\n".join(f"         {step}" for step in steps)
        if steps and steps[-1].fits:
            hint = f"set these, in order of what they cost, until it fits:\n{way}"
        elif steps:
            hint = f"take a smaller model; these help and do not suffice:\n{way}"
        else:
            hint = "take a smaller model"
        raise StageError(
            f"this run cannot fit: {needs}, and {self.plan.limit_from} is {readable_bytes(self.plan.limit)}",
            where=self.loaded.describe("hardware.memory") if self.plan.limit_from == "hardware.memory" else "",
            hint=f"{hint}\n         or insist with --force; `tutelage plan` shows what takes how much",
        )

    def record(self, stage: str) -> dict[str, Any]:
        """For the stage's manifest."""
        found = self.plan.record(stage) if self.plan and self.recipe.sharding == "none" else {}
        return found | ({"flops": self.flops[stage]} if stage in self.flops else {})
