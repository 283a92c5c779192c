"""Predicts what a run needs. A run that cannot fit is refused before it starts; manifests record the prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline import invocation
from pipeline.config.load import LoadedRecipe
from pipeline.config.recipe import Recipe
from pipeline.errors import RecipeError, StageError
from pipeline.files import readable_bytes
from pipeline.memory.advice import propose
from pipeline.memory.flops import stage_flops
from pipeline.memory.phases import vllm_needs
from pipeline.memory.plan import MemoryPlan, predict, resolve
from pipeline.network import NoNetwork


@dataclass(frozen=True)
class Forecast:
    """Predicted memory and operations of a recipe's stages.

    Attributes:
        loaded: the recipe as the user wrote it.
        recipe: the recipe with every `auto` decided.
        plan: None if the model's architecture is not known.
        flops: operations by stage, for the stages whose rows can be counted.
        unknown: why there is no plan.
        no_network: the error, if the model's config could not be fetched for lack of a network.
    """

    loaded: LoadedRecipe
    recipe: Recipe
    plan: MemoryPlan | None
    flops: dict[str, float]
    unknown: str = ""
    no_network: NoNetwork | None = None

    @classmethod
    def of(cls, loaded: LoadedRecipe, data: Any = None, processes: int = 1) -> Forecast:
        """Predicts for a recipe.

        Args:
            data: the finished run of the `data` stage (a `StageRun`), for its row counts; None: not finished.
            processes: how many processes share the run.
        """
        try:
            plan = predict(loaded.recipe, processes=processes)
        except (RecipeError, NoNetwork) as error:
            absent = error if isinstance(error, NoNetwork) else None
            return cls(loaded, resolve(loaded.recipe, None), None, {}, error.what, absent)
        recipe = resolve(loaded.recipe, plan)
        if recipe is not loaded.recipe:
            plan = predict(recipe, plan.model.architecture, processes=processes)
        counts = data.manifest.metrics if data else {}
        return cls(loaded, recipe, plan, stage_flops(recipe, plan.model.architecture, counts))

    @property
    def is_tight(self) -> bool:
        """Whether the recipe limits the memory of a CPU run. Freed memory is then returned to the system."""
        return self.plan is not None and self.plan.model.device == "cpu" and self.plan.limit is not None

    def check(self, stages: Iterable[str], force: bool = False) -> None:
        """Raises `StageError`, with changes that would fit, if one of these stages needs more memory than the
        device has. Does nothing with `force`. Raises `RecipeError` if vLLM cannot work with its share of it."""
        stages = set(stages)
        self._check_vllm(stages)
        large = [] if self.plan is None else self.plan.too_large(stages)
        if not large or force:
            return
        assert self.plan is not None
        assert self.plan.limit is not None
        needs = ", ".join(f"{name} {readable_bytes(self.plan.stages[name].total)}" for name in large)
        proposals = propose(self.recipe, self.plan)
        listed = "\n".join(f"         {proposal}" for proposal in proposals)
        if proposals and proposals[-1].fits:
            hint = f"set these values, in this order, until it fits:\n{listed}"
        elif proposals:
            hint = f"use a smaller model; these changes help but are not enough:\n{listed}"
        else:
            hint = "use a smaller model"
        raise StageError(
            f"this run does not fit into memory: {needs}; "
            f"the limit is {readable_bytes(self.plan.limit)} ({self.plan.limit_from})",
            where=self.loaded.describe("hardware.memory") if self.plan.limit_from == "hardware.memory" else "",
            hint=(
                f"{hint}\n         or run it anyway: `{invocation.again('--force')}`\n"
                f"         `{invocation.command('plan')}` shows the memory of each stage"
            ),
        )

    def _check_vllm(self, stages: set[str]) -> None:
        config = self.recipe.ppo
        if config.sampler != "vllm" or "ppo" not in stages or self.plan is None or self.plan.limit is None:
            return
        limit, needs = self.plan.limit, vllm_needs(self.recipe, self.plan.model)
        share = config.vllm_gpu_memory_utilization
        if needs > share * limit:
            enough = math.ceil(10 * needs / limit + 0.5) / 10
            raise self.loaded.refusal(
                [
                    (
                        "ppo.vllm_gpu_memory_utilization",
                        f"{share:g} of {readable_bytes(limit)} ({self.plan.limit_from}) is too little: vLLM needs "
                        f"{readable_bytes(needs)} for a copy of the base and the cache of one response. "
                        + (f"Set it to {enough:g}, or set" if enough < 1 else "Set")
                        + " ppo.sampler to builtin",
                    )
                ]
            )

    def record(self, stage: str) -> dict[str, Any]:
        """A stage's entry for its manifest."""
        memory = self.plan.record(stage) if self.plan else {}
        return memory | ({"flops": self.flops[stage]} if stage in self.flops else {})
