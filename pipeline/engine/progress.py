"""The progress display of a running stage: live on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pipeline.engine import stage
from pipeline.files import about_seconds, readable_seconds

LOG_INTERVAL = 10.0
"""Seconds between plain log lines."""


def _numbers(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in numbers.items())


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"


def print_line(console: Console, text: str) -> None:
    """Prints plain text. On a terminal it is wrapped between words, unless it holds a command to copy."""
    if console.is_terminal and "`" not in text:
        words = textwrap.TextWrapper(
            console.width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
        )
        text = "\n".join("\n".join(words.wrap(line)) for line in text.split("\n"))
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else _rate(speed), style="progress.data.speed")


class _Bars(Progress):
    """Bars of loops, between a line with the time left and one with the numbers of each loop that has any: beside
    the bars they would not fit into 80 columns."""

    def __init__(self, left: Callable[[], str], *columns: ProgressColumn, **options: Any) -> None:
        self._left = left
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterator[RenderableType]:
        if left := self._left():
            yield Text(left, style="dim")
        yield from super().get_renderables()
        for task in self.tasks:
            if numbers := task.fields["numbers"]:
                yield Text(f"  {numbers}", no_wrap=True, overflow="ellipsis")


class Display:
    """Opens progress displays and prints lines above them. One display serves a whole command.

    A loop of unknown length reads rows; it is shown when it has ended, or takes long.
    """

    def __init__(self, console: Console) -> None:
        self.time_left: Callable[[], float | None] = lambda: None
        """Seconds until the command ends, as far as they can be estimated."""
        self._console = console
        self._live: Progress | None = None
        self._loops: list[_PlainLoop] = []

    def say(self, text: str) -> None:
        """One plain line."""
        print_line(self._console, text)

    def left(self) -> str:
        """The time left in total, as text; empty if it is not known. Never less than an open loop's own."""
        seconds = self.time_left()
        if seconds is None:
            return ""
        return f"{about_seconds(max([seconds, *(loop.seconds_left or 0.0 for loop in self._loops)]))} left in total"

    def close(self) -> None:
        """Releases the terminal, including loops that an exception left open."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        while self._loops:
            self._loops.pop().end()

    def open(
        self, description: str, total: int | None = None, *, done: int = 0
    ) -> AbstractContextManager[stage.Progress]:
        """A display of one loop. `done` of its `total` steps were finished earlier, in an interrupted run."""
        if self._console.is_terminal:
            return self._open_live(description, total, done)
        return self._open_plain(description, total, done)

    @contextmanager
    def _open_live(self, description: str, total: int | None, done: int) -> Iterator[stage.Progress]:
        outermost = self._live is None
        if self._live is None:
            self._live = _Bars(
                self.left,
                TextColumn("[progress.description]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                _RateColumn(),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
            self._live.start()
        live = self._live
        task = live.add_task(escape(description), total=total, completed=done, numbers="")
        plain = _PlainLoop(description, total, done, self)
        self._loops.append(plain)
        try:
            yield _LiveLoop(live, task, plain)
        finally:
            live.remove_task(task)
            if outermost and self._live is live:
                self.close()
            self._end(plain)

    @contextmanager
    def _open_plain(self, description: str, total: int | None, done: int) -> Iterator[stage.Progress]:
        loop = _PlainLoop(description, total, done, self)
        self._loops.append(loop)
        loop.begin()
        try:
            yield loop
        finally:
            self._end(loop)

    def _end(self, loop: _PlainLoop) -> None:
        """Ends a loop, unless `close` has: a generator that an exception left open may be collected much later."""
        if loop in self._loops:
            self._loops.remove(loop)
            loop.end()


class _PlainLoop:
    """A loop as log lines: at the start, about every ten seconds, and at the end."""

    def __init__(self, description: str, total: int | None, done: int, display: Display) -> None:
        self._description, self._total, self._display = description, total, display
        self._before = self._count = done
        self._numbers: dict[str, float] = {}
        self._started = self._printed = time.monotonic()

    def begin(self) -> None:
        if self._total is not None:
            self._line("starts")

    def advance(self, steps: int = 1, **numbers: float) -> None:
        self.count(steps, numbers)
        if time.monotonic() - self._printed >= LOG_INTERVAL:
            self._line(*self._speed(), self._display.left(), _numbers(self._numbers))

    def count(self, steps: int, numbers: dict[str, float]) -> None:
        self._count += steps
        self._numbers |= numbers

    def end(self) -> None:
        elapsed = time.monotonic() - self._started
        if self._total is not None:
            self._line(f"in {readable_seconds(elapsed)}", *self._speed()[:1], _numbers(self._numbers))
        elif self._count or elapsed >= 1:
            self._line(*([f"in {readable_seconds(elapsed)}"] if elapsed >= 1 else []))

    @property
    def _per_second(self) -> float | None:
        elapsed, steps = time.monotonic() - self._started, self._count - self._before
        return steps / elapsed if steps and elapsed else None

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before the first step and where the total is not known."""
        rate = self._per_second
        return None if rate is None or self._total is None else max(0, self._total - self._count) / rate

    def _speed(self) -> list[str]:
        """The rate and, where the total is known, the time left."""
        speed = [] if self._per_second is None else [_rate(self._per_second)]
        if left := self.seconds_left:
            speed.append(f"{readable_seconds(left)} left")
        return speed

    def _line(self, *parts: str) -> None:
        self._printed = time.monotonic()
        if self._total is not None:
            first = [self._description, f"{self._count}/{self._total}"]
        elif self._count:
            first = [f"{self._description}: {self._count:,} row{'' if self._count == 1 else 's'}"]
        else:
            first = [self._description]
        text = "  ".join(part for part in (*first, *parts) if part)
        self._display.say(f"{datetime.now():%H:%M:%S} {text}")


class _LiveLoop:
    """A loop as a bar. It ends with the same line as a plain loop."""

    def __init__(self, live: Progress, task: TaskID, plain: _PlainLoop) -> None:
        self._live, self._task, self._plain = live, task, plain

    def advance(self, steps: int = 1, **numbers: float) -> None:
        self._plain.count(steps, numbers)
        if numbers:
            self._live.update(self._task, advance=steps, numbers=_numbers(numbers))
        else:
            self._live.update(self._task, advance=steps)
