"""The stages, in order: the name of each, what it needs, and where its code is.

Importing this module registers them with the engine, and the formats of rankings with the recipes. It imports none
of them, and no torch.

To add a stage: a module with `run` (see `pipeline.engine.stage`), a config dataclass in pipeline/config/, its
section in pipeline/config/recipe.py, and its `StageSpec` here. If it holds the model, pipeline/memory/phases.py
plans its memory.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import formats, raft, term_rules
from pipeline.config.data import TableConfig, rankings_path
from pipeline.config.evaluate import JUDGES
from pipeline.config.recipe import Recipe
from pipeline.config.rules import is_hub_id, is_local, monitor_judge, reward_rubric
from pipeline.config.run_base import is_artifact, source_of
from pipeline.config.table_files import by_name, joined_files
from pipeline.engine.registry import StageSpec, register
from pipeline.engine.rounds import step_name

if TYPE_CHECKING:
    from data.tables.formats import Format


REWARD_MODEL = ("*", "!eval_rankings.json")
"""What stages read of the reward model: not its accuracy on `data.eval_rankings`."""


def _asks_people(recipe: Recipe) -> bool:
    return recipe.rank.source == "app"


def _ranks_itself(recipe: Recipe) -> bool:
    return recipe.rank.source != "data"


def _has_sft(recipe: Recipe) -> bool:
    return recipe.sft is not None


def _has_dpo(recipe: Recipe) -> bool:
    return recipe.dpo is not None and recipe.dpo.enabled


def _has_raft(recipe: Recipe) -> bool:
    return recipe.raft is not None and recipe.raft.enabled


def _is_file(judge: str) -> bool:
    return judge not in JUDGES


def _checks_corpus(recipe: Recipe) -> tuple[str, ...]:
    """Pretraining on a table needs the held-out prompts of `data`, unless it is a table of prompts with completions
    and no overlap with held-out prompts counts. Any pretraining needs the prompts that the recipe excludes."""
    pretrain, contamination = recipe.base.pretrain, recipe.data.contamination
    if pretrain is not None and recipe.data.exclude is not None:
        return ("data",)
    if pretrain is None or not isinstance(pretrain.corpus, TableConfig):
        return ()
    pairs = pretrain.corpus.columns.keys() & {"prompt", "completion"} and "text" not in pretrain.corpus.columns
    ignored = contamination.exact == contamination.near == "ignore"
    return () if pairs and ignored else ("data",)


def _weights_elsewhere(recipe: Recipe) -> dict[str, Path]:
    """The weights of a run's base that are not in its artifact."""
    source, _ = source_of(recipe.base)
    if source is None or is_hub_id(source) or not is_artifact(recipe.base.model):
        return {}
    return {"base.model (its weights)": Path(source)}


def _further_tables(recipe: Recipe) -> dict[str, Path]:
    """The local tables of rankings by several criteria and of prompts to exclude, and those joined to any table."""
    tables = recipe.data.ranking_tables
    paths = {f"{rankings_path(name)}.path": tables[name].path for name in recipe.data.criteria}
    paths |= {
        f"{name}.path" if name == "data.exclude" else name: table.path
        for name, table in recipe.data.exclusions.items()
    }
    sources = {at: source for name, path in paths.items() for at, source in by_name(name, path).items()}
    read = ("demonstrations", "prompts", "rankings", "eval_rankings", "exclude")
    joined = joined_files(recipe, *(f"data.{table}" for table in read), *map(rankings_path, recipe.data.criteria))
    return {at: Path(source) for at, source in sources.items() if is_local(source)} | joined


def _collect_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    """The newest policy, all rankings so far and, to select by disagreement, the newest reward model."""
    before = tuple(step_name("rank", earlier) for earlier in range(1, number))
    judges = (step_name("reward", number - 1),) if recipe.collect.select == "disagreement" else ()
    return ("base", "data", step_name("ppo", number - 1), *before, *judges)


def _rank_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    return ("data", step_name("collect", number))


def _reward_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    """The rankings of all rounds so far."""
    return ("base", "data", "sft", *(step_name("rank", r) for r in range(1, number + 1)))


def _ppo_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    """SFT, or the base model without it, is the reference in every round; the policy continues from the previous
    round's."""
    return ("base", "data", "sft", step_name("reward", number), step_name("ppo", number - 1))


def _eval_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    policies = tuple(step_name("ppo", r) for r in range(1, number + 1))
    return ("base", "data", "sft", step_name("reward", number), *policies, "dpo", "raft")


def _raft_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    """The newest reward model."""
    return ("base", "data", "sft", step_name("reward", number))


def _export_later(recipe: Recipe, number: int) -> tuple[str, ...]:
    return ("base", "data", step_name("reward", number), step_name("ppo", number), "eval")


def _formats() -> dict[str, Format]:
    from data.tables.formats import FORMATS

    return FORMATS


