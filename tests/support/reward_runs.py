"""A folder of runs with a finished base and reward model, as the runner leaves it, on tiny models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny

from pipeline.engine import manifest
from pipeline.engine.manifest import InputRecord, Manifest
from pipeline.engine.stage import Artifact


@dataclass(frozen=True)
class RewardRun:
    """The artifacts of `runs/<recipe>/`."""

    base: Artifact
    reward: Artifact
    data: Artifact | None = None


def finish(
    folder: Path, stage: str, inputs: Mapping[str, Manifest], config: dict[str, Any] | None = None
) -> Manifest:
    """Writes the manifest of a stage whose files are in `folder/out`."""
    files = manifest.record_files(folder / "out")
    record = Manifest(
        recipe="small",
        stage=stage,
        version=1,
        key=folder.name + "0" * 52,
        fingerprint=manifest.artifact_fingerprint(files),
        simulated=True,
        seed=0,
        config=config or {},
        keyed={},
        provenance={},
        inputs={
            name: InputRecord(key=record.key, fingerprint=record.fingerprint) for name, record in inputs.items()
        },
        local_files={},
        files=files,
        metrics={},
        forced=False,
        device="cpu",
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:00:01+00:00",
        seconds=1.0,
        resumed=False,
    )
    manifest.write(folder, record)
    return record


def reward_run(runs: Path, *, system: str | None = None, **reward: Any) -> RewardRun:
    """A base, data with a system message, and a reward model.

    Args:
        reward: arguments of `tiny.reward_artifact`, and of `tiny.base_artifact` template and quantization.
    """
    places = {stage: runs / "small" / stage / f"{number:012x}" for number, stage in enumerate(("base", "data"), 1)}
    of_base = {name: reward.pop(name) for name in ("template", "quantization") if name in reward}
    made = tiny.base_artifact(places["base"] / "out", **of_base)
    records = {"base": finish(places["base"], "base", {})}
    base = Artifact("base", made.path, records["base"].fingerprint)
    data = tiny.data_artifact(places["data"] / "out")
    records["data"] = finish(places["data"], "data", {}, {"system": system})
    place = runs / "small/reward" / f"{3:012x}"
    tiny.reward_artifact(place / "out", base, **reward)
    record = finish(place, "reward", records)
    return RewardRun(base, Artifact("reward", place / "out", record.fingerprint), data)
