from __future__ import annotations

import re
import time
from io import StringIO
from typing import Any

import pytest
from pipeline_fakes import Lines
from rich.console import Console

from pipeline.engine import progress
from pipeline.engine.progress import Display


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_at_the_start_every_ten_seconds_and_at_the_end(clock: list[float]) -> None:
    display = Lines()
    with display.open("ppo", total=30) as bar:
        for step in range(30):
            clock[0] += 1
            bar.advance(reward=step / 10, kl=0.5)
    lines = [line.split(maxsplit=1)[1] for line in display.text.splitlines()]
    assert lines == [
        "ppo  0/30  starts",
        "ppo  10/30  1.0/s  20 s left  reward 0.9  kl 0.5",
        "ppo  20/30  1.0/s  10 s left  reward 1.9  kl 0.5",
        "ppo  30/30  1.0/s  reward 2.9  kl 0.5",
        "ppo  30/30  in 30 s  1.0/s  reward 2.9  kl 0.5",
    ]


def test_what_was_done_before_does_not_count_for_the_rate(clock: list[float]) -> None:
    display = Lines()
    with display.open("sft", total=100, done=90) as bar:
        clock[0] += 20
        bar.advance(1)
    assert "sft  91/100  3.0/min  3 min 00 s left" in display.text


def test_a_loop_of_unknown_length(clock: list[float]) -> None:
    display = Lines()
    with display.open("reading") as bar:
        clock[0] += 2
        bar.advance(10)
    assert display.text.splitlines()[-1].endswith("reading: 10 rows  in 2 s")


def test_a_loop_that_counts_nothing_is_shown_only_if_it_takes_long(clock: list[float]) -> None:
    display = Lines()
    with display.open("check sft"):
        clock[0] += 0.5
    assert display.text == ""
    with display.open("check sft"):
        clock[0] += 3
    assert display.text.endswith("check sft  in 3 s\n")
    with display.open("reading rankings") as bar:
        bar.advance(1, read=3)
    assert display.text.endswith("reading rankings: 1 row\n")


def test_the_time_left_in_total_is_in_the_lines_of_ten_seconds(clock: list[float]) -> None:
    display = Lines()
    display.time_left = lambda: 300 - clock[0]
    with display.open("ppo", total=30) as bar:
        for _ in range(12):
            clock[0] += 1
            bar.advance(kl=0.5)
    lines = [line.split(maxsplit=1)[1] for line in display.text.splitlines()]
    assert lines[1:] == [
        "ppo  10/30  1.0/s  20 s left  about 5 min left in total  kl 0.5",
        "ppo  12/30  in 12 s  1.0/s  kl 0.5",
    ]


def test_the_time_left_in_total_is_at_least_that_of_the_loop(clock: list[float]) -> None:
    display = Lines()
    display.time_left = lambda: 300 - clock[0]
    with display.open("ppo", total=30) as bar:
        clock[0] += 60
        bar.advance()
    assert "29 min 00 s left  about 29 min left in total" in display.text


def test_the_live_display_has_a_line_with_the_time_left_in_total() -> None:
    stream = StringIO()
    display = Display(Console(file=stream, force_terminal=True, width=80))
    with display.open("sft", total=2) as bar:
        bar.advance()
    assert "in total" not in stream.getvalue()
    display.time_left = lambda: 300.0
    with display.open("ppo", total=2) as bar:
        bar.advance()
    assert "about 5 min left in total" in stream.getvalue()


def test_the_bars_fit_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = StringIO()
    display = Display(Console(file=stream, force_terminal=True, width=80, color_system=None))
    with display.open("reward: held-out rankings", total=10_000) as bar:
        bar.advance(5_000, scores=1.236, kl=0.9824, length=15.23, entropy=0.8103)
        assert display._live is not None
        time.sleep(0.2)
        display._live.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    [*_, bars] = [line.rstrip() for line in shown if "5000/10000" in line and ":" not in line[:3]]
    assert max(map(len, shown[:-1])) <= 80
    assert "…" not in bars
    assert "  scores 1.236  kl 0.9824  length 15.23  entropy 0.8103" in "\n".join(shown)


def test_lines_are_wrapped_between_words_on_a_terminal_only() -> None:
    def printed(text: str, **options: Any) -> list[str]:
        stream = StringIO()
        Display(Console(file=stream, width=20, **options)).say(text)
        return stream.getvalue().splitlines()

    text = "twenty columns hold few words"
    assert printed(text, force_terminal=True) == ["twenty columns hold", "few words"]
    assert printed(text) == [text], "a log file"
    path = "report: runs/a/path/of/many/columns"
    assert printed(path, force_terminal=True) == ["report:", "runs/a/path/of/many/columns"]
    command = "again: `tutelage run --force --set seed=1`"
    assert printed(command, force_terminal=True) == [command]


def test_text_is_not_taken_for_markup() -> None:
    display = Lines()
    display.say("a [bold]list[/bold] [1, 2]")
    assert display.text == "a [bold]list[/bold] [1, 2]\n"


def test_the_live_display_shows_numbers_and_leaves_one_line_behind() -> None:
    stream = StringIO()
    display = Display(Console(file=stream, force_terminal=True, width=150))
    with display.open("ppo [x]", total=2) as outer:
        with display.open("inner", total=1) as inner:
            inner.advance()
        display.say("above")
        outer.advance(kl=1.5)
    text = stream.getvalue()
    for part in ("ppo [x]", "inner", "above", "kl 1.5", "1/2"):
        assert part in text
    assert text.rstrip().splitlines()[-1].count("ppo [x]  1/2  in 0 s") == 1


def test_close_ends_a_loop_that_was_left_open() -> None:
    display = Display(Console(file=StringIO(), force_terminal=True))
    left_open = display.open("a", total=1)
    left_open.__enter__()
    display.close()
    with display.open("b", total=1) as bar:
        bar.advance()
    assert left_open.__exit__(None, None, None) is not True


def test_an_error_ends_the_display_so_that_another_can_start() -> None:
    display = Display(Console(file=StringIO(), force_terminal=True))
    with pytest.raises(ValueError, match="stop"), display.open("a", total=1):
        raise ValueError("stop")
    with display.open("b", total=1) as bar:
        bar.advance()
