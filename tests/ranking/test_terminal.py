"""The lines that the operator sees while people rank, and the key that ends it."""

from __future__ import annotations

import os
import re

import pytest

from ranking.terminal import Keyboard, Lines, roughly


def test_lines_are_few_and_estimate_only_from_enough_rankings() -> None:
    printed: list[str] = []
    clock = [0.0]
    lines = Lines(0, 100, printed.append, clock=lambda: clock[0])
    for second in range(601):
        clock[0] = float(second)
        lines.update(second // 20, 100)  # three per minute, 30 in ten minutes
    assert [re.sub(r"^\S+ ", "", line) for line in printed[:3]] == [
        "1 of 100 rankings",
        "4 of 100 rankings",
        "7 of 100 rankings",
    ]
    assert len(printed) == 10
    assert printed[3].endswith("10 of 100 rankings, about 30 min left at this pace")
    for second in range(601, 4000):  # nothing changes: nothing is printed
        clock[0] = float(second)
        lines.update(30, 100)
    assert len(printed) <= 11
    lines.update(100, 100)
    assert printed[-1].endswith("100 of 100 rankings")
    assert (roughly(10), roughly(3601), roughly(92 * 3600)) == ("1 min", "61 min", "92 h")


def test_enter_is_read_from_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert not Keyboard().enter()
    terminal, child = os.openpty()
    with os.fdopen(child) as stdin, os.fdopen(terminal, "wb", buffering=0) as typed:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr(os, "tcgetpgrp", lambda file: os.getpgrp())
        typed.write(b"typed before\n")
        keyboard = Keyboard()
        assert not keyboard.enter()
        typed.write(b"\n")
        assert keyboard.enter()
        assert not keyboard.enter()
        monkeypatch.setattr(os, "tcgetpgrp", lambda file: os.getpgrp() + 1)  # in the background
        typed.write(b"\n")
        assert not keyboard.enter()
