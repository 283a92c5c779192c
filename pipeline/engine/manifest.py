"""The manifest of a finished stage. Writing it is what makes the stage finished.

A stage's folder is `runs/<recipe>/<stage>/<first 12 digits of its key>/` with `out/` (the artifact), `state/`
(checkpoints of an unfinished run), `metrics.jsonl` and `manifest.json`. The manifest is written last and
atomically. A folder without it counts as unfinished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline import invocation
from pipeline.config.section import content
from pipeline.engine.fingerprint import combine, file_sha256, files_below
from pipeline.engine.stage import Artifact, matches
from pipeline.errors import StageError
from pipeline.files import canonical, jsonable, readable_bytes, sync_folder, write_atomic

FILE = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class InputRecord:
    """An input artifact: its key, the fingerprint of all its files and, where the stage does not read all of them,
    `read`, the fingerprint of those that decide its result."""

    key: str
    fingerprint: str
    read: str | None = None

    @classmethod
    def of(cls, manifest: Manifest, patterns: tuple[str, ...] | None) -> InputRecord:
        """The input as a stage reads it that declares `patterns` (`pipeline.engine.stage.matches`)."""
        if patterns is None:
            return cls(key=manifest.key, fingerprint=manifest.fingerprint)
        read = {name: record for name, record in manifest.files.items() if matches(name, patterns)}
        return cls(key=manifest.key, fingerprint=manifest.fingerprint, read=artifact_fingerprint(read))

    @property
    def decisive(self) -> str:
        """The fingerprint that enters the stage's key."""
        return self.read or self.fingerprint

    def same(self, other: InputRecord) -> bool:
        """Whether a stage makes the same of both. A record of an earlier version has no `read`."""
        return self.fingerprint == other.fingerprint or (self.read is not None and self.read == other.read)


@dataclass(frozen=True, kw_only=True)
class LocalRecord:
    path: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of a finished stage.

    Attributes:
        recipe: the recipe's name.
        version: the stage's version.
        key: SHA-256 over everything that decides the result.
        fingerprint: of the artifact's content.
        simulated: whether simulated annotators contributed, in this stage or an earlier one.
        seed: the recipe's seed.
        config: the stage's resolved section, including runtime fields.
        keyed: the part of `config` that enters the key, without runtime fields.
        provenance: dotted path -> file and line or flag, for the section's values that are not defaults.
        inputs: the input artifacts by stage.
        local_files: path and fingerprint of each local file or folder that the recipe names, by dotted path.
        files: SHA-256 and size of each file of the artifact.
        metrics: what the stage returned.
        forced: whether `--force` was given.
        device: the torch device.
        processes: how many processes shared the work.
        started, finished: ISO 8601, UTC.
        seconds: of work: this run, and those parts of interrupted runs that it continued from.
        resumed: whether it continued from an interrupted run's state.
        memory: measured peaks in bytes, and how they were measured (`pipeline.machine.PeakMemory.report`).
        predicted: the memory plan's prediction (`pipeline.memory.plan.MemoryPlan.record`), and the operations.
        code, packages, hardware: what it ran with. Not part of the key.
    """

    format: int = 1
    recipe: str
    stage: str
    version: int
    key: str
    fingerprint: str
    simulated: bool
    seed: int
    config: dict[str, Any]
    keyed: dict[str, Any]
    provenance: dict[str, str]
    inputs: dict[str, InputRecord]
    local_files: dict[str, LocalRecord]
    files: dict[str, FileRecord]
    metrics: dict[str, Any]
    forced: bool
    device: str
    started: str
    finished: str
    seconds: float
    resumed: bool
    memory: dict[str, Any] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    code: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)

    @property
    def peak_memory(self) -> int | None:
        """The measured peak in bytes: allocated on the GPU if one was used, else resident."""
        return self.memory.get("peak_gpu_bytes") or self.memory.get("peak_bytes")


_ADAPTER = TypeAdapter(Manifest)


def stage_key(
    stage: str,
    version: int,
    config: Any,
    seed: int,
    inputs: Mapping[str, str],
    local_files: Mapping[str, str],
) -> str:
    """SHA-256 over everything that decides a stage's result; `inputs` and `local_files` are fingerprints."""
    material = {
        "stage": stage,
        "version": version,
        "config": content(config),
        "seed": seed,
        "inputs": dict(inputs),
        "files": dict(local_files),
    }
    return hashlib.sha256(canonical(material).encode()).hexdigest()


def record_files(out: Path) -> dict[str, FileRecord]:
    """Hashes an artifact's files and flushes them to disk."""
    records = {}
    for name, path in files_below(out).items():
        with path.open("rb") as file:
            os.fsync(file.fileno())
        records[name] = FileRecord(sha256=file_sha256(path), size=path.stat().st_size)
    for folder in {out, *(path.parent for path in files_below(out).values())}:
        sync_folder(folder)
    return records


def artifact_fingerprint(files: Mapping[str, FileRecord]) -> str:
    return combine({name: record.sha256 for name, record in files.items()})


def write(folder: Path, manifest: Manifest) -> None:
    """Marks the stage as finished. Raises `StageError` if the file cannot be written; the stage is then
    unfinished."""
    text = json.dumps(jsonable(asdict(manifest)), indent=2, ensure_ascii=False, allow_nan=False)
    try:
        write_atomic(folder / FILE, f"{text}\n")
    except OSError as error:
        raise StageError(
            f"cannot write the manifest of {manifest.stage}: {error.strerror}",
            where=str(folder),
            hint="free disk space and run the same command again; earlier stages are not affected",
        ) from error


def read(folder: Path) -> Manifest | None:
    """The manifest in a stage's folder, or None if the stage is not finished."""
    path = folder / FILE
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise StageError(
            "this manifest is damaged: it cannot be parsed",
            where=str(path),
            hint=f"run the stage again: `{invocation.command('run', folder.parent.name, '--fresh')}`",
        ) from None


def verify(folder: Path, manifest: Manifest, hint: str, contents: bool = False) -> None:
    """Checks an artifact against its manifest: that every file exists with the recorded size and, with `contents`,
    that every byte is the same. Raises `StageError`."""
    for name, record in manifest.files.items():
        path = folder / "out" / name
        if not path.is_file():
            raise StageError(
                f"the {manifest.stage} artifact is damaged: {name} is missing", where=str(path), hint=hint
            )
        size = path.stat().st_size
        if size != record.size:
            raise StageError(
                f"the {manifest.stage} artifact is damaged: {name} has {size} bytes, not {record.size}",
                where=str(path),
                hint=hint,
            )
        if contents and file_sha256(path) != record.sha256:
            raise StageError(
                f"the {manifest.stage} artifact is damaged: the contents of {name} "
                f"({readable_bytes(size)}) have changed since it was written",
                where=str(path),
                hint=hint,
            )
    if artifact_fingerprint(manifest.files) != manifest.fingerprint:
        raise StageError(
            f"the manifest of {manifest.stage} is damaged: its fingerprint does not match its files",
            where=str(folder / FILE),
            hint=hint,
        )


def artifact(folder: Path, manifest: Manifest) -> Artifact:
    return Artifact(manifest.stage, folder / "out", manifest.fingerprint, dict(manifest.metrics))
