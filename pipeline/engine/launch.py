"""Starts the processes of a run on this machine, watches them, and ends all when one ends badly.

They get torchrun's environment variables, and torchrun itself is what starts them over several machines. On one it
would print a page of its own for every error, and end with 1 whatever the error was.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import Interrupted, TutelageError

LAUNCHER, RECORD = "TUTELAGE_LAUNCHER", "TUTELAGE_FAILURE"
"""Environment variables of a process started here: its launcher's id, and where it writes why it failed."""
GRACE = 15.0
"""Seconds in which a process may end by itself once another has failed."""
LOOK = 0.1


def launch(count: int, arguments: Sequence[str], program: Sequence[str] = ()) -> None:
    """Runs this program with other arguments as `count` processes. Raises the first one's error, or `Interrupted`.

    Args:
        program: another program than this one. (Python is told not to look for modules beside the script or in the
            working directory: a user's data.py is not ours.)
    """
    program = program or (sys.executable, "-P", sys.argv[0])
    with tempfile.TemporaryDirectory(prefix="tutelage-") as folder:
        records = [Path(folder) / f"{rank}.json" for rank in range(count)]
        processes = _start(count, [*program, *arguments], records)
        try:
            failed = _watch(processes)
        except KeyboardInterrupt:
            _end(processes)
            raise _interrupted(records) from None
        finally:
            _end(processes)
        if failed:
            raise _cause(failed, processes, records)


def _start(count: int, command: Sequence[str], records: Sequence[Path]) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count))),
        LAUNCHER: str(os.getpid()),
    }
    # A session of their own: Ctrl-C reaches this process alone, which then ends them in good order.
    return [
        subprocess.Popen(
            list(command),
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), RECORD: str(records[rank])},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for rank in range(count)
    ]


def _watch(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Waits until all have ended well, or until one has not; returns the ranks that failed first."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed or None not in codes:
            return failed
        time.sleep(LOOK)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks those that still run to end, and makes them."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cause(
    failed: Sequence[int], processes: Sequence[subprocess.Popen[bytes]], records: Sequence[Path]
) -> TutelageError:
    """The first error. A rank whose peer has died fails too, of a broken connection, and is not the cause."""
    for rank in failed:
        code = processes[rank].returncode
        if code < 0:
            error = TutelageError(
                f"process {rank} of {len(processes)} was killed by {signal.Signals(-code).name}",
                hint="its state is kept: run the same command again to go on"
                + (" (the system kills when memory runs out)" if -code == signal.SIGKILL else ""),
            )
            error.exit_code = 128 - code
            return error
    found = [record for record in map(_read, records) if record]
    if not found:
        error = TutelageError(f"process {failed[0]} of {len(processes)} ended without a word")
        error.exit_code = processes[failed[0]].returncode
        return error
    first = min(found, key=lambda record: float(record["time"]))
    error = TutelageError(first["message"])
    error.exit_code = first["exit_code"]
    return error


def _interrupted(records: Sequence[Path]) -> TutelageError:
    """What rank 0 said when it was stopped."""
    said = _read(records[0])
    if said and said["exit_code"] == Interrupted.exit_code:
        return Interrupted(said["message"])
    return Interrupted("interrupted", hint="its state is kept: run the same command again to go on")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record


# --- In a process that was started here ---


def tell(error: BaseException) -> bool:
    """Leaves word of an error to the launcher, which prints the first one. False when there is no launcher."""
    path = os.environ.get(RECORD)
    if path is None:
        return False
    mine = isinstance(error, TutelageError)
    message = str(error) if mine else "".join(traceback.format_exception(error))
    code = error.exit_code if isinstance(error, TutelageError) else 1
    record = {"time": time.time(), "message": message, "exit_code": code}
    Path(path).write_text(json.dumps(record), encoding="utf-8")
    return True


def end_with_launcher() -> None:
    """Lets this process die when its launcher is gone: nobody would end it any more."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(1)
        os._exit(Interrupted.exit_code)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
