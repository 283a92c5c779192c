"""Rules that involve several values of a recipe."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from pipeline.config import (
    criteria,
    endpoint,
    estimators,
    labels,
    licenses,
    policies,
    sampler,
    table_rules,
    term_rules,
)
from pipeline.config.base import TEMPLATE_INPUTS, BaseConfig, QATConfig
from pipeline.config.data import RankingTableConfig, TableConfig, TaskConfig, rankings_path
from pipeline.config.evaluate import JUDGES
from pipeline.config.export import PublishConfig
from pipeline.config.formats import TableFormat, known_formats, text_table
from pipeline.config.paths import nearest
from pipeline.config.ppo import MOST_SAMPLES, SOLVABLE_KL, PPOConfig
from pipeline.config.rank import AppConfig
from pipeline.config.recipe import Recipe

Problem = tuple[str, str]
"""A dotted path, and what is wrong with its value."""


def is_hub_id(model: str) -> bool:
    """Whether a model's name is a Hub id: not a `.gguf` file, not spelled like a path, and no existing path."""
    looks_like_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", model)
    return bool(looks_like_id) and not model.endswith(".gguf") and not Path(model).exists()


def is_local(path: str) -> bool:
    """Whether a data path is a local file rather than a URL or a Hub data set."""
    return "://" not in path


def conflicts(recipe: Recipe) -> Iterator[Problem]:
    """Values that conflict with each other."""
    yield from _base(recipe.base)
    yield from _data(recipe)
    yield from criteria.conflicts(recipe)
    pretrain, eval_fraction = recipe.base.pretrain, recipe.data.eval_fraction
    if pretrain is not None and pretrain.held_out < eval_fraction:
        yield (
            "base.pretrain.held_out",
            f"{pretrain.held_out} must be at least data.eval_fraction ({eval_fraction}), or held-out prompts leak "
            "into the corpus",
        )
    yield from policies.problems(recipe)
    yield from _reward(recipe)
    yield from _rank(recipe)
    yield from _rounds(recipe)
    yield from _ppo(recipe.ppo)
    yield from estimators.problems(recipe.ppo)
    yield from sampler.problems(recipe)
    yield from term_rules.conflicts(recipe)
    yield from _monitor(recipe)
    yield from _eval(recipe)
    yield from _export(recipe)
    yield from _publish(recipe.publish)
    yield from _publish_reward(recipe)


def _publish(publish: PublishConfig) -> Iterator[Problem]:
    for name in ("model", "reward", "rankings"):
        repository = getattr(publish, name)
        if repository is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            yield f"publish.{name}", f"must be owner/name, got {repository!r}"
    for name in ("license", "rankings_license"):
        path, license = f"publish.{name}", getattr(publish, name)
        title, link = getattr(publish, f"{name}_name"), getattr(publish, f"{name}_link")
        if license is not None and license not in licenses.names():
            near = licenses.nearest(license)
            yield (
                path,
                f"{license!r} is not one of the Hub's licence identifiers"
                + (f"; did you mean {near}?" if near else ".")
                + f" For a licence that is not on the Hub's list, write other, and its name as {path}_name",
            )
        elif license == licenses.OTHER and not title:
            yield f"{path}_name", f"is required by {path} = other: it is the licence's name"
        elif license != licenses.OTHER and (title or link):
            yield f"{path}_{'name' if title else 'link'}", f"belongs to {path} = other, but {path} is {license}"
        if link is not None and not re.fullmatch(r"https?://\S+", link):
            yield f"{path}_link", f"must be an address such as https://..., got {link!r}"


