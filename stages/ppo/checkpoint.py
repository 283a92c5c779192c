"""Atomic checkpoint files: after a kill, either the old or the new file is intact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pipeline import invocation
from pipeline.errors import StageError


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` atomically. Raises `StageError` if it cannot be written."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise StageError(
            f"the checkpoint cannot be written: {error}", where=str(path), hint="free disk space"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Loads a state written by `save`, memory-mapped. Raises `StageError` if the file is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise StageError(
            f"the checkpoint is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}",
            where=str(path),
            hint=f"start the stage again: `{invocation.stage_again('--fresh')}`",
        ) from error
    return state
