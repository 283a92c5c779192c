"""Two runs side by side."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun
from pipeline_fakes import FakeStages
from typer.testing import CliRunner

from pipeline import wording
from pipeline.engine.runner import Runner
from pipeline.errors import StageError
from stages.__main__ import app
from stages.intervals import Interval
from stages.report import run_comparison
from stages.report.build import build_report
from stages.report.run_comparison import Difference, RunComparison, RunReport


@pytest.fixture
def report(stages: FakeStages, runner: Callable[..., Runner], tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "report.html"
    build_report(FakeRun(stages, runner)(), path)
    content: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    content["judged"] = judged([2] * 40)
    return content


def judged(errors: list[int], first: int = 0) -> list[dict[str, Any]]:
    """Prompts from `first` on with these numbers of errors in PPO's answer, of five facts each."""
    return [
        {"prompt": f"p{first + i}", "given": 5, "errors": {"ppo": count}, "faults": {"ppo": count}}
        for i, count in enumerate(errors)
    ]


def other(report: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(report) | changes


def compare(a: dict[str, Any], b: dict[str, Any], names: tuple[str, str] = ("a", "b")) -> RunComparison:
    return run_comparison.compare(RunReport.of(a), RunReport.of(b), names)


def page(found: RunComparison, tmp_path: Path) -> str:
    from stages.report.build import _template

    run_comparison.write(found, tmp_path / "c.html", _template("compare.html"))
    return (tmp_path / "c.html").read_text(encoding="utf-8").replace(wording.SPACE, " ")


def test_fewer_errors_on_the_same_prompts(report: dict[str, Any], tmp_path: Path) -> None:
    better = other(report, judged=judged([1] * 40))
    found = compare(report, better, ("first", "second"))
    assert found.paired is not None
    assert found.paired.prompts == 40
    assert found.paired.rates == (0.4, 0.2)
    assert found.paired.change == Interval(value=-0.5, low=-0.5, high=-0.5)
    assert found.paired.win_rate is not None
    assert found.paired.win_rate.value == 1.0
    tone, headline, evidence = run_comparison.conclude(found)
    assert (tone, headline) == ("good", "second makes fewer fact errors than first.")
    assert "a change of −50 % (95 % interval −50 to −50 %)" in evidence.replace(wording.SPACE, " ")
    assert headline in page(found, tmp_path)
    assert run_comparison.conclude(compare(better, report))[0] == "bad"


def test_only_prompts_of_both_count(report: dict[str, Any]) -> None:
    found = compare(report, other(report, judged=judged([0] * 30, first=30))).paired
    assert found is not None
    assert found.prompts == 10
    assert found.rates == (0.4, 0.0)


def test_the_interval_decides(report: dict[str, Any]) -> None:
    mixed = other(report, judged=judged([1, 3] * 20))
    found = compare(report, mixed)
    assert found.paired is not None
    assert found.paired.change is not None
    assert found.paired.change.side() == 0
    tone, _, evidence = run_comparison.conclude(found)
    assert tone == "unclear"
    assert "contains zero" in evidence


@pytest.mark.parametrize("changes", [{"judged": []}, {"evaluation": {"judge": "e2e", "models": {}}}])
def test_without_common_ground_nothing_is_claimed(
    report: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = compare(report, other(report, **changes))
    assert found.paired is None
    assert run_comparison.conclude(found)[0] == "unknown"
    assert "cannot be compared answer by answer" in page(found, tmp_path)


def test_what_differs_in_the_recipes(report: dict[str, Any], tmp_path: Path) -> None:
    changed = other(report)
    (target,) = [row for row in changed["values"] if row["path"] == "ppo.kl.target"]
    target["value"] = 8.0
    changed["values"].append({"path": "ppo.new", "value": "<x>", "origin": "default"})
    found = compare(report, changed)
    assert found.values == [
        Difference(path="ppo.kl.target", a=6.0, b=8.0),
        Difference(path="ppo.new", a=None, b="<x>"),
    ]
    assert "&lt;x&gt;" in page(found, tmp_path)
    assert compare(report, report).values == []


def test_a_section_that_one_recipe_lacks_is_one_difference(report: dict[str, Any], tmp_path: Path) -> None:
    with_dpo, single = other(report), other(report)
    for changed in (with_dpo, single):
        changed["values"] = [row for row in report["values"] if row["path"].partition(".")[0] != "dpo"]
    single["values"].append({"path": "dpo", "value": None})
    with_dpo["values"] += [{"path": f"dpo.{name}", "value": 1} for name in ("beta", "lora.r", "pairs")]
    found = compare(with_dpo, single)
    assert found.values == [Difference(path="dpo", a="3 values", b=None, section=True)]
    [line] = [line for line in run_comparison.as_text(found).splitlines() if line.startswith("dpo")]
    assert line.split(maxsplit=1)[1].strip().split("  ")[0] == "3 values"
    assert line.endswith("(absent)")
    assert '"3 values"' not in page(found, tmp_path)


def test_the_page_is_written_beside_the_runs(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("a", "b"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "report.json").write_text(json.dumps(report))
    result = CliRunner().invoke(app, ["compare", "runs/a", "runs/b/report.html"])
    assert result.exit_code == 0, result.output
    assert "comparison: runs/comparisons/a-b.html" in result.output
    assert Path("runs/comparisons/a-b.html").is_file()
    assert [path.name for path in folder.iterdir()] == ["runs"]


def test_the_command_takes_folders_and_files(report: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    out = tmp_path / "made" / "x.html"
    arguments = ["compare", str(tmp_path / "a"), str(tmp_path / "b" / "report.html"), "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "These prompts cannot tell whether b or a is better." in result.output
    assert "Fact errors" in result.output
    assert json.loads(out.with_suffix(".json").read_text())["names"] == ["a", "b"]
    assert "<script" not in out.read_text()


@pytest.mark.parametrize(
    ("content", "phrase"), [(None, "has no report"), ("{}", "is not a report"), ("x", "is not a report")]
)
def test_files_that_are_no_reports_are_refused(tmp_path: Path, content: str | None, phrase: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(StageError, match=phrase) as caught:
        RunReport.read(tmp_path)
    assert "tutelage report" in caught.value.hint