def _publish_reward(recipe: Recipe) -> Iterator[Problem]:
    publish, ensemble = recipe.publish, recipe.reward.ensemble
    if publish.reward is None:
        return
    if publish.reward in (publish.model, publish.rankings):
        yield "publish.reward", f"needs a repository of its own, and {publish.reward} is named twice"
    if publish.reward_member is None and ensemble > 1:
        yield (
            "publish.reward_member",
            f"is required, because a sequence classifier holds one model and reward.ensemble is {ensemble}: choose "
            f"a member, 0 to {ensemble - 1}",
        )
    elif publish.reward_member is not None and publish.reward_member >= ensemble:
        yield (
            "publish.reward_member",
            f"must be less than reward.ensemble ({ensemble}), got {publish.reward_member}",
        )
    merges = recipe.reward.model is None and recipe.reward.lora is not None and recipe.base.quantization != "none"
    if merges and isinstance(recipe.base.quantization, str) and not recipe.export.merge_quantized:
        yield (
            "publish.reward",
            f"needs the adapter merged into its base, which is {recipe.base.quantization}: that is another model. "
            "Set export.merge_quantized to true to merge anyway; how far the scores differ is then printed",
        )


def _base(base: BaseConfig) -> Iterator[Problem]:
    if base.model is None and base.pretrain is None:
        yield "base", "needs `model` (to load a model) or `pretrain` (to pretrain one)"
    elif base.model is not None and base.pretrain is not None:
        yield "base", "has both `model` and `pretrain`: set one of them to null"
    elif base.model is not None and is_hub_id(base.model) and not base.revision:
        yield no_revision("base.model", "base.revision", base.model)
    # A published tokenizer may have further templates by name, which only the base stage knows.
    built_in = ("auto", "plain", "chatml")
    if base.model is None and base.chat_template not in built_in and not base.chat_template.endswith(".jinja"):
        yield "base.chat_template", "must be auto, plain, chatml or a .jinja file"
    for name in base.chat_template_kwargs:
        if not name.isidentifier() or name in TEMPLATE_INPUTS:
            what = "is part of each conversation" if name in TEMPLATE_INPUTS else "is not a variable's name"
            yield "base.chat_template_kwargs", f"{name} {what} and cannot be set here"
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", base.template_date) or not _is_date(base.template_date):
        yield "base.template_date", f"must be a date, YYYY-MM-DD, got {base.template_date!r}"
    if base.pretrain is not None:
        hidden, heads = base.pretrain.hidden_size, base.pretrain.num_attention_heads
        if hidden % (2 * heads):
            yield (
                "base.pretrain.hidden_size",
                f"{hidden} must be a multiple of twice num_attention_heads ({heads}), because head widths are even",
            )


def no_revision(path: str, revision: str, model: str) -> Problem:
    """A name without a revision is a misspelt folder, or a Hub id whose commit is missing."""
    near, parent = nearest(model, folders=True), Path(model).parent
    hub = f"For a model of the Hub, set {revision} to its commit"
    if near:
        return path, f"there is no folder {model}; did you mean {near}? {hub}"
    if "/" in model and parent.is_dir():
        return path, f"there is no folder {model}. {hub}"
    return (
        revision,
        f"is required: {model} is a Hub id (there is no such folder), and branches move. Set it to a commit",
    )


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _data(recipe: Recipe) -> Iterator[Problem]:
    sources = {
        "data.demonstrations": recipe.data.demonstrations,
        "data.prompts": recipe.data.prompts,
        **{rankings_path(criterion): table for criterion, table in recipe.data.ranking_tables.items()},
        "data.eval_rankings": recipe.data.eval_rankings,
        **recipe.data.exclusions,
        "reward.pretrain_on": recipe.reward.pretrain_on,
        "eval.text": recipe.eval.text,
        "base.pretrain.corpus": recipe.base.pretrain and recipe.base.pretrain.corpus,
    }
    for name, source in sources.items():
        if isinstance(source, RankingTableConfig):
            yield from _columns(name, source)
        elif isinstance(source, TableConfig):
            yield from _column_names(name, source, text_table(name))
            yield from table_rules.problems(name, source, text_table(name))


