"""Proposes changes that make a run fit into memory, the cheapest first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config.recipe import Recipe
from pipeline.config.sft import LoRAConfig
from pipeline.config.trainer import EVAL_BATCH_SIZE
from pipeline.files import readable_bytes
from pipeline.memory.phases import checkpointed
from pipeline.memory.plan import MemoryPlan, predict

Values = dict[str, Any]
"""Dotted recipe path -> value."""


@dataclass(frozen=True)
class Proposal:
    """A change, on top of those proposed before it.

    Attributes:
        values: the values to set.
        cost: the drawback, in a few words.
        peak: predicted bytes of the largest stage after the change.
        fits: whether every stage then fits.
    """

    values: Values
    cost: str
    peak: float
    fits: bool

    @property
    def sets(self) -> str:
        """The values as `--set` takes them."""
        return " ".join(f"{path}={_shown(value)}" for path, value in self.values.items())

    def __str__(self) -> str:
        return f"{self.sets}  ({self.cost}): {readable_bytes(self.peak)}{', fits' if self.fits else ''}"


def propose(recipe: Recipe, plan: MemoryPlan) -> list[Proposal]:
    """Changes to make one after another until every stage fits. If no proposal `fits`, nothing more can be
    changed."""
    proposals: list[Proposal] = []
    for change, cost in CHANGES:
        if not plan.too_large():
            break
        values = change(recipe, plan)
        if not values:
            continue
        trial = with_values(recipe, values)
        after = _replan(trial, plan)
        if _excess(after) >= _excess(plan):
            continue
        recipe, plan = trial, after
        peak = max(stage.total for stage in plan.stages.values())
        proposals.append(Proposal(values, cost, peak, not plan.too_large()))
    return proposals


def with_values(recipe: Any, values: Mapping[str, Any]) -> Any:
    """A recipe with other values at dotted paths."""
    for path, value in values.items():
        recipe = _with(recipe, path.split("."), value)
    return recipe


def _with(section: Any, path: list[str], value: Any) -> Any:
    name, rest = path[0], path[1:]
    if isinstance(section, dict):
        return {**section, name: _with(section.get(name, {}), rest, value) if rest else value}
    return replace(section, **{name: _with(getattr(section, name), rest, value) if rest else value})


def _shown(value: Any) -> str:
    if isinstance(value, LoRAConfig):
        return "{}"  # a section with its defaults
    return value if isinstance(value, str) else json.dumps(value)


def _replan(recipe: Recipe, plan: MemoryPlan) -> MemoryPlan:
    device, architecture = plan.model.device, plan.model.architecture
    return predict(recipe, architecture, device=device, limit=plan.limit, processes=plan.processes)


def _excess(plan: MemoryPlan) -> float:
    assert plan.limit is not None
    return sum(max(0.0, peak.total - plan.limit) for peak in plan.stages.values())


# --- The changes ------------------------------------------------------------------------------------------------


def _smaller_parts(recipe: Recipe, plan: MemoryPlan) -> Values:
    """Fewer rows per pass, stage by stage: as many as fit."""
    wanted: Values = {}
    for stage in plan.too_large():
        wanted |= _parts(recipe, stage, plan)
    return wanted


def _parts(recipe: Recipe, stage: str, plan: MemoryPlan) -> Values:
    def needs(values: Values) -> float:
        trial = with_values(recipe, values)
        again = _replan(trial, plan)
        return again.stages[stage].total

    assert plan.limit is not None
    sizes = _sizes(recipe, plan).get(stage, {})
    best: Values = {}
    least = needs(best)
    while least > plan.limit:
        # Reduce the value that helps most now: after each reduction another phase may have the highest peak.
        smaller = [best | {path: _next_smaller(recipe, path, size)} for path, size in sizes.items() if size > 1]
        needed = [needs(values) for values in smaller]
        if not needed or min(needed) >= least:
            break
        least = min(needed)
        best = smaller[needed.index(least)]
        sizes |= {path: size for path, size in best.items() if path in sizes}
    return best


def _next_smaller(recipe: Recipe, path: str, size: int) -> int:
    """The next size that the recipe's rules allow: PPO's micro-batches divide the minibatch."""
    if path != "ppo.micro_batch_size":
        return size // 2
    minibatch = recipe.ppo.batch_size // recipe.ppo.num_mini_batches
    return max(part for part in range(1, size) if minibatch % part == 0)


def _sizes(recipe: Recipe, plan: MemoryPlan) -> dict[str, dict[str, int]]:
    """By stage, the recipe values that decide how many rows are in memory at once."""
    rollout = recipe.ppo.rollout_batch_size
    sizes = {
        "collect": {"collect.batch_size": recipe.collect.batch_size},
        "reward": {
            "reward.micro_batch_size": plan.micro["reward"],
            "reward.eval_batch_size": recipe.reward.eval_batch_size,
        },
        "ppo": {
            "ppo.micro_batch_size": plan.micro["ppo"],
            "ppo.rollout_batch_size": rollout if isinstance(rollout, int) else recipe.ppo.batch_size,
        },
        "eval": {"eval.batch_size": recipe.eval.batch_size},
        "export": {"export.batch_size": min(recipe.export.batch_size, recipe.export.num_prompts)},
    }
    if recipe.sft is not None:
        sizes["sft"] = {
            "sft.micro_batch_size": plan.micro["sft"],
            "sft.trainer.per_device_eval_batch_size": int(
                recipe.sft.trainer.get("per_device_eval_batch_size", EVAL_BATCH_SIZE)
            ),
        }
    if recipe.dpo is not None:
        sizes["dpo"] = {
            "dpo.micro_batch_size": plan.micro["dpo"],
            "dpo.precompute_ref_batch_size": recipe.dpo.precompute_ref_batch_size,
        }
    if recipe.raft is not None:
        sizes["raft"] = {
            "raft.micro_batch_size": plan.micro["raft"],
            "raft.batch_size": recipe.raft.batch_size,
        }
    if recipe.base.pretrain is not None:
        sizes["base"] = {"base.pretrain.trainer.per_device_train_batch_size": plan.micro["base"]}
    return sizes


def _checkpointing(recipe: Recipe, plan: MemoryPlan) -> Values:
    values: Values = {}
    for stage in plan.too_large():
        if stage == "ppo" and recipe.ppo.gradient_checkpointing is not True:
            values["ppo.gradient_checkpointing"] = True
        elif stage in ("sft", "reward", "dpo", "raft") and not checkpointed(getattr(recipe, stage).trainer):
            values[f"{stage}.trainer.gradient_checkpointing"] = True
    return values


def _saved(recipe: Recipe, plan: MemoryPlan) -> Values:
    wide = "export" in plan.too_large() and recipe.export.dtype == "float32"
    return {"export.dtype": "bfloat16"} if wide else {}


def _trunk(recipe: Recipe, plan: MemoryPlan) -> Values:
    return {"ppo.value": "trunk"} if recipe.ppo.critic == "adapter" and "ppo" in plan.too_large() else {}


def _adapters(recipe: Recipe, plan: MemoryPlan) -> Values:
    if recipe.policy_lora is not None or (recipe.base.pretrain is not None and plan.too_large() == ["base"]):
        return {}
    return {path: LoRAConfig() for path in (*recipe.policy_loras, "reward.lora")}


def _four_bits(recipe: Recipe, plan: MemoryPlan) -> Values:
    fits = recipe.base.quantization == "none" and recipe.policy_lora is not None and recipe.base.pretrain is None
    return {"base.quantization": "nf4"} if fits else {}


def _shorter(recipe: Recipe, plan: MemoryPlan) -> Values:
    """Half the length, in the stages that are too large."""
    values: Values = {}
    for stage in plan.too_large():
        if stage in ("sft", "reward", "dpo"):
            values[f"{stage}.max_length"] = max(1, getattr(recipe, stage).max_length // 2)
        elif stage in ("collect", "ppo", "raft", "eval"):
            values[f"{stage}.response_length"] = max(1, getattr(recipe, stage).response_length // 2)
    return values


CHANGES: tuple[tuple[Callable[[Recipe, MemoryPlan], Values], str], ...] = (
    (_smaller_parts, "same result, a little slower"),
    (_saved, "exports the model in 16 bits"),
    (_checkpointing, "same result, training takes a third longer"),
    (_trunk, "a value head instead of a value model: learns less per episode, in half the time"),
    (_adapters, "LoRA instead of a full fine-tune"),
    (_four_bits, "4-bit weights: slightly worse and slower"),
    (_shorter, "half the length: longer texts are left out or cut"),
)
"""The changes, the cheapest first."""
