"""What the person who runs the command sees and types while the page is served."""

from __future__ import annotations

import contextlib
import math
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

INTERVAL = 60.0
"""Seconds between two lines, at least."""
ENOUGH = 10
"""How many rankings it takes until the time left is estimated."""
RECENT = 30
"""How many of the last rankings the time left is estimated from."""


class Lines:
    """Prints how many rankings there are: the first one at once, then at most every minute, if there are more."""

    def __init__(
        self, done: int, wanted: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._wanted, self._say, self._clock = wanted, say, clock
        self._done = self._printed = done
        self._printed_at = -math.inf
        self._times: deque[float] = deque(maxlen=RECENT)

    def update(self, done: int, wanted: int) -> None:
        now = self._clock()
        self._times.extend([now] * (done - self._done))
        self._done, self._wanted = done, wanted
        if done == self._printed or (now - self._printed_at < INTERVAL and done < wanted):
            return
        self._printed, self._printed_at = done, now
        self._say(f"{datetime.now():%H:%M:%S} {done} of {wanted} rankings{self._left(now)}")

    def _left(self, now: float) -> str:
        if len(self._times) < ENOUGH or self._done >= self._wanted:
            return ""
        pace = (now - self._times[0]) / (len(self._times) - 1)
        return f", about {roughly(pace * (self._wanted - self._done))} left at this pace"


def rough(seconds: float) -> tuple[int, str]:
    """A duration to the minute, from two hours on to the hour: the number and its unit."""
    minutes = max(1, math.ceil(seconds / 60))
    return (minutes, "min") if minutes < 120 else (round(minutes / 60), "h")


def roughly(seconds: float) -> str:
    """A duration as text, such as "5 min"."""
    number, unit = rough(seconds)
    return f"{number} {unit}"


class Keyboard:
    """Whether Enter was pressed in this terminal since the object was created; never without a terminal."""

    def __init__(self) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError, ValueError, ImportError):
            import termios

            if sys.stdin.isatty():
                self._file = sys.stdin.fileno()
                if self._in_foreground():
                    termios.tcflush(self._file, termios.TCIFLUSH)  # what was typed before does not count

    def enter(self) -> bool:
        with contextlib.suppress(OSError):
            if self._file is not None and self._in_foreground() and select.select([self._file], [], [], 0)[0]:
                os.read(self._file, 1024)
                return True
        return False

    def _in_foreground(self) -> bool:
        """A process in the background that reads from its terminal would be stopped."""
        return self._file is not None and os.tcgetpgrp(self._file) == os.getpgrp()
