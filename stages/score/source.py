"""Loads a reward model for scoring: that of a recipe's run, a reward artifact, an exported folder, or a sequence
classifier on the Hub."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from data.schema import Message
from pipeline import invocation
from pipeline.config.checkpoint import context_length
from pipeline.config.paths import nearest
from pipeline.config.ppo import AggregateConfig
from pipeline.config.rules import is_hub_id
from pipeline.engine import manifest, reuse
from pipeline.engine.fingerprint import files_below
from pipeline.engine.plan import RunSummary
from pipeline.engine.stage import Artifact
from pipeline.errors import RecipeError, StageError
from stages.criteria import OPTION, check_option, criteria_of, of_criterion
from stages.models.bank import Bank
from stages.models.templates import DATE
from stages.models.text import load_codec
from stages.reward.artifact import FILE as QUALITY
from stages.reward.artifact import read_unfit
from stages.score.model import RewardScorer
from stages.scoring import exported, reward_model
from stages.scoring.classifier import is_classifier, load_classifier
from stages.scoring.load import EVERY, as_artifact, load_scorer, optimised_members
from stages.scoring.scorer import BATCH, TextScorer, TokenScorer

EXPORT = "export-reward"
Aggregate = Literal["mean", "min", "uncertainty"]
MODEL = "--model"
"""The option that names a reward model, for errors."""


@dataclass(frozen=True)
class OwnText:
    """The part of a policy's codec that a classifier's encoder uses, for a classifier without a policy: text is
    encoded as it is, and control tokens spelled in it stay text."""

    date: str = DATE
    literal: bool = True
    template: Any = field(default_factory=lambda: SimpleNamespace(folds=False))

    def cleaned(self, message: Message) -> Message:
        return message


def from_run(
    run: RunSummary,
    device: str,
    batch_size: int = BATCH,
    aggregate: Aggregate | None = None,
    bank: Bank | None = None,
    criterion: str | None = None,
) -> RewardScorer:
    """The reward model that the recipe's PPO optimises: the newest reward model, or `ppo.reward_model`; the members
    that are not held out, combined as `ppo.reward` says.

    Args:
        criterion: whose reward model it is, where the rankings have several criteria.
        batch_size: completions scored at once, fewer once memory has run out.
        aggregate: instead of `ppo.reward.aggregate`.
        bank: as of `load_scorer`.

    Raises:
        StageError: `base` or `reward` is not finished.
        RecipeError: the criterion is missing, or the recipe does not have it.
    """
    recipe = run.loaded.recipe
    check_option(recipe.data.criteria if recipe.ppo.reward_model is None else (), criterion, recipe.name)
    base, ppo = run.need("base"), recipe.ppo
    chosen = ppo.reward if aggregate is None else replace(ppo.reward, aggregate=aggregate)
    members = optimised_members(chosen.held_out)
    if ppo.reward_model is None:
        reward = run.need("reward")
        source: Artifact | str = of_criterion(reward.artifact, criterion, OPTION)
        name = f"{reward.manifest.stage} of {recipe.name}" + (f", {criterion}" if criterion else "")
        identity: object = reward.manifest.fingerprint + (f" {criterion}" if criterion else "")
    else:
        source, name = ppo.reward_model, ppo.reward_model
        identity = _identity(ppo.reward_model, ppo.reward_model_revision)
    return _loaded(
        source,
        base.artifact,
        device,
        batch_size,
        name=name,
        identity={"model": identity, "base": base.manifest.fingerprint},
        members=members,
        revision=ppo.reward_model_revision,
        aggregation=chosen,
        system=recipe.data.system,
        bank=bank,
    )


def from_place(
    source: str,
    revision: str | None,
    device: str,
    batch_size: int = BATCH,
    aggregate: Aggregate | None = None,
    criterion: str | None = None,
) -> RewardScorer:
    """The reward model in a folder or on the Hub: a reward artifact in a folder of runs, an exported reward model,
    or any sequence classifier with one label.

    Args:
        criterion: whose reward model it is, in a folder with one for each of several criteria.

    Raises:
        RecipeError: there is no such folder, or a Hub id has no revision.
        StageError: a reward artifact whose base is not in its folder of runs; or as `load_scorer`.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        out = folder / "out"
        source = str(out if (out / reward_model.SPEC).exists() or criteria_of(out) else folder)
        source = str(of_criterion(Artifact("reward", Path(source), ""), criterion, OPTION).path)
    elif not is_hub_id(source):
        near = nearest(folder, folders=True)
        raise RecipeError(
            f"{MODEL}: there is no folder {source}",
            hint=f"did you mean {near}?" if near else "give the folder of a reward model, or a Hub id",
        )
    elif revision is None:
        raise RecipeError(
            f"{MODEL} {source} is on the Hub and has no revision",
            hint="add --revision and the commit, so that the scores can be repeated",
        )
    elif criterion is not None:
        raise RecipeError(f"{OPTION}: {source} is on the Hub and is one reward model", hint=f"drop {OPTION}")
    identity = {"model": _identity(source, revision)}
    artifact = as_artifact(source)
    if artifact is None:
        return _classifier(source, revision, device, batch_size, identity)
    base, system = _lineage(artifact)
    if base is None and is_classifier(artifact):
        return _classifier(str(artifact.path / "classifier"), None, device, batch_size, identity, artifact)
    if base is None:
        raise StageError(
            "this reward model is an adapter and a head, and its base is not in the same folder of runs",
            where=str(artifact.path),
            hint=f"where it was trained, run `{invocation.command(EXPORT, 'FOLDER')}` and use that folder",
        )
    chosen = AggregateConfig(aggregate=aggregate or "mean")
    return _loaded(
        artifact,
        base,
        device,
        batch_size,
        name=str(source),
        identity=identity | {"base": base.fingerprint},
        aggregation=chosen,
        system=system,
    )