formats.register(_formats)
register(
    [
        StageSpec(
            "base",
            version=3,
            target="stages.base.stage:run",
            summary="{parameters:,} parameters",
            also=_checks_corpus,
            reads={"data": ("prompts.jsonl", "demonstrations.jsonl", "contamination.json", "excluded.jsonl")},
            paths={
                "base.model": lambda model: not is_hub_id(model),
                "base.pretrain.corpus.path": is_local,
                "base.chat_template": lambda template: template.endswith(".jinja"),
            },
            also_reads=lambda recipe: _weights_elsewhere(recipe) | joined_files(recipe, "base.pretrain.corpus"),
        ),
        StageSpec(
            "data",
            version=7,
            target="stages.data:run",
            summary="{demonstrations_train:,} demonstrations, {prompts_train:,} prompts",
            paths={
                "data.demonstrations.path": is_local,
                "data.prompts.path": is_local,
                "data.rankings.path": is_local,
                "data.eval_rankings.path": is_local,
            },
            also_reads=_further_tables,
        ),
        StageSpec(
            "sft",
            version=2,
            target="stages.sft:run",
            summary="trained on {demonstrations:,} demonstrations",
            needs=("base", "data"),
            reads={"data": ("demonstrations.jsonl",)},
            checks={"data": ("prompts.jsonl", "rankings.jsonl")},
            planned=_has_sft,
            exists=("sft", "unless sft is null"),
            parallel=True,
        ),
        StageSpec(
            "collect",
            version=3,
            target="stages.collect:run",
            summary="{answers:,} answers to {prompts:,} prompts",
            needs=("base", "data", "sft"),
            reads={"data": ("prompts.jsonl",), "reward": REWARD_MODEL},
            checks={"data": ("demonstrations.jsonl", "rankings.jsonl", "merged_rankings.jsonl")},
            later=_collect_later,
            repeats=True,
            planned=_ranks_itself,
            exists=("rank.source", "with rank.source=app or simulated only"),
        ),
        StageSpec(
            "rank",
            version=5,
            target="stages.rank:run",
            summary="{rankings:,} rankings by {annotators} {who}",
            needs=("data", "collect"),
            reads={"data": ("rankings.jsonl", "merged_rankings.jsonl", "criteria.json")},
            later=_rank_later,
            repeats=True,
            private=_asks_people,
        ),
        StageSpec(
            "reward",
            version=6,
            target="stages.reward.stage:run",
            summary="trained on {rankings:,} rankings of {completions:,} answers",
            needs=("base", "data", "sft", "rank"),
            reads={"data": ("prompts.jsonl", "contamination.json", "eval_rankings.jsonl", "excluded.jsonl")},
            checks={"data": ("demonstrations.jsonl", "rankings.jsonl", "merged_rankings.jsonl")},
            later=_reward_later,
            repeats=True,
            paths={
                "reward.model": lambda model: not is_hub_id(model),
                "reward.pretrain_on.path": is_local,
                "reward.rubric": lambda rubric: rubric != "eval" and _is_file(rubric),
                "eval.judge": _is_file,
            },
            also_reads=lambda recipe: joined_files(recipe, "reward.pretrain_on"),
            parallel=True,
            resolve=lambda recipe, reward: replace(reward, rubric=reward_rubric(recipe)),
        ),
        StageSpec(
            "ppo",
            version=7,
            target="stages.ppo.stage:run",
            summary="{updates:,} updates, {episodes:,} episodes",
            needs=("base", "data", "sft", "reward"),
            reads={"data": ("prompts.jsonl", "demonstrations.jsonl"), "reward": REWARD_MODEL},
            later=_ppo_later,
            repeats=True,
            paths={
                "ppo.reward_model": lambda model: not is_hub_id(model),
                "ppo.monitor.judge": lambda judge: judge not in ("eval", "member", "reward") and _is_file(judge),
                "eval.judge": _is_file,
            },
            also_reads=term_rules.local_files,
            parallel=True,
            resolve=lambda recipe, ppo: replace(ppo, monitor=replace(ppo.monitor, judge=monitor_judge(recipe))),
        ),
        StageSpec(
            "dpo",
            version=3,
            target="stages.dpo:run",
            summary="trained on {pairs:,} pairs of answers to {prompts:,} prompts",
            needs=("base", "data", "sft", "rank"),
            reads={"data": ()},
            later=_reward_later,
            planned=_has_dpo,
            exists=("dpo.enabled", "with a `dpo` section, or with dpo.enabled=true"),
            parallel=True,
        ),
        StageSpec(
            "raft",
            version=1,
            target="stages.raft:run",
            summary="trained on the best of {best_of_n} answers to {prompts:,} prompts (a KL of at most "
            "{kl_bound:.2f})",
            needs=("base", "data", "sft", "reward"),
            reads={"data": ("prompts.jsonl",), "reward": REWARD_MODEL},
            later=_raft_later,
            planned=_has_raft,
            exists=("raft.enabled", "with a `raft` section, or with raft.enabled=true"),
            paths={"ppo.reward_model": lambda model: not is_hub_id(model)},
            also_reads=term_rules.local_files,
            parallel=True,
            resolve=raft.resolved,
        ),
        StageSpec(
            "eval",
            version=11,
            target="stages.eval.stage:run",
            summary="{prompts:,} held-out prompts, judge: {judge}",
            needs=("base", "data", "sft", "reward", "ppo", "dpo", "raft"),
            reads={"data": ("prompts.jsonl", "demonstrations.jsonl", "excluded.jsonl"), "reward": REWARD_MODEL},
            later=_eval_later,
            paths={
                "eval.judge": _is_file,
                "eval.reward_model": lambda model: model != "ensemble",
                "eval.text.path": is_local,
            },
            also_reads=lambda recipe: joined_files(recipe, "eval.text"),
        ),
        StageSpec(
            "export",
            version=4,
            target="stages.export.stage:run",
            summary="{formats}: {size}",
            needs=("base", "data", "reward", "ppo", "eval"),
            reads={"data": ("prompts.jsonl", "demonstrations.jsonl"), "reward": REWARD_MODEL},
            later=_export_later,
            private=lambda recipe: True,  # its files name the recipe
        ),
    ]
)
