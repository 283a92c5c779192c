"""Floating-point operations that a PPO update and the other stages need at least.

A multiplication and an addition are two operations. The count assumes the cheapest known order of computation: the
policy's log-probs are a by-product of sampling, logits are computed only where a token is predicted, frozen weights
need no gradient, and nothing is recomputed. Elementwise operations are left out. docs/performance.md derives the
formulas. Kaplan et al. 2020 (arXiv:2001.08361), section 2.1, count the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.base import PRETRAIN_TRAINER
from pipeline.config.data import TaskConfig
from pipeline.config.recipe import Recipe
from pipeline.config.reward import REWARD_TRAINER
from pipeline.config.sft import SFT_TRAINER
from pipeline.memory import phases
from pipeline.memory.architecture import Architecture

PHASES = ("rollout", "score", "passes", "train")
"""The phases of an update that PPO's trainer times."""


@dataclass(frozen=True)
class ModelCost:
    """The numbers of a language model that decide how many operations it needs.

    Attributes:
        trunk: weights of the linear layers that every token passes through.
        head: weights of the language-model head.
        mixing: layers times the width of all query heads. A query that attends to one key costs 4 operations for
            each (a multiply-add for the score, and one for the weighted sum).
        cached: numbers per token in the cache.
    """

    trunk: int
    head: int
    mixing: int
    cached: int

    @classmethod
    def of(cls, architecture: Architecture) -> ModelCost:
        return cls(
            trunk=architecture.linear,
            head=architecture.embedding,
            mixing=architecture.num_hidden_layers * architecture.queries,
            cached=2 * architecture.num_hidden_layers * architecture.keys,
        )

    def forward(self, lengths: Iterable[tuple[int, int]], predicted: bool = True) -> float:
        """Operations of one forward pass over rows of (prompt, response) tokens. The last token of a response is
        not counted, because nothing is predicted from it. With `predicted`, the response's logits are counted."""
        total = 0.0
        for prompt, response in lengths:
            tokens = prompt + response - 1
            total += 2 * self.trunk * tokens + 4 * self.mixing * tokens * (tokens + 1) / 2
            total += 2 * self.head * response if predicted else 0
        return total


def update_flops(
    model: ModelCost,
    lengths: list[tuple[int, int]],
    *,
    epochs: int,
    adapter_value: bool,
    full: bool,
    rewards: int = 1,
) -> dict[str, float]:
    """Operations of one update, by phase.

    Args:
        lengths: prompt and response tokens of every episode.
        adapter_value: whether the value model is separate; otherwise it shares the policy's forward pass.
        full: whether all weights are trained, which needs their gradients. With LoRA the adapters' gradients, a few
            thousandths of that, are left out.
        rewards: reward models of the policy's size that score each episode.
    """
    policy, bare = model.forward(lengths), model.forward(lengths, predicted=False)
    learning = 3 if full else 2
    return {
        "rollout": policy,
        "score": rewards * bare,
        "passes": policy + (bare if adapter_value else 0),
        "train": epochs * learning * (policy + (bare if adapter_value else 0)),
    }


def stage_flops(recipe: Recipe, architecture: Architecture, counts: Mapping[str, Any]) -> dict[str, float]:
    """An upper bound of the operations of each stage whose rows can be counted: every row is as long as the recipe
    allows.

    Args:
        counts: the metrics of the finished `data` stage. For missing ones the size of the built-in task and the
            `limit` of tables are used.
    """
    model, flops = ModelCost.of(architecture), {}
    learning = 2 if recipe.policy_lora else 3

    def row(prompt: int, response: int, predicted: bool = True) -> float:
        return model.forward([(prompt, response)], predicted)

    pretrain = recipe.base.pretrain
    if pretrain is not None:
        rows = _trained(PRETRAIN_TRAINER | pretrain.trainer, _size(pretrain.corpus))
        if rows is not None:
            flops["base"] = 3 * rows * row(0, pretrain.max_position_embeddings)
    demonstrations = counts.get("demonstrations_train", _size(recipe.data.demonstrations))
    if recipe.sft is not None:
        rows = _trained(SFT_TRAINER | recipe.sft.trainer, demonstrations)
        if rows is not None:
            flops["sft"] = learning * rows * row(0, recipe.sft.max_length)
    prompts = counts.get("prompts_train", demonstrations)
    collect, ranks = recipe.collect, recipe.rank.source != "data"
    answered = collect.num_prompts if collect.num_prompts is not None else prompts
    if ranks and answered is not None:
        answers = (answered + (collect.eval_prompts or 0)) * collect.num_completions
        flops["collect"] = answers * row(collect.max_prompt_length, collect.response_length)
    ranked = answered if ranks else counts.get("rankings_train", _rankings(recipe))
    groups = _trained(REWARD_TRAINER | recipe.reward.trainer, ranked)
    if groups is not None and recipe.reward.model is None:
        rows, length = phases.packed_rows(recipe, 1)
        flops["reward"] = recipe.reward.ensemble * learning * groups * rows * row(0, length, predicted=False)
    ppo = recipe.ppo
    update = update_flops(
        model,
        [(ppo.max_prompt_length, ppo.response_length)],
        epochs=ppo.num_ppo_epochs,
        adapter_value=ppo.critic == "adapter",
        full=recipe.policy_lora is None,
        rewards=recipe.reward.ensemble * max(1, len(recipe.data.criteria)),
    )
    solving = ppo.kl.num_prompts * ppo.kl.num_generations if ppo.kl.kind == "solved" else 0
    episodes = ppo.total_episodes // ppo.batch_size * ppo.batch_size
    flops["ppo"] = episodes * sum(update.values()) + solving * (update["rollout"] + update["score"])
    evaluated = recipe.eval.num_prompts if recipe.eval.num_prompts is not None else counts.get("prompts_eval")
    if evaluated is not None:  # three models answer; two compute log-probs of PPO's answers
        flops["eval"] = 5 * evaluated * row(recipe.eval.max_prompt_length, recipe.eval.response_length)
    return flops


def _size(source: Any) -> int | None:
    """Rows of a data source, if the recipe says."""
    if isinstance(source, TaskConfig):
        return source.size
    limit = getattr(source, "limit", None)
    return limit if isinstance(limit, int) else None


def _rankings(recipe: Recipe) -> int | None:
    """Rankings of all tables, if the recipe says."""
    sizes = [table.limit for table in recipe.data.ranking_tables.values()]
    return sum(size for size in sizes if size is not None) if sizes and None not in sizes else None


def _trained(trainer: Mapping[str, Any], rows: int | None) -> float | None:
    """Rows that a Trainer trains on, over all epochs."""
    steps = trainer.get("max_steps", -1)
    if isinstance(steps, int) and steps > 0:
        return float(steps * trainer["per_device_train_batch_size"])
    return None if rows is None else float(rows * trainer["num_train_epochs"])
