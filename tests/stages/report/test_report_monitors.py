"""The report's section on training monitors, and where its numbers come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun, build
from pipeline_fakes import FakeStages

from pipeline import wording
from pipeline.engine.runner import Runner
from stages.report import monitors, sources

EVENT = {
    "rule": "length-grows",
    "update": 4,
    "last": 9,
    "updates": 6,
    "symptom": "responses take 33 tokens, <b>19</b> at first",
    "cause": "the reward model takes longer for better",
    "hint": "add rankings",
}
STOPPED = EVENT | {"rule": "stopped", "update": 16, "last": 16, "symptom": "stopped: the judge fell from 3 to 2"}


class MonitoredRun(FakeRun):
    """As `FakeRun`, with a PPO stage that has training monitors."""

    events: tuple[dict[str, Any], ...] = (EVENT, STOPPED)
    metrics: dict[str, Any] = {  # noqa: RUF012
        "judge": "venues",
        "selected_update": 8,
        "stopped_at": 16,
        "planned_updates": 60,
    }

    def _ppo(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        made = super()._ppo(config, inputs, out, ctx)
        looks = [look | {"prompts": [], "responses": [], "judge": -0.1} for look in self.evaluation["along"]]
        (out / "evaluations.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
        (out / "alerts.jsonl").write_text("".join(json.dumps(event) + "\n" for event in self.events))
        return made | self.metrics


@pytest.fixture
def monitored(stages: FakeStages, runner: Callable[..., Runner]) -> MonitoredRun:
    return MonitoredRun(stages, runner)


def test_alerts_early_stopping_and_the_selected_policy_are_reported(
    monitored: MonitoredRun, tmp_path: Path
) -> None:
    printed, page = build(monitored("eval"), tmp_path)
    text = " ".join(page.text.split())
    for event in monitored.events:
        for name in ("symptom", "cause", "hint"):
            assert event[name].removeprefix("stopped: ") in text
    assert (
        "Training was stopped early as over-optimised, at update 16 of 60: the judge fell from 3 to 2." in printed
    )
    assert "The policy of update 8 was selected rather than the last one (update 16)" in printed
    assert "There was 1 alert during PPO." in printed
    assert page.source.count(">selected<") >= 3, "in each chart during PPO"
    assert "built-in" not in page.source, "a dict has a method that is called update"


@pytest.mark.parametrize(
    ("metrics", "phrase"),
    [
        ({"judge": "venues", "selected_update": 16}, "The last policy (update 16) was selected: it is the best"),
        (
            {"judge": "venues", "selected_update": 0},
            "The policy that PPO started from was selected rather than the last one",
        ),
        (
            {"judge": "none", "selected_update": 16},
            "No independent judge watched PPO, so the last policy was selected.",
        ),
    ],
)
def test_which_policy_was_selected(monitored: MonitoredRun, metrics: dict[str, Any], phrase: str) -> None:
    monitored.events, monitored.metrics = (), metrics
    section = monitored.findings().monitors
    assert section is not None
    assert monitors.summary(section).startswith(phrase)
    assert bool(monitors.caveats(section)) == (metrics["selected_update"] != 16)


def test_a_run_from_before_there_were_monitors_has_no_such_section(
    stages: FakeStages, runner: Callable[..., Runner], tmp_path: Path
) -> None:
    printed, page = build(FakeRun(stages, runner)("eval"), tmp_path)
    assert "Training monitors" not in page.text
    assert "selected" not in printed.lower()


def test_numbers_have_their_files(monitored: MonitoredRun, tmp_path: Path) -> None:
    run = monitored()
    _, page = build(run, tmp_path)
    found = json.loads((tmp_path / "made" / "report.json").read_text())
    assert set(found["sources"]) >= {"models", "along", "monitors", "reward", "curves", "pipeline"}
    for paths in found["sources"].values():
        for path in paths:
            assert (run.folder / path).is_file()
    assert found["sources"]["models"][0] in page.text
    assert len(found["charts"]) == page.source.count("<svg") + page.source.count("Measured once")
    for chart in found["charts"]:
        files = [part.partition(": ")[0] for part in chart["source"].split("; ")]
        assert files
        assert all((run.folder / file).is_file() for file in files), chart["title"]
    first = run.stages["ppo"].folder / "metrics.jsonl"
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    score = next(chart for chart in found["charts"] if chart["title"] == "Reward model’s score")
    assert score["lines"][0]["points"] == [[row["step"], row["objective/scores"]] for row in rows]


def test_every_stage_has_a_table_of_its_metrics(monitored: MonitoredRun, tmp_path: Path) -> None:
    run = monitored()
    _, page = build(run, tmp_path)
    for name, made in run.stages.items():
        assert f"{name}/{made.manifest.key[:12]}/manifest.json" in page.text
        for metric in made.manifest.metrics:
            assert metric in page.text or metric == "human", "which the page says in words"


def test_sources_are_existing_files_only(monitored: MonitoredRun) -> None:
    run = monitored("reward")
    assert sources.of(run, "ppo", "metrics.jsonl") == []
    assert "along" not in sources.read(run)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (None, wording.DASH),
        (2048, "2,048"),
        (0.70451, "0.7045"),
        (3e-7, "3.00e-07"),
        (0, "0"),
        ([0.5, 1], "0.5000, 1"),
        ("venues", "venues"),
    ],
)
def test_what_a_manifest_holds_as_text(value: Any, text: str) -> None:
    assert wording.plain(value) == text
