"""One process at a time works in a stage's folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StageError


@contextmanager
def locked(
    folder: Path, *, wait: bool, say: Callable[[str], None], name: str = "lock", what: str = "this stage"
) -> Iterator[None]:
    """Holds the folder's exclusive lock; the system releases it should the process die.

    Raises `StageError` that names the holder when another process has it, unless `wait`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = f"process {file.read().strip() or 'unknown'}"
            if not wait:
                raise StageError(
                    f"{holder} is at work on {what}",
                    where=str(folder),
                    hint="wait for it to end, or give --wait",
                ) from None
            say(f"waiting for {holder}, which is at work in {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