def _columns(path: str, table: RankingTableConfig) -> Iterator[Problem]:
    format = known_formats().get(table.format)
    if format is None:  # nobody registered formats
        return
    yield from _column_names(path, table, format)
    yield from table_rules.problems(path, table, format)
    if table.labels and not format.takes_labels(table_rules.of_an_annotator(table)):
        yield (
            f"{path}.labels",
            "gives the meaning of the values of a `preference` column (format wide) or of `choice`, and there is "
            "no such column",
        )
    for value, what in labels.problems(table, format):
        yield f"{path}.{value}", what


def _column_names(path: str, table: TableConfig | RankingTableConfig, format: TableFormat) -> Iterator[Problem]:
    for column, what, hint in format.problems(table_rules.of_an_annotator(table)):
        yield f"{path}.columns" + (f".{column}" if column else ""), f"{what}; {hint}"


def _reward(recipe: Recipe) -> Iterator[Problem]:
    reward = recipe.reward
    if reward.model is not None and is_hub_id(reward.model) and not reward.revision:
        yield no_revision("reward.model", "reward.revision", reward.model)
    if reward.model is None and reward.revision is not None:
        yield "reward.revision", "belongs to reward.model, which is not set"
    scorer, commit = recipe.ppo.reward_model, recipe.ppo.reward_model_revision
    if scorer is not None and is_hub_id(scorer) and not commit:
        yield no_revision("ppo.reward_model", "ppo.reward_model_revision", scorer)
    elif commit is not None and (scorer is None or not is_hub_id(scorer)):
        yield "ppo.reward_model_revision", "belongs to a Hub id in ppo.reward_model, which is not set"
    if reward.margin and reward.objective not in ("bradley_terry", "bradley_terry_pairs"):
        yield "reward.margin", f"belongs to Bradley-Terry, and reward.objective is {reward.objective}"
    if reward.merits == "ratings" and not reward.margin and reward.objective != "regression":
        yield "reward.merits", "says where margins or regression targets come from, and the recipe uses neither"
    evaluated = recipe.data.eval_rankings
    if evaluated is not None and evaluated.consensus != "none":
        yield (
            "data.eval_rankings.consensus",
            "merges annotators for training, and these rankings are for evaluation: leave it out",
        )
    merging = _merging(recipe)
    if reward.annotator_weights == "reliability" and merging is not None:
        yield (
            "reward.annotator_weights",
            f"weighs the rankings of single annotators, and {merging}.consensus merges them: leave one of them out",
        )
    if reward.hard_negatives and reward.merits == "ratings" and (reward.margin or reward.objective == "regression"):
        yield "reward.hard_negatives", "makes pairs without ratings: set reward.merits to ranks, or leave it out"
    if reward.ensemble > 1 and (reward.lora is None or reward.model is not None):
        yield "reward.ensemble", "needs LoRA on the policy's backbone, because its members are adapters there"
    if reward.rubric not in ("eval", *JUDGES) and Path(reward.rubric).is_dir():
        yield (
            "reward.rubric",
            f"must be a slot lexicon, and {reward.rubric} is a folder. Name a .yaml file, or none",
        )
    aggregate, held_out = recipe.ppo.reward.aggregate, recipe.ppo.reward.held_out
    if held_out and recipe.ppo.reward_model is not None:
        yield "ppo.reward.held_out", "applies to the run's own ensemble, and ppo.reward_model names another model"
    elif held_out and held_out >= reward.ensemble:
        yield "ppo.reward.held_out", f"{held_out} leaves PPO no member: reward.ensemble is {reward.ensemble}"
    elif aggregate != "mean" and reward.ensemble - held_out == 1 and recipe.ppo.reward_model is None:
        minus = f" minus {held_out} held out" if held_out else ""
        yield (
            "ppo.reward.aggregate",
            f"{aggregate} needs several members, and reward.ensemble is {reward.ensemble}{minus}",
        )


