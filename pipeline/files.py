"""Helpers for files and JSON: atomic writes, JSON-compatible values, readable sizes."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
