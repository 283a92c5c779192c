"""Loads what is served: a run's models on one backbone, or a model from a folder or the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from pipeline.config.checkpoint import context_length, quantized_refusal, read_json
from pipeline.config.paths import nearest
from pipeline.config.rules import is_hub_id
from pipeline.engine.plan import RunSummary
from pipeline.errors import RecipeError
from stages.chat import finished_models
from stages.criteria import OPTION, check_option, of_criterion
from stages.models.actor import check_projection
from stages.models.adapters import ADAPTER, attach_adapter, is_adapter, load_full
from stages.models.bank import BASE, ActorBank, FullBank
from stages.models.loading import (
    keep_layout,
    load_backbone,
    load_causal_lm,
    load_pretrained,
    read_tokenizer,
)
from stages.models.templates import chat_template
from stages.models.text import Codec, load_codec
from stages.score.model import RewardScorer
from stages.score.source import from_run
from stages.scoring import reward_model
from stages.scoring.load import token_artifact
from stages.serve.engine import LanguageModel

REWARD = "reward"
"""The name of the reward model."""


@dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        title: for people: the recipe's name, or the model's.
        models: the language models by name, in the order of training.
        codec: of all of them.
        limit: the most tokens of a prompt and its answer; None if that is not known.
        system: a system message put before conversations without one (`data.system`).
        reward: the reward model, if there is one.
        folder: of the run; None for a model from elsewhere.
    """

    title: str
    models: dict[str, LanguageModel]
    codec: Codec
    limit: int | None
    system: str | None = None
    reward: RewardScorer | None = None
    folder: Path | None = None

    @property
    def names(self) -> list[str]:
        return [*self.models, *([REWARD] if self.reward else [])]


def load_run(
    summary: RunSummary,
    names: Sequence[str],
    device: str,
    *,
    max_length: int | None = None,
    criterion: str | None = None,
) -> Served:
    """A run's language models and its reward model.

    Adapters share one backbone. A model that was fine-tuned in full is loaded as it is.

    Args:
        names: of the models (`stages.chat.choose_models`); none: all that are finished.
        max_length: lowers `limit`.
        criterion: whose reward model is served, where the rankings have several criteria.

    Raises:
        StageError: as the loading of each does.
        RecipeError: the criterion is missing, or the recipe does not have it.
    """
    names = list(names) or finished_models(summary)
    base = summary.need("base").artifact
    codec = load_codec(base)
    artifacts = {name: summary.need(name).artifact for name in names if name != BASE}
    adapters = {name: artifact for name, artifact in artifacts.items() if is_adapter(artifact)}
    recipe = summary.loaded.recipe
    newest = summary.newest("reward") if recipe.ppo.reward_model is None else None
    check_option(recipe.data.criteria if newest else (), criterion, recipe.name)
    shared = newest and token_artifact(of_criterion(newest.artifact, criterion, OPTION))
    on_backbone = shared if shared and is_adapter(shared) else None
    models: dict[str, LanguageModel] = {}
    bank: ActorBank | None = None
    if adapters or on_backbone or BASE in names:
        model: Any = load_backbone(base, device)
        for name, artifact in adapters.items():
            model = attach_adapter(model, artifact.file(ADAPTER), name)
        heads: dict[str, Any] = {}
        if on_backbone:
            first = on_backbone.file(ADAPTER)
            if not adapters:
                model = attach_adapter(model, first, reward_model.roles(on_backbone)[0])
            heads = reward_model.load_members(on_backbone, model, device)
        if adapters or on_backbone:
            bank = ActorBank(model.to(device), heads, ())
            models = {name: LanguageModel(bank, name) for name in (BASE, *adapters)}
        else:
            models[BASE] = LanguageModel(FullBank({BASE: model}, {}, ()), BASE)
    for name, artifact in artifacts.items():
        if name not in adapters:
            full = FullBank({name: load_full(base, artifact, device)}, {}, ())
            models[name] = LanguageModel(full, name)
    scorer = None
    if newest is not None or recipe.ppo.reward_model is not None:
        scorer = from_run(summary, device, bank=bank, criterion=criterion)
    models = {name: models[name] for name in names}
    return Served(
        recipe.name,
        models,
        codec,
        _limit(models, max_length),
        recipe.data.system,
        scorer,
        summary.folder,
    )


def load_place(
    source: str,
    revision: str | None,
    device: str,
    *,
    dtype: str = "auto",
    quantization: str = "none",
    max_length: int | None = None,
) -> Served:
    """A merged model: an exported folder, NF4 included, or a Hub id. Its name is that of the folder or repository.

    Args:
        dtype, quantization: as of `base`, for a model that is not stored quantised.

    Raises:
        RecipeError: there is no such folder, or a Hub id has no revision.
        StageError: the model cannot be loaded.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        source = str(folder)
    elif not is_hub_id(source):
        near = nearest(folder, folders=True)
        raise RecipeError(
            f"--model: there is no folder {source}",
            hint=f"did you mean {near}?" if near else "give the folder of an exported model, or a Hub id",
        )
    elif revision is None:
        raise RecipeError(
            f"--model {source} is on the Hub and has no revision",
            hint="add --revision and the commit, so that answers can be repeated",
        )
    name = Path(source).resolve().name if folder.is_dir() else source.rpartition("/")[2]
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if quantized_refusal(config):
        model: Any = load_pretrained(AutoModelForCausalLM, source, dtype="auto", device_map={"": device})
        keep_layout(model)
        model.requires_grad_(False).eval()
    else:
        model = load_causal_lm(source, device, dtype=dtype, quantization=quantization, revision=revision)
    tokenizer = read_tokenizer(source, revision)
    tokenizer.chat_template = chat_template("auto", tokenizer, "--model")
    codec = Codec(tokenizer, stop_ids=_stop_ids(model.generation_config))
    models = {name: LanguageModel(FullBank({name: model}, {}, ()), name)}
    return Served(name, models, codec, _limit(models, max_length))


def _stop_ids(config: GenerationConfig | None) -> list[int]:
    eos: Any = None if config is None else config.eos_token_id
    return [int(eos)] if isinstance(eos, int) else [int(i) for i in eos or ()]


@torch.no_grad()
def _limit(models: dict[str, LanguageModel], max_length: int | None) -> int | None:
    """The most tokens that every model can read. Also checks each model's projection."""
    limits: list[float | None] = [max_length]
    for model in models.values():
        with model.bank.active(model.role) as actor:
            check_projection(actor)
            limits += [actor.passes.longest, context_length(actor.lm.config.to_dict())]
    known = [int(limit) for limit in limits if limit is not None and limit != float("inf")]
    return min(known, default=None)
