"""Translates failures of the system and of libraries that a user can cause into errors of this project."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path

from pipeline import invocation
from pipeline.errors import DiskFull, StageError, TutelageError
from pipeline.files import FULL
from pipeline.machine import out_of_memory

ERROR = "error.txt"
"""The file in a stage's folder with the traceback of its last failure."""

WRITE_FAILED = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|database or disk is full"
    rf"|os error ({'|'.join(str(number) for number in FULL)})\)"  # Rust: safetensors, tokenizers
    r"|inline_container\.cc.*(unexpected pos|write failed)|PytorchStreamWriter failed writing"  # torch.save
    r"|\d+ requested and \d+ written"  # numpy.ndarray.tofile: GGUF files
)
"""How libraries report the same without the system's error number."""

LIBRARIES = {
    "jinja2": (
        "a Jinja template (in a stage: the chat template) cannot be rendered",
        "fix the template (base.chat_template chooses another one), or the row that it refuses",
    ),
    "peft": ("peft refuses the adapter", "fix the recipe's lora sections"),
    "safetensors": (
        "a file of weights cannot be read or written",
        "run the stage again, or download the model again",
    ),
    "huggingface_hub": ("the Hugging Face Hub refused", "check the name, the network and the token"),
    "httpx": ("a server could not be reached", "check the address and the network, and run again"),
    "datasets": (
        "a data set cannot be prepared",
        "check that the file is complete and has the format of its extension",
    ),
    "pyarrow": (
        "a table cannot be read or written",
        "check that the file is complete and has the format of its extension",
    ),
    "sqlite3": ("a database cannot be read or written", "check that the file is complete and writable"),
}
"""Library -> what went wrong and what to do, for libraries whose exceptions come from a user's files, values or
network."""


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and all exceptions that led to it, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [current.__cause__, current.__context__, *getattr(current, "exceptions", ())]


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed for lack of space, including through libraries that wrap the system's error."""
    return any(
        (isinstance(link, OSError) and link.errno in FULL)
        or (not isinstance(link, TutelageError) and WRITE_FAILED.search(str(link)) is not None)
        for link in chain(error)
    )


def translate(error: Exception, doing: str, folder: Path | None = None) -> TutelageError | None:
    """The error of this project that describes a failure; None for a bug, which keeps its traceback.

    Args:
        doing: what was running, such as a stage's name.
        folder: where it was writing. The traceback of an error that a library raised is written there.
    """
    where = "" if folder is None else str(folder)
    if isinstance(error, DiskFull):
        return error
    if disk_is_full(error):
        return DiskFull(
            f"the disk is full: {doing} could not write its files",
            where=where or _file(error),
            hint="free space and run the same command again: it continues where it stopped",
        )
    if isinstance(error, TutelageError):
        return error
    explanation = _explain(error, doing)
    if explanation is None:
        return None
    what, hint = explanation
    log = _write_traceback(error, folder)
    return StageError(what, where=log or _file(error) or where, hint=hint)


def _explain(error: Exception, doing: str) -> tuple[str, str] | None:
    """What happened and what to do, for a failure that a user can cause; None for others."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if out_of_memory(error):
        return (
            f"{doing} ran out of memory: {reason}",
            f"`{invocation.command('plan')}` shows what each stage needs; use a smaller micro_batch_size (or "
            "auto), shorter texts, gradient checkpointing or base.quantization: nf4",
        )
    if isinstance(error, BrokenPipeError):
        return None  # the reader of the output is gone, so there is nobody to tell
    for library, (what, hint) in LIBRARIES.items():
        if any(kind.__module__.lstrip("_").partition(".")[0].startswith(library) for kind in type(error).__mro__):
            return f"{doing}: {what}: {reason}", hint
    if isinstance(error, ImportError):
        return (
            f"{doing} needs a package that is missing or does not load: {reason}",
            "install it into the same environment, or change the recipe value that needs it",
        )
    if isinstance(error, JSONDecodeError | UnicodeDecodeError):
        return f"{doing}: a file has invalid content: {reason}", "it was truncated or edited: create it again"
    # The system names the file, except for a failed read or write of an open one. An OSError without a file name
    # was raised by code.
    if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.EIO, errno.ESTALE)):
        return (
            f"{doing} could not read or write a file: {error.strerror or reason}",
            "check that it exists, and that this user may read and write it",
        )
    return None


def _file(error: Exception) -> str:
    """The file that an operating system's error is about."""
    names = [str(link.filename) for link in chain(error) if isinstance(link, OSError) and link.filename]
    return names[0] if names else ""


def _write_traceback(error: Exception, folder: Path | None) -> str:
    """Writes the traceback, in case it is a bug after all, and returns its place; empty if it cannot be written."""
    if folder is None or not folder.is_dir():
        return ""
    path = folder / ERROR
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return ""
    return f"{_file(error)} (traceback: {path})".lstrip()
