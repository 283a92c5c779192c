"""Failures of the system and of other libraries as errors of this project, for all that a user can cause."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path

from pipeline.errors import DiskFull, StageError, TutelageError
from pipeline.machine import out_of_memory

ERROR = "error.txt"
"""The traceback of a stage's last failure, in its folder."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of the system: no space, the user's quota reached, or a file larger than the system allows."""

WRITE_FAILED = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|database or disk is full"
    rf"|os error ({'|'.join(str(number) for number in FULL)})\)"  # Rust: safetensors, tokenizers
    r"|inline_container\.cc.*(unexpected pos|write failed)|PytorchStreamWriter failed writing"  # torch.save
    r"|\d+ requested and \d+ written"  # numpy.ndarray.tofile: GGUF files
)
"""How libraries say the same without the system's number."""

LIBRARIES = {
    "jinja2": (
        "a Jinja template (in a stage: the chat template) cannot be rendered",
        "correct the template (base.chat_template names another one), or the row that it refuses",
    ),
    "peft": ("peft refuses the adapter", "correct the recipe's lora sections"),
    "safetensors": ("a file of weights cannot be read or written", "make the artifact, or fetch the model, again"),
    "huggingface_hub": ("the Hugging Face Hub refused", "check the name, the network and the token"),
    "httpx": ("a server could not be reached", "check the address and the network, and run again"),
    "datasets": ("a data set cannot be prepared", "check that the file is whole and of the kind its name says"),
    "pyarrow": ("a table cannot be read or written", "check that the file is whole and of the kind its name says"),
    "sqlite3": ("a database cannot be read or written", "check that the file is whole and that it can be written"),
}
"""Libraries whose exceptions come from a user's files, values or network: what went wrong, and what to do."""


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that led to it, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__, *getattr(found, "exceptions", ())]


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room, also through libraries that wrap the system's error."""
    return any(
        (isinstance(found, OSError) and found.errno in FULL)
        or (not isinstance(found, TutelageError) and WRITE_FAILED.search(str(found)) is not None)
        for found in chain(error)
    )


def translate(error: Exception, doing: str, folder: Path | None = None) -> TutelageError | None:
    """The error of this project that says what happened; None for a bug, which keeps its traceback.

    Args:
        doing: what was at work, such as a stage's name.
        folder: where it was writing. What is kept there lets a stage go on. The traceback of an error that another
            library raised is written there.
    """
    where = "" if folder is None else str(folder)
    if isinstance(error, DiskFull):
        return error
    if disk_is_full(error):
        return DiskFull(
            f"the disk is full: {doing} could not write its files",
            where=where or _file(error),
            hint="free space and run the same command again: it goes on where it stopped",
        )
    if isinstance(error, TutelageError):
        return error
    found = _explain(error, doing)
    if found is None:
        return None
    what, hint = found
    log = _write_traceback(error, folder)
    return StageError(what, where=log or _file(error) or where, hint=hint)


def _explain(error: Exception, doing: str) -> tuple[str, str] | None:
    """What happened and what to do, for what a user can cause."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if out_of_memory(error):
        return (
            f"{doing} ran out of memory: {reason}",
            "`tutelage plan` shows what each stage needs; a smaller micro_batch_size (or auto), shorter texts, "
            "gradient checkpointing or base.quantization: nf4 need less",
        )
    if isinstance(error, BrokenPipeError):
        return None  # whoever read the output has gone: nothing to say, and nobody to say it to
    for library, (what, hint) in LIBRARIES.items():
        if any(kind.__module__.lstrip("_").partition(".")[0].startswith(library) for kind in type(error).__mro__):
            return f"{doing}: {what}: {reason}", hint
    if isinstance(error, ImportError):
        return (
            f"{doing} needs a package that is missing or does not load: {reason}",
            "install it into the same environment, or change the value that asks for it",
        )
    if isinstance(error, JSONDecodeError | UnicodeDecodeError):
        return f"{doing}: a file does not hold what it should: {reason}", "it was cut off or edited: make it again"
    # The system names the file, but for a failed read or write of an open one; what names none, code has raised.
    if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.EIO, errno.ESTALE)):
        return (
            f"{doing} could not read or write a file: {error.strerror or reason}",
            "check that it is there, and that this user may read and write it",
        )
    return None


def _file(error: Exception) -> str:
    """The file that an operating system's error is about."""
    names = [str(found.filename) for found in chain(error) if isinstance(found, OSError) and found.filename]
    return names[0] if names else ""


def _write_traceback(error: Exception, folder: Path | None) -> str:
    """For a report of what may be a bug after all; empty where it cannot be written."""
    if folder is None or not folder.is_dir():
        return ""
    path = folder / ERROR
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return ""
    return f"{_file(error)} (traceback: {path})".lstrip()
