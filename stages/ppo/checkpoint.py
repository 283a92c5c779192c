"""Files of tensors that a kill leaves whole, the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import StageError


def save(path: Path, state: dict[str, Any]) -> None:
    """Atomically. Raises `StageError` when it cannot be written."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise StageError(
            f"the checkpoint cannot be written: {error}", where=str(path), hint="free some space"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, read from the file as it is needed. Raises `StageError` when it is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise StageError(
            f"the checkpoint is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}",
            where=str(path),
            hint="start the stage afresh, with --fresh",
        ) from error
    return state
