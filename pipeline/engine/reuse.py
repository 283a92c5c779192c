"""Uses a finished run of another recipe: the key of a run decides its result and has no recipe's name in it.

Recipes that share a base model, demonstrations and SFT values get the same keys for `base` and `sft`. The run of
the recipe that comes first is then taken into the other's folder, as hard links where the file system has them, so
that either recipe's runs can be removed. Its manifest stays as it is, with the name of the recipe that made it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.engine import manifest, registry
from pipeline.engine.fingerprint import files_below
from pipeline.engine.manifest import InputRecord, Manifest
from pipeline.engine.rounds import parse
from pipeline.errors import StageError
from pipeline.files import sync_folder

METRICS = "metrics.jsonl"


def find(folder: Path, key: str) -> tuple[Path, Manifest] | None:
    """A finished, complete run with this key in another recipe's folder, the one that finished first; None if there
    is none. A run with `--force` serves only the recipe that it was forced for.

    Args:
        folder: where the run would be: runs/<recipe>/<stage>/<key12>.
    """
    recipe, place = folder.parent.parent, Path(folder.parent.name, folder.name)
    runs = []
    for file in recipe.parent.glob(f"*/{place.as_posix()}/{manifest.FILE}"):
        record = _read(file.parent)
        if record is not None and record.key == key and not record.forced and file.parent != folder:
            runs.append((file.parent, record))
    return min(runs, key=lambda run: run[1].finished, default=None)


def runs_of(recipe: Path, stage: str) -> Iterator[Manifest]:
    """A stage's finished runs under other recipes, the newest first. `recipe`: the folder of this one's runs."""
    files = [file for file in recipe.parent.glob(f"*/{stage}/*/{manifest.FILE}") if recipe not in file.parents]
    records = [record for file in files if (record := _read(file.parent)) is not None and not record.forced]
    yield from sorted(records, key=lambda record: record.finished, reverse=True)


def input_of(folder: Path, record: Manifest, stage: str) -> tuple[Path, Manifest] | None:
    """The folder and manifest of the run of `stage` that a finished run was made from, or of one with the same in
    the files that it reads; None if the folder of runs has neither.

    Args:
        folder, record: the finished run.
    """
    if stage not in record.inputs:
        return None
    wanted, reads = record.inputs[stage], registry.STAGES[parse(record.stage)[0]].reads_of(stage)
    runs, recipe = folder.parent.parent.parent, folder.parent.parent.name
    files = [*runs.glob(f"{recipe}/{stage}/*/{manifest.FILE}"), *runs.glob(f"*/{stage}/*/{manifest.FILE}")]
    for file in sorted(files, key=lambda file: file.parent.name != wanted.key[: len(file.parent.name)]):
        earlier = _read(file.parent)
        if earlier is not None and wanted.same(InputRecord.of(earlier, reads)):
            return file.parent, earlier
    return None


def adopt(source: Path, record: Manifest, folder: Path, hint: str) -> None:
    """Takes a finished run into an empty `folder`. Every byte is verified first. Raises `StageError` if one has
    changed."""
    take(source, record, folder / "out", hint)
    if (source / METRICS).exists():
        shutil.copyfile(source / METRICS, folder / METRICS)
    for below in {folder / "out", *(path.parent for path in files_below(folder / "out").values())}:
        sync_folder(below)
    manifest.write(folder, record)


def take(source: Path, record: Manifest, out: Path, hint: str) -> None:
    """Takes the files of a finished run into `out`, after verifying every byte. Raises `StageError` if one has
    changed."""
    manifest.verify(source, record, hint, contents=True)
    for name in record.files:
        _link(source / "out" / name, out / name)


def _read(folder: Path) -> Manifest | None:
    """The manifest of a complete run; None for any other, which is then not used."""
    try:
        record = manifest.read(folder)
        if record is not None:
            manifest.verify(folder, record, hint="")
    except StageError:
        return None
    return record


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links, or no more of this file
        shutil.copyfile(source, target)
