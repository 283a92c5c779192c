"""What `plan` and `status` print in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from pipeline_fakes import FakeStages
from rich.console import Console, RenderableType

from pipeline.cli.columns import Column, fit
from pipeline.cli.tables import memory_table, plan_table, status_table, total_time
from pipeline.engine.runner import Runner
from pipeline.files import about_seconds, readable_operations, readable_weights
from pipeline.memory.forecast import Forecast

Make = Callable[..., Runner]


def lines(shown: RenderableType, width: int = 80) -> list[str]:
    stream = StringIO()
    Console(file=stream, width=width).print(shown)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def words(row: str) -> list[str]:
    return row.split()


def test_columns_that_do_not_fit_are_left_out_whole() -> None:
    columns = [
        Column("stage", ["sft", "ppo"]),
        Column("empty", ["", ""]),
        Column("size", ["601 MB", "1.1 GB"], right=True, spare=1),
        Column("key", ["0123456789ab", "ba9876543210"], spare=2),
    ]
    table, left_out = fit(columns, 27)
    assert left_out == []
    assert lines(table, 27) == [
        "stage    size  key",
        "sft    601 MB  0123456789ab",
        "ppo    1.1 GB  ba9876543210",
    ]
    table, left_out = fit(columns, 26)
    assert left_out == ["key"]
    assert lines(table, 26) == ["stage    size", "sft    601 MB", "ppo    1.1 GB"]
    table, left_out = fit(columns, 5)
    assert left_out == ["size", "key"]
    assert lines(table, 5) == ["stage", "sft", "ppo"]


def test_a_first_plan_says_after_what_each_stage_runs(runner: Make, stages: FakeStages) -> None:
    assert lines(plan_table(runner().planner.plan(), 80)) == [
        "stage    action  why",
        "base     run     no earlier result",
        "data     run     no earlier result",
        "sft      run     after base and data",
        "collect  run     after base, data and sft",
        "rank     run     after data and collect",
        "reward   run     after base, data, sft and rank",
        "ppo      run     after base, data, sft and reward",
        "eval     run     after base, data, sft, reward and ppo",
        "export   run     after base, data, reward, ppo and eval",
    ]


def test_each_reason_has_a_line_and_long_ones_are_cut_unless_verbose(runner: Make, stages: FakeStages) -> None:
    runner().run()
    sets = (
        "seed=1",
        "data.demonstrations.task=venues data.demonstrations.size=11 data.system='" + "be kind " * 9 + "'",
    )
    steps = runner(*sets).planner.plan()
    short, full = lines(plan_table(steps, 80)), lines(plan_table(steps, 80, verbose=True))
    assert max(map(len, [*short, *full])) <= 80
    [cut] = [line for line in short if line.endswith("…")]
    assert cut.startswith('                 data.system null -> "be kind be kind')
    assert "data     run     changed: seed 0 -> 1" in short
    assert "                 data.demonstrations.size 10 -> 11" in short
    assert short[-1] == "--verbose prints the reasons in full."
    assert " ".join(["be kind"] * 9) in " ".join(line.strip() for line in full)
    assert not any("…" in line for line in full)


def test_a_note_of_several_stages_is_printed_once(
    runner: Make, stages: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner().run("sft")
    planner = runner().planner
    monkeypatch.setattr(type(planner), "_since", lambda *_: "not rerun although torch has changed")
    shown = lines(plan_table(planner.plan("sft"), 80))
    assert shown[-1] == "base, data, sft: not rerun although torch has changed"


def test_status_fits_into_80_columns_with_utc_in_the_header(runner: Make, stages: FakeStages) -> None:
    runner().run("reward")
    shown = lines(status_table(runner("sft.max_length=99").planner, 80))
    assert max(map(len, shown)) <= 80
    assert words(shown[0]) == ["stage", "state", "finished", "(UTC)", "took", "memory", "planned", "on", "disk"]
    rows = {words(line)[0]: words(line) for line in shown[1:10]}
    assert len(rows) == 9
    assert rows["base"][1] == "finished"
    assert rows["ppo"] == ["ppo", "missing"]
    assert shown[10] == "sft is stale: changed: sft.max_length 256 -> 99"
    wide = lines(status_table(runner().planner, 120))
    assert words(wide[0])[-1] == "key"
    empty = lines(status_table(runner("name=other seed=1").planner, 80))
    assert words(empty[0]) == ["stage", "state"], "no empty columns"


@pytest.mark.parametrize("sets", [(), ("hardware.memory=640MB",)])
@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_memory_table_has_the_essentials_and_verbose_what_fits(
    runner: Make, stages: FakeStages, sets: tuple[str, ...], width: int
) -> None:
    planner = runner(*sets).planner
    forecast = Forecast.of(planner.loaded)
    essentials = ["stage", "peak", "limit", "fits?"] if sets else ["stage", "peak"]
    short = lines(memory_table(forecast, planner, width), width)
    assert words(short[1]) == essentials
    assert all(len(words(line)) == len(words(short[2])) for line in short[2:])
    full = lines(memory_table(forecast, planner, width, verbose=True), width)
    assert max(map(len, full)) <= width
    assert words(full[1])[: len(essentials)] == essentials
    assert ("no room for:" in full[-1]) == (width < 200)
    assert " 0 M" not in " ".join(full)
    assert "e+" not in " ".join(full)


def test_times_come_from_earlier_runs(runner: Make, stages: FakeStages, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.engine import recording

    real = recording.Manifest
    monkeypatch.setattr(recording, "Manifest", lambda **values: real(**values | {"seconds": 100.0}))
    fresh = runner().planner
    assert total_time(Forecast.of(fresh.loaded), fresh, fresh.plan()) == "", "nothing is known yet"
    runner().run()
    planner = runner("ppo.kl.target=5").planner
    forecast = Forecast.of(planner.loaded, planner.latest("data"))
    assert "about 2 min" in lines(memory_table(forecast, planner, 80))[-1]
    assert total_time(forecast, planner, planner.plan()) == "3 of 9 stages to run: about 5 min"
    people = runner(
        "ppo.kl.target=5", "seed=1", "rank.source=app", "rank.app={annotators: [ann], overlap: 1}"
    ).planner
    assert total_time(Forecast.of(people.loaded), people, people.plan()) == "", "nobody knows how long people take"


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (readable_weights, 263_424, "0.26 M"),
        (readable_weights, 800, "0.0008 M"),
        (readable_weights, 134_515_008, "135 M"),
        (readable_weights, 7_241_732_096, "7.2 B"),
        (readable_operations, 2.6e12, "2.6 TFLOP"),
        (readable_operations, 999, "999 FLOP"),
        (readable_operations, 3.4e11, "340 GFLOP"),
        (readable_operations, 5e19, "50 EFLOP"),
        (about_seconds, 0, "about 5 s"),
        (about_seconds, 43, "about 45 s"),
        (about_seconds, 58, "about 1 min"),
        (about_seconds, 3569, "about 59 min"),
        (about_seconds, 3571, "about 1 h 00 min"),
        (about_seconds, 8000, "about 2 h 15 min"),
    ],
)
def test_quantities_are_readable(function: Callable[[float], str], value: Any, text: str) -> None:
    assert function(value) == text
