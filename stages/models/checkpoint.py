"""Atomic checkpoint files: after a kill, either the old or the new checkpoint is intact.

Parts of sharded tensors go into a folder beside the file, in the format of `torch.distributed.checkpoint`, from
which any number of processes can load them.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.tensor import DTensor, Shard, empty

from pipeline import invocation
from pipeline.errors import StageError
from stages.models.distributed import World
from stages.models.sharding import Mesh

PART = "sharded tensor: "
"""A sharded tensor is saved as this prefix and its name among the parts."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` atomically, from rank 0. If tensors are sharded, every process must call it and writes its
    parts. Raises `StageError` if it cannot be written."""
    parts: dict[str, Any] = {}

    def replace(value: Any, name: str) -> Any:
        if not isinstance(value, DTensor):
            return value
        parts[name] = value
        return PART + name

    state, world = _mapped(state, replace), World()
    temporary = path.with_suffix(".tmp")
    try:
        if parts:
            number = int(world.first(1 + max((int(f.suffix[1:]) for f in _folders(path)), default=0)))
            state["parts"] = f"{path.stem}.{number}"
            save_parts(parts, checkpoint_id=path.with_name(state["parts"]))
        if world.rank == 0:
            with temporary.open("wb") as out:
                torch.save(state, out)
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, path)
            remove_parts(path, state.get("parts"))
    except (OSError, RuntimeError) as error:
        raise StageError(
            f"the checkpoint cannot be written: {error}", where=str(path), hint="free disk space"
        ) from error


def load(path: Path, mesh: Mesh | None = None) -> dict[str, Any]:
    """Loads a state written by `save`. Tensors are memory-mapped, except those that were sharded.

    Args:
        mesh: shards those over it, and every process must call this; None: loads them whole.

    Raises `StageError` if the file is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        folder = state.pop("parts", None)
        if folder is None:
            return state
        reader = FileSystemReader(path.with_name(folder))
        saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
        place = {} if mesh is None else {"device_mesh": mesh, "placements": [Shard(0)]}
        new: Any = torch.empty if mesh is None else empty
        parts = {name: new(*entry.size, dtype=entry.properties.dtype, **place) for name, entry in saved.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # on purpose, without a mesh
            load_parts(parts, storage_reader=reader, no_dist=mesh is None)
    except Exception as error:
        raise StageError(
            f"the checkpoint is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}",
            where=str(path),
            hint=f"start the stage again: `{invocation.stage_again('--fresh')}`",
        ) from error
    is_part = lambda value: isinstance(value, str) and value.startswith(PART)  # noqa: E731
    return _mapped(state, lambda value, _: parts[value.removeprefix(PART)] if is_part(value) else value)


def _folders(path: Path) -> list[Path]:
    return [f for f in path.parent.glob(f"{path.stem}.*") if f.is_dir() and f.suffix[1:].isdecimal()]


def remove_parts(path: Path, keep: str | None = None) -> None:
    """Removes the folders of parts beside a checkpoint file, except the one that is named."""
    for folder in _folders(path):
        if folder.name != keep:
            shutil.rmtree(folder)


def _mapped(value: Any, change: Callable[[Any, str], Any], name: str = "") -> Any:
    """A nested state with `change(leaf, name)` for each leaf."""
    if isinstance(value, dict):
        return {key: _mapped(item, change, f"{name}/{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change, f"{name}/{i}") for i, item in enumerate(value))
    return change(value, name)
