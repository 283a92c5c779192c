"""Finds and removes the runs that a recipe no longer uses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.engine import registry
from pipeline.engine.lock import locked
from pipeline.engine.plan import KEY_DIGITS, POINTER, Planner
from pipeline.engine.stage import RANKINGS_DATABASE
from pipeline.errors import StageError
from pipeline.files import folder_size

REPORT = ("report.html", "report.json")


@dataclass(frozen=True)
class Leftover:
    path: Path
    size: int


def leftovers(planner: Planner, everything: bool = False) -> list[Leftover]:
    """Stage runs that the recipe's present values do not use: runs of other values, and unfinished runs without a
    checkpoint. With `everything`, all of the recipe's runs."""
    keep = set() if everything else {step.folder for step in planner.plan() if step.action in ("skip", "resume")}
    folders = [folder for stage in _stage_folders(planner) for folder in sorted(stage.glob("*"))]
    return [Leftover(folder, folder_size(folder)) for folder in folders if folder.is_dir() and folder not in keep]


def kept(planner: Planner) -> list[Path]:
    """Files of people's work, which are never removed: their rankings, the key of their links, their judgements."""
    stem = RANKINGS_DATABASE.partition(".")[0]
    return sorted(
        path
        for pattern in (f"{stem}.*", "judged-*.json")
        for path in planner.folder.glob(pattern)
        if path.is_file()
    )


def remove(planner: Planner, leftovers: list[Leftover], say: Callable[[str], None]) -> int:
    """Removes stage runs, except those that another process is working on, and a report that describes one of them.
    Returns the freed bytes of the runs."""
    freed = 0
    for leftover in leftovers:
        try:
            with locked(leftover.path, wait=False, say=say):
                shutil.rmtree(leftover.path)
        except StageError as error:
            say(f"kept {leftover.path}: {error.what}")
            continue
        freed += leftover.size
    for folder in _stage_folders(planner):
        if not any(folder.iterdir()):
            folder.rmdir()
    if planner.folder.is_dir():
        if _describes_removed_runs(planner):
            for name in REPORT:
                if (planner.folder / name).exists():
                    (planner.folder / name).unlink()
                    say(f"removed {planner.folder / name}, which described runs that are gone")
        if {path.name for path in planner.folder.iterdir()} <= {POINTER}:
            shutil.rmtree(planner.folder)
    return freed


def _describes_removed_runs(planner: Planner) -> bool:
    """Whether a stage run in the report does not exist any more."""
    if not _stage_folders(planner):
        return True
    try:
        content = json.loads((planner.folder / REPORT[1]).read_text(encoding="utf-8"))
        finished = [(stage["name"], stage["key"]) for stage in content["stages"] if stage["key"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no report, or one of another version
    return not all((planner.folder / name / key[:KEY_DIGITS]).is_dir() for name, key in finished)


def _stage_folders(planner: Planner) -> list[Path]:
    """The folders of every stage and round that ever ran, even if the recipe no longer has them."""
    if not planner.folder.is_dir():
        return []
    return [path for path in sorted(planner.folder.iterdir()) if path.is_dir() and registry.is_step(path.name)]