def _merging(recipe: Recipe) -> str | None:
    """The dotted path of the first table whose annotators are merged."""
    tables = recipe.data.ranking_tables if recipe.rank.source == "data" else {}
    return next((rankings_path(name) for name, table in tables.items() if table.consensus != "none"), None)


def _eval(recipe: Recipe) -> Iterator[Problem]:
    if recipe.eval.reward_model == "ensemble" and not recipe.ppo.reward.held_out:
        yield (
            "eval.reward_model",
            "ensemble needs a member that PPO does not use: set ppo.reward.held_out to 1 or more",
        )
    if recipe.eval.llm_judge is not None:
        yield from endpoint.problems("eval.llm_judge", recipe.eval.llm_judge)


def _rank(recipe: Recipe) -> Iterator[Problem]:
    rank = recipe.rank
    if rank.source == "data":
        if recipe.data.rankings is None:
            yield "data.rankings", "is required by rank.source = data"
        return
    if rank.source == "app":
        yield from app_conflicts(rank.app)
        return
    if not isinstance(recipe.data.demonstrations, TaskConfig):
        yield (
            "rank.source",
            "simulated annotators can rank the built-in task only: data.demonstrations must be {task: ...}",
        )
    names = [annotator.name for annotator in rank.annotators]
    yield from _distinct("rank.annotators", names)
    if not names:
        yield "rank.annotators", "needs at least one annotator for rank.source = simulated"
    elif rank.annotators_per_prompt > len(names):
        yield (
            "rank.annotators_per_prompt",
            f"is {rank.annotators_per_prompt}, but there are {len(names)} annotators",
        )


def _rounds(recipe: Recipe) -> Iterator[Problem]:
    if recipe.rounds > 1:
        if recipe.rank.source == "data":
            yield (
                "rounds",
                f"{recipe.rounds} rounds need annotators for the answers of each new policy, and rank.source = "
                "data only reads existing rankings",
            )
        if recipe.ppo.reward_model is not None:
            yield (
                "ppo.reward_model",
                f"would replace the reward models of all {recipe.rounds} rounds, so that none learns from its "
                "rankings",
            )
    if recipe.collect.select == "disagreement":
        if recipe.reward.ensemble < 2:
            yield "collect.select", "disagreement needs a reward ensemble: set reward.ensemble to 2 or more"
        if recipe.collect.num_prompts is None:
            yield "collect.num_prompts", "is required by collect.select = disagreement, which selects that many"


def app_conflicts(app: AppConfig) -> Iterator[Problem]:
    """Values of the ranking app's section that conflict with each other."""
    names = app.annotators
    yield from _distinct("rank.app.annotators", names)
    if not names:
        yield "rank.app.annotators", "needs at least one annotator here"
    elif app.overlap > len(names):
        yield "rank.app.overlap", f"is {app.overlap}, but there are {len(names)} annotators"
    if not _is_host(app.host):
        yield (
            "rank.app.host",
            f"must be a name or an address alone, such as 0.0.0.0 (the port is rank.app.port), got {app.host!r}",
        )
    if app.url is not None and not re.fullmatch(r"https?://[^/?#]+/?", app.url):
        yield "rank.app.url", f"must be like https://rank.example.org, got {app.url!r}"


