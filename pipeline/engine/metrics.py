"""A stage's `metrics.jsonl`: one JSON object a line, `{"step": ..., "time": ..., name: value, ...}`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import StageError
from pipeline.files import jsonable, write_atomic

EXTRAS = ("tensorboard", "trackio", "wandb", "mlflow")
"""Trackers that are optional dependencies of this package."""


class Tracker(Protocol):
    """Where metrics go besides the file: an `accelerate.tracking.GeneralTracker`."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class MetricsFile:
    """Appends to `metrics.jsonl` and passes the numbers to the trackers.

    `time` is `seconds`. NaN and infinities are written as null.
    """

    def __init__(self, path: Path, trackers: Sequence[Tracker] = ()) -> None:
        self._path = path
        self._trackers = trackers
        self._started = time.monotonic()
        lines = list(read_metrics(path))
        self._before = _last_time(lines)
        self._rewrite(lines)  # drops the half line that a killed process may have left

    @property
    def seconds(self) -> float:
        """Of work: those of this process, and those up to the last line that was kept of an interrupted one."""
        return self._before + time.monotonic() - self._started

    def log(self, step: int, **values: Any) -> None:
        values = {name: jsonable(value) for name, value in values.items()}
        line = {"step": int(step), "time": round(self.seconds, 3), **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def truncate(self, step: int) -> None:
        """Forgets the lines after `step`: a resumed run writes them again."""
        lines = [line for line in read_metrics(self._path) if line["step"] <= step]
        # Lines of an earlier phase of this process, whose time already counts, may be among them.
        self._before = min(self._before, _last_time(lines))
        self._rewrite(lines)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.finish()

    def _rewrite(self, lines: Sequence[dict[str, Any]]) -> None:
        write_atomic(self._path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _last_time(lines: Sequence[dict[str, Any]]) -> float:
    return max((line["time"] for line in lines), default=0.0)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, less a last one that was cut off. None when it is missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def open_trackers(report_to: Sequence[str], folder: Path, project: str, name: str) -> list[Tracker]:
    """The trackers that a recipe names, as accelerate has them (`accelerate.tracking`), each with an open run.

    Args:
        folder: where those that write files put them.
        name: of the run in the project.

    Raises:
        StageError: a tracker's package is missing, or it cannot start.
    """
    if not report_to:
        return []
    from accelerate import tracking

    # Accelerate's own logger, and its methods for the main process only, set up its process state. That would fix
    # the number of processes before a stage starts its own. Only the first process opens trackers anyway.
    tracking.logger = logging.getLogger(tracking.__name__)
    trackers: list[Tracker] = []
    for kind in report_to:
        tracker = tracking.LOGGER_TYPE_TO_CLASS[kind](**_arguments(kind, folder, project, name))
        tracker.main_process_only = False
        try:
            tracker.start()
        except Exception as error:
            if isinstance(error, ImportError) and (error.name or "").startswith(kind):
                raise _missing(kind) from None
            raise StageError(
                f"report_to names {kind}, which cannot start: {error}",
                hint=f"set up {kind}, or take it out of report_to",
            ) from error
        trackers.append(tracker)
    return trackers


def _arguments(kind: str, folder: Path, project: str, name: str) -> dict[str, Any]:
    """What each tracker calls the project, the run and the folder. A resumed stage goes on with its run where the
    tracker can."""
    match kind:
        case "tensorboard":
            return {"run_name": "tensorboard", "logging_dir": folder}
        case "trackio":
            return {"run_name": project, "name": name, "resume": "allow"}
        case "wandb":
            return {"run_name": project, "name": name, "id": name, "resume": "allow", "dir": str(folder)}
        case "mlflow":
            return {"experiment_name": project, "run_name": name}
        case "aim":
            return {"run_name": name, "logging_dir": folder, "experiment": project}
        case "clearml":
            return {"run_name": name, "project_name": project, "task_name": name}
        case "dvclive":
            return {"run_name": name, "dir": str(folder / "dvclive"), "resume": True}
        case "swanlab":
            return {"run_name": project, "experiment_name": name, "logdir": str(folder / "swanlab")}
    return {"run_name": project}


def _missing(kind: str) -> StageError:
    package = f'"tutelage[{kind}]"' if kind in EXTRAS else kind
    return StageError(
        f"report_to names {kind}, which is not installed",
        hint=f"pip install {package}, or take it out of report_to",
    )
