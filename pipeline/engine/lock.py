"""One process at a time works in a stage's folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import StageError


@contextmanager
def locked(
    folder: Path,
    *,
    wait: bool,
    say: Callable[[str], None],
    name: str = "lock",
    what: str = "this stage",
    hint: str = "wait for it to end",
) -> Iterator[None]:
    """Holds the folder's exclusive lock. The system releases it when the process dies.

    Args:
        hint: what to do when another process holds it.

    Raises:
        StageError: another process, which it names, holds the lock, unless `wait`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    holder_file = folder / f"{name}.pid"  # some systems let nobody else read a locked file
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = f"process {_read(holder_file) or 'unknown'}"
        if not wait:
            raise StageError(
                f"{holder} is at work on {what}",
                where=str(folder),
                hint=hint,
            ) from None
        say(f"waiting for {holder}, which is at work in {folder}")
        lock.acquire()
    try:
        holder_file.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