def _is_host(text: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(text)
        return True
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*", text) is not None


def _distinct(path: str, names: Sequence[str]) -> Iterator[Problem]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield path, f"two annotators are called {name}"


def monitor_judge(recipe: Recipe) -> str:
    """Who scores the answers at PPO's evaluation points: `ppo.monitor.judge`, with `eval` resolved."""
    judge = recipe.ppo.monitor.judge
    return recipe.eval.judge if judge == "eval" else judge


def reward_rubric(recipe: Recipe) -> str:
    """The slot lexicon that the reward model's held-out answers are checked with: `reward.rubric`, with `eval`
    resolved. `none` if `eval.judge` is a folder, since that is no lexicon."""
    rubric = recipe.reward.rubric
    if rubric != "eval":
        return rubric
    return "none" if Path(recipe.eval.judge).is_dir() else recipe.eval.judge


def _monitor(recipe: Recipe) -> Iterator[Problem]:
    ppo, judge = recipe.ppo, recipe.ppo.monitor.judge
    if judge == "member" and not ppo.reward.held_out:
        yield (
            "ppo.monitor.judge",
            "member needs a member that PPO does not use: set ppo.reward.held_out to 1 or more",
        )
    if judge == "reward" and ppo.reward_model is None and ppo.reward.trains_on_run_model:
        yield "ppo.monitor.judge", "reward is the model that PPO optimises, unless ppo.reward_model names another"


def _ppo(ppo: PPOConfig) -> Iterator[Problem]:
    if ppo.total_episodes < ppo.batch_size:
        yield "ppo.total_episodes", f"{ppo.total_episodes} must be at least batch_size ({ppo.batch_size})"
    if ppo.batch_size % ppo.num_mini_batches:
        yield "ppo.num_mini_batches", f"{ppo.num_mini_batches} must divide batch_size ({ppo.batch_size})"
    elif isinstance(ppo.micro_batch_size, int) and (ppo.batch_size // ppo.num_mini_batches) % ppo.micro_batch_size:
        yield (
            "ppo.micro_batch_size",
            f"{ppo.micro_batch_size} must divide the minibatch ({ppo.batch_size // ppo.num_mini_batches})",
        )
    if ppo.batch_size % ppo.num_generations:
        yield "ppo.num_generations", f"{ppo.num_generations} must divide batch_size ({ppo.batch_size})"
    if ppo.kl.kind == "solved":
        if ppo.score.normalization == "running" and ppo.reward.terms is None:
            yield (
                "ppo.score.normalization",
                "running changes the scale of the score during training, and the coefficient of kl.kind: solved is "
                "for one scale. Set it to reference",
            )
        if ppo.kl.target >= SOLVABLE_KL:
            yield (
                "ppo.kl.target",
                f"must be below {SOLVABLE_KL:g} nats with kl.kind: solved (got {ppo.kl.target:g}): {MOST_SAMPLES} "
                "samples per prompt resolve no more. Lower it, or set kl.kind: adaptive",
            )
    if ppo.critic is None and ppo.value != "trunk":
        yield "ppo.value", f"advantage_estimator: {ppo.advantage_estimator} has no critic: leave it out"
    if ppo.critic is None and ppo.value_learning_rate:
        yield (
            "ppo.value_learning_rate",
            f"advantage_estimator: {ppo.advantage_estimator} has no critic: leave it out",
        )
    if ppo.critic != "adapter" and ppo.critic_warmup_updates:
        yield (
            "ppo.critic_warmup_updates",
            "is for a separate value model: set ppo.value to adapter, or leave it out",
        )


def _export(recipe: Recipe) -> Iterator[Problem]:
    export, (path, lora) = recipe.export, next(iter(recipe.policy_loras.items()))
    formats = export.formats
    if formats is None:
        return
    for name in sorted({name for name in formats if formats.count(name) > 1}):
        yield "export.formats", f"{name} is listed twice"
    if not formats:
        yield "export.formats", "is empty; null chooses a format that suits the base"
    if "adapter" in formats and lora is None:
        yield "export.formats", f"adapter needs LoRA, and {path} is null: every weight is trained"
    merged = [name for name in formats if name != "adapter"]
    quantization = recipe.base.quantization
    if isinstance(quantization, QATConfig):
        if "adapter" in formats:
            yield (
                "export.formats",
                "adapter would be used without the rounding that base.quantization.qat trained it for: export a "
                "merged model",
            )
    elif quantization != "none" and merged and not export.merge_quantized:
        yield (
            "export.formats",
            f"{merged[0]} needs the adapter merged into its base, which is {quantization}: merging and quantising "
            "again may lose what was learned. Use `adapter`, or set export.merge_quantized to true to merge anyway "
            "and have the loss measured",
        )
