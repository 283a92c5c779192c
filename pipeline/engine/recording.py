"""Writes down what a stage made: from what a stage returned and what running it took to its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline import machine
from pipeline.config.load import LoadedRecipe
from pipeline.config.recipe import Recipe
from pipeline.engine.manifest import FileRecord, Manifest, artifact_fingerprint
from pipeline.engine.plan import StagePlan
from pipeline.engine.stage import Metrics
from pipeline.files import jsonable


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage returned and what running it took. The fields have the meaning of those in `Manifest`.

    Attributes:
        simulated_input: whether simulated annotators contributed to one of its inputs.
        seconds: of work (`MetricsFile.seconds`), until the files were hashed.
    """

    metrics: Metrics
    files: Mapping[str, FileRecord]
    simulated_input: bool
    forced: bool
    device: str
    processes: int
    started: datetime
    seconds: float
    resumed: bool
    memory: Mapping[str, Any]
    predicted: Mapping[str, Any]


def assemble(step: StagePlan, loaded: LoadedRecipe, recipe: Recipe, outcome: Outcome) -> Manifest:
    """The manifest of a stage that has just run.

    Args:
        loaded: the recipe as the user wrote it, for where its values were set.
        recipe: the recipe that ran, in which every `auto` is decided.
    """
    assert step.key is not None
    assert step.inputs is not None
    assert step.local_files is not None
    spec = step.spec
    return Manifest(
        recipe=recipe.name,
        stage=spec.name,
        version=spec.version,
        key=step.key,
        fingerprint=artifact_fingerprint(outcome.files),
        simulated=outcome.metrics.get("human") is False or outcome.simulated_input,
        seed=recipe.seed,
        config=asdict(spec.config(recipe)),
        keyed=spec.keyed(recipe),
        provenance={
            path: where
            for path, where in loaded.provenance.items()
            if path == "seed" or path.partition(".")[0] == spec.section
        },
        inputs=dict(step.inputs),
        local_files=dict(step.local_files),
        files=dict(outcome.files),
        metrics=jsonable(outcome.metrics),
        forced=outcome.forced,
        device=outcome.device,
        processes=outcome.processes,
        started=outcome.started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=round(outcome.seconds, 3),
        resumed=outcome.resumed,
        memory=dict(outcome.memory),
        predicted=dict(outcome.predicted),
        code=machine.code_state(),
        packages=machine.package_versions(),
        hardware=machine.hardware(),
    )
