"""What an update of PPO and the other stages must cost at least: floating-point operations.

A multiplication and an addition are two operations. Counted is what the mathematics asks for, in the leanest order
known: the policy's log-probs come with the sampling, logits exist where a token is predicted, weights that stand
still have no gradient, and nothing is recomputed. Elementwise work is left out.
docs/performance.md derives the formulas. Kaplan et al. 2020 (arXiv:2001.08361), section 2.1, count the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.data import TaskConfig
from pipeline.config.recipe import Recipe
from pipeline.memory import phases
from pipeline.memory.shapes import Architecture

PHASES = ("rollout", "score", "passes", "train")
"""As they are timed by PPO's trainer."""


@dataclass(frozen=True)
class Shape:
    """Of a language model, as far as cost goes.

    Attributes:
        trunk: weights of the linear layers that every token passes.
        head: weights of the language-model head.
        mixing: layers times the width of all query heads: one query meeting one key costs 4 operations for each
            (a product for the score, a product for the sum).
        cached: numbers that a token leaves in the cache.
    """

    trunk: int
    head: int
    mixing: int
    cached: int

    @classmethod
    def of(cls, made: Architecture) -> Shape:
        return cls(
            trunk=made.linear,
            head=made.embedding,
            mixing=made.num_hidden_layers * made.queries,
            cached=2 * made.num_hidden_layers * made.keys,
        )

    def forward(self, lengths: Iterable[tuple[int, int]], predicted: bool = True) -> float:
        """Operations of one forward pass over rows of (prompt, response) tokens. The last token of a response
        predicts nothing, and need not pass; with `predicted` the response's logits are made."""
        total = 0.0
        for prompt, response in lengths:
            tokens = prompt + response - 1
            total += 2 * self.trunk * tokens + 4 * self.mixing * tokens * (tokens + 1) / 2
            total += 2 * self.head * response if predicted else 0
        return total


def update_flops(
    shape: Shape,
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
        adapter_value: the value role passes on its own (else it reads the policy's trunk).
        full: weights learn too, which costs a backward pass its second half; with LoRA the adapters' share, a
            few thousandths, is left out.
        rewards: reward models of the policy's shape that score each episode.
    """
    policy, bare = shape.forward(lengths), shape.forward(lengths, predicted=False)
    learning = 3 if full else 2
    return {
        "rollout": policy,
        "score": rewards * bare,
        "passes": policy + (bare if adapter_value else 0),
        "train": epochs * learning * (policy + (bare if adapter_value else 0)),
    }


def stage_flops(recipe: Recipe, made: Architecture, counts: Mapping[str, Any]) -> dict[str, float]:
    """Operations of each stage whose rows can be counted, at most: every row as long as the recipe allows.

    Args:
        counts: the metrics of the finished `data` stage, as far as it is; without them the built-in task's size and
            limits of tables are taken.
    """
    shape, found = Shape.of(made), {}
    learning = 2 if recipe.sft.lora else 3

    def row(prompt: int, response: int, predicted: bool = True) -> float:
        return shape.forward([(prompt, response)], predicted)

    pretrain = recipe.base.pretrain
    if pretrain is not None:
        rows = _trained(pretrain.trainer, _size(pretrain.corpus), 32)
        if rows is not None:
            found["base"] = 3 * rows * row(0, pretrain.max_position_embeddings)
    demonstrations = counts.get("demonstrations_train", _size(recipe.data.demonstrations))
    rows = _trained(recipe.sft.trainer, demonstrations, 8)
    if rows is not None:
        found["sft"] = learning * rows * row(0, recipe.sft.max_length)
    prompts = counts.get("prompts_train", demonstrations)
    collect, ranks = recipe.collect, recipe.rank.source != "data"
    asked = collect.num_prompts if collect.num_prompts is not None else prompts
    if ranks and asked is not None:
        answers = (asked + (collect.eval_prompts or 0)) * collect.num_completions
        found["collect"] = answers * row(collect.max_prompt_length, collect.response_length)
    ranked = asked if ranks else counts.get("rankings_train", _size(recipe.data.rankings))
    groups = _trained(recipe.reward.trainer, ranked, 16)
    if groups is not None and recipe.reward.model is None:
        rows, length = phases.packed_rows(recipe, 1)
        found["reward"] = recipe.reward.ensemble * learning * groups * rows * row(0, length, predicted=False)
    ppo = recipe.ppo
    update = update_flops(
        shape,
        [(ppo.max_prompt_length, ppo.response_length)],
        epochs=ppo.num_ppo_epochs,
        adapter_value=ppo.critic == "adapter",
        full=recipe.sft.lora is None,
        rewards=recipe.reward.ensemble,
    )
    found["ppo"] = ppo.total_episodes // ppo.batch_size * ppo.batch_size * sum(update.values())
    evaluated = recipe.eval.num_prompts if recipe.eval.num_prompts is not None else counts.get("prompts_eval")
    if evaluated is not None:  # base, SFT and PPO answer; two of them are asked about PPO's answers
        found["eval"] = 5 * evaluated * row(recipe.eval.max_prompt_length, recipe.eval.response_length)
    return found


def _size(source: Any) -> int | None:
    """Rows of a data source, as far as the recipe says."""
    if isinstance(source, TaskConfig):
        return source.size
    limit = getattr(source, "limit", None)
    return limit if isinstance(limit, int) else None


def _trained(trainer: Mapping[str, Any], rows: int | None, batch: int) -> float | None:
    """Rows that a Trainer passes, over all epochs."""
    steps = trainer.get("max_steps", -1)
    if isinstance(steps, int) and steps > 0:
        return float(steps * trainer.get("per_device_train_batch_size", batch))
    return None if rows is None else float(rows * trainer.get("num_train_epochs", 1))
