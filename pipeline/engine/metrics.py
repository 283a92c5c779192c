"""A stage's `metrics.jsonl`: one JSON object a line, `{"step": ..., "time": ..., name: value, ...}`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import StageError
from pipeline.files import jsonable, write_atomic


class Tracker(Protocol):
    """Where metrics go besides the file."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """Appends to `metrics.jsonl` and tells the trackers.

    `time` is seconds of work: after an interruption it goes on from the last line that was kept. NaN and
    infinities are written as null.
    """

    def __init__(self, path: Path, trackers: Sequence[Tracker] = ()) -> None:
        self._path = path
        self._trackers = trackers
        self._rewrite(list(read_metrics(path)))  # drops the half line that a killed process may have left

    def log(self, step: int, **values: Any) -> None:
        values = {name: jsonable(value) for name, value in values.items()}
        line = {"step": int(step), "time": round(time.monotonic() - self._started, 3), **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(step, numbers)

    def truncate(self, step: int) -> None:
        """Forgets the lines after `step`: a resumed run writes them again."""
        self._rewrite([line for line in read_metrics(self._path) if line["step"] <= step])

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()

    def _rewrite(self, lines: Sequence[dict[str, Any]]) -> None:
        self._started = time.monotonic() - max((line["time"] for line in lines), default=0.0)
        write_atomic(self._path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, less a last one that was cut off. None when it is missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


class TensorBoard:
    """Event files in a folder, for `tensorboard --logdir runs`."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self._writer: Any = SummaryWriter(log_dir=str(folder))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A trackio run, for `trackio show`."""

    def __init__(self, project: str, name: str) -> None:
        try:
            import trackio
        except ImportError:
            raise _missing("trackio") from None
        self._run: Any = trackio.init(project=project, name=name, resume="allow")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def _missing(package: str) -> StageError:
    return StageError(
        f"report_to names {package}, which is not installed",
        hint=f'pip install "tutelage[{package}]", or take it out of report_to',
    )


def open_trackers(report_to: Sequence[str], folder: Path, project: str, name: str) -> list[Tracker]:
    """The trackers that a recipe names. Raises `StageError` when one's package is missing."""
    made: list[Tracker] = []
    for tracker in report_to:
        made.append(TensorBoard(folder / "tensorboard") if tracker == "tensorboard" else Trackio(project, name))
    return made
