"""Starts the processes of a run on this machine, watches them, and ends all of them when one fails.

They get torchrun's environment variables; on several machines torchrun itself starts them. On one machine torchrun
would print a page for every error, and exit with 1 whatever the error was.
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
"""Environment variables of a process started here: its launcher's process id, and the file for the error it fails
with."""
GRACE = 15.0
"""Seconds that a process has to end by itself once another has failed."""
POLL_INTERVAL = 0.1
"""Seconds between two checks of the processes."""


def launch(count: int, arguments: Sequence[str], program: Sequence[str] = ()) -> None:
    """Runs this program with other arguments as `count` processes. Raises the first error, or `Interrupted`.

    Args:
        program: another program than this one. (By default -P keeps Python from importing modules beside the script
            or in the working directory, such as a user's data.py.)
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
    # In sessions of their own, so that Ctrl-C reaches only this process, which then ends them in order.
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
    """Waits until all processes have succeeded or one has failed; returns the numbers of those that failed
    first."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed or None not in codes:
            return failed
        time.sleep(POLL_INTERVAL)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Terminates the processes that still run, and kills those that do not end in time."""
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
    """The first error. Processes whose peer has died fail too, with a broken connection, but are not the cause."""
    for rank in failed:
        code = processes[rank].returncode
        if code < 0:
            error = TutelageError(
                f"process {rank} of {len(processes)} was killed by {signal.Signals(-code).name}",
                hint="its state is kept: run the same command again to continue"
                + (" (the system kills processes when memory runs out)" if -code == signal.SIGKILL else ""),
            )
            error.exit_code = 128 - code
            return error
    failures = [record for record in map(_read, records) if record]
    if not failures:
        error = TutelageError(
            f"process {failed[0]} of {len(processes)} exited with code {processes[failed[0]].returncode} and no "
            "message"
        )
        error.exit_code = processes[failed[0]].returncode
        return error
    first = min(failures, key=lambda record: float(record["time"]))
    error = TutelageError(first["message"])
    error.exit_code = first["exit_code"]
    return error


def _interrupted(records: Sequence[Path]) -> TutelageError:
    """The message of the first process when it was interrupted."""
    record = _read(records[0])
    if record and record["exit_code"] == Interrupted.exit_code:
        return Interrupted(record["message"])
    return Interrupted("interrupted", hint="its state is kept: run the same command again to continue")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record


# --- In a process that was started here ---


def report_failure(error: BaseException) -> bool:
    """Writes an error for the launcher, which prints the first one. Returns False when there is no launcher."""
    path = os.environ.get(RECORD)
    if path is None:
        return False
    for_users = isinstance(error, TutelageError)
    message = str(error) if for_users else "".join(traceback.format_exception(error))
    code = error.exit_code if isinstance(error, TutelageError) else 1
    record = {"time": time.time(), "message": message, "exit_code": code}
    Path(path).write_text(json.dumps(record), encoding="utf-8")
    return True


def end_with_launcher() -> None:
    """Ends this process when its launcher is gone, since nobody else would."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(1)
        os._exit(Interrupted.exit_code)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
