"""Helpers for files and JSON: atomic writes, JSON-compatible values, readable sizes."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.language import translate

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""System errors: no space left, the user's quota reached, or a file larger than the system allows."""


def write_atomic(path: Path, text: str) -> None:
    """Replaces a file in one step: after a crash it has either the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def remove_incomplete_line(file: Path) -> None:
    """Removes an incomplete last line, which an append leaves that was killed or ran out of space."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        with file.open("rb+") as out:
            out.truncate(whole)


def need_folder(folder: Path, what: str, hint: str) -> None:
    """Creates the folder that files will be written to, before the work that makes them.

    Only its last part is created, because a longer path that does not exist is a misspelt one, or on a disk that is
    not mounted.

    Args:
        what: what it holds, for the message, such as "runs".
        hint: how to choose another one.

    Raises `RecipeError` when it cannot be created or written to.
    """
    parts = [folder, *folder.parents]
    existing = next(part for part in parts if part.exists())
    if not existing.is_dir():
        raise RecipeError(f"cannot write {what} to {folder}: {existing} is not a folder", hint=hint)
    if existing != folder and existing != folder.parent:
        raise RecipeError(
            f"cannot write {what} to {folder}: there is no folder {parts[parts.index(existing) - 1]}",
            hint=f"create {folder.parent} (or mount its disk), or {hint}",
        )
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in FULL:
            raise
        reason = error.strerror or str(error)
        if error.errno == errno.ENOENT:  # such as /proc, where nothing can be created
            reason = "no file can be created there"
        raise RecipeError(f"cannot write {what} to {folder}: {reason}", hint=hint) from None


def need_file(file: Path, what: str, hint: str) -> None:
    """The same for a single file that will be written."""
    if file.is_dir():
        raise RecipeError(
            f"cannot write {what} to {file}: it is a folder", hint=f"name a file in it, such as {file / what}"
        )
    need_folder(file.parent, what, hint)


def sync_folder(path: Path) -> None:
    """Flushes a folder's names, or a file's content, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_below(folder: Path) -> None:
    """Flushes all files below a folder to disk."""
    for path in [folder, *folder.rglob("*")]:
        sync_folder(path)


def jsonable(value: Any) -> Any:
    """The value in strict JSON types: arrays and tensors as numbers, NaN and infinities as null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def canonical(value: Any) -> str:
    """The canonical JSON text of a value, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def folder_size(path: Path) -> int:
    """Bytes in all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def readable_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def readable_weights(count: float) -> str:
    """ "0.26 M", "135 M", "7.2 B"."""
    return _two_digits(count / 1e9, "B") if count >= 1e9 else _two_digits(count / 1e6, "M")


def readable_operations(count: float) -> str:
    """Floating-point operations: "2.6 TFLOP"."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if count < 1000:
            return _two_digits(count, f"{prefix}FLOP")
        count /= 1000
    return _two_digits(count, "EFLOP")


def _two_digits(value: float, unit: str) -> str:
    return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"


def about_seconds(seconds: float) -> str:
    """An estimate, rounded: "about 25 s", "about 7 min", "about 2 h 15 min"."""
    if seconds < 55:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    if seconds < 3570:
        return f"about {max(1, round(seconds / 60))} min"
    hours, minutes = divmod(5 * round(seconds / 300), 60)
    return f"about {hours} h {minutes:02d} min"


def readable_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return translate("{hours} h {minutes:02d} min", hours=hours, minutes=minutes)
    if minutes:
        return translate("{minutes} min {rest:02d} s", minutes=minutes, rest=rest)
    return translate("{rest} s", rest=rest)