def _loaded(
    source: Artifact | str,
    base: Artifact,
    device: str,
    batch_size: int,
    *,
    name: str,
    identity: dict[str, object],
    aggregation: AggregateConfig,
    system: str | None,
    members: slice = EVERY,
    revision: str | None = None,
    bank: Bank | None = None,
) -> RewardScorer:
    """A reward model that reads as a policy's codec writes."""
    scorer = load_scorer(
        source,
        {"base": base},
        load_codec(base),
        device,
        batch_size=batch_size,
        members=members,
        bank=bank,
        where=MODEL,
        revision=revision,
    )
    assert isinstance(scorer, TokenScorer | TextScorer)
    if scorer.size == 1:
        aggregation = AggregateConfig()
    artifact = as_artifact(source)
    return RewardScorer(
        scorer,
        name,
        identity | {"aggregation": asdict(aggregation), "system": system},
        aggregation,
        system,
        _longest(scorer),
        _notes(artifact),
    )


def _classifier(
    source: str,
    revision: str | None,
    device: str,
    batch_size: int,
    identity: dict[str, object],
    artifact: Artifact | None = None,
) -> RewardScorer:
    """A sequence classifier without a policy: an exported reward model, an encoder or any other.

    Args:
        artifact: the reward artifact that it belongs to, whose fingerprints are verified.
    """
    classifier = load_classifier(source, device, MODEL, revision)
    if artifact is not None:
        reward_model.verify(artifact, classifier, device)
    spec = exported.read(source, revision)
    system = spec.system if spec else None
    if spec is not None and spec.reading is not None:
        codec = spec.reading.codec(classifier.tokenizer)
        scorer: TokenScorer | TextScorer = TokenScorer(classifier, codec, device, batch_size=batch_size)
    else:
        own: Any = OwnText()
        scorer = TextScorer(classifier, own, batch_size=batch_size)
    return RewardScorer(
        scorer,
        source,
        identity | {"system": system},
        system=system,
        longest=classifier.longest,
        notes=_notes(artifact),
    )


def _longest(scorer: TokenScorer | TextScorer) -> int | None:
    if isinstance(scorer, TextScorer):
        return scorer.classifier.longest
    assert isinstance(scorer.model, reward_model.RewardEnsemble)
    with scorer.model.bank.active(scorer.model.roles[0]) as actor:
        limits = [actor.passes.longest, context_length(actor.lm.config.to_dict())]
    known = [int(limit) for limit in limits if limit is not None and limit != float("inf")]
    return min(known, default=None)


def _notes(artifact: Artifact | None) -> tuple[str, ...]:
    if artifact is None or not (artifact.path / QUALITY).is_file():
        return ()
    return tuple(f"the reward model is unfit for PPO: {reason}" for reason in read_unfit(artifact))


def _lineage(reward: Artifact) -> tuple[Artifact | None, str | None]:
    """The base of a reward artifact in a folder of runs, and the system message of its data; None for what is not
    there."""
    out = reward.path.resolve()
    if criteria_of(out.parent):  # the folder of a criterion
        out = out.parent
    folder = out.parent
    record = manifest.read(folder) if out.name == "out" else None
    if record is None:
        return None, None
    base, data = (reuse.input_of(folder, record, stage) for stage in ("base", "data"))
    system = None if data is None else data[1].config.get("system")
    return (None if base is None else manifest.artifact(*base)), system


def _identity(source: str, revision: str | None) -> object:
    """What tells a model from others without reading its weights."""
    folder = Path(source)
    if not folder.is_dir():
        return f"{source}@{revision}"
    stats = {name: path.stat() for name, path in files_below(folder).items()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
