"""The exported files in the report and in the model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_fakes import FakeStages, write_all, write_rankings

from pipeline.engine.plan import RunSummary
from pipeline.engine.runner import Runner
from pipeline.wording import SPACE
from stages.export.artifact import ExportResult
from stages.report import exported
from stages.report.build import build_report

POLICY = {
    "score": 2.7,
    "perplexity": 1.4802,
    "slot_error_rate": 0.05,
    "slot_error_low": 0.04,
    "slot_error_high": 0.06,
}
EXPORT: dict[str, Any] = {
    "prompts": 64,
    "judge": "venues",
    "kl": "KL(policy || file)",
    "policy": POLICY,
    "formats": [
        {"format": "safetensors", "change": "none", "bytes": 2_000_000, "kl": 0.0, "top_1": 1.0, **POLICY},
        {
            "format": "gguf_q4_0", "change": "quantised after training", "bytes": 300_000, "kl": 0.1234,
            "top_1": 0.987, **POLICY, "score": 2.5, "perplexity": 1.61, "slot_error_rate": 0.071,
        },
    ],
}  # fmt: skip


@pytest.fixture
def finished(runner: Callable[..., Runner], stages: FakeStages) -> Callable[[dict[str, Any]], RunSummary]:
    """Makes a finished run whose export stage found this."""

    def make(found: dict[str, Any]) -> RunSummary:
        def export(config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
            (out / "export.json").write_text(json.dumps(found))
            return write_all(config, inputs, out, ctx) | {"formats": "safetensors", "bytes": 1}

        stages.does |= {"rank": write_rankings, "export": export}
        stages.does["eval"] = lambda *given: write_all(*given) | {"judge": "venues"}
        made = runner("publish.model=me/m")
        made.run()
        return made.planner.summary()

    return make


def test_each_file_has_a_row_beside_the_policy() -> None:
    policy, plain, small = exported.rows(ExportResult.of(EXPORT))
    assert policy.cells == ("The policy itself", "as trained", "–", "–", "–", "1.480", "2.70", f"5.0{SPACE}%")
    assert plain.cells[:5] == ("safetensors, merged", "as trained", "2 MB", "< 0.001", f"100.0{SPACE}%")
    assert small.cells == (
        "GGUF Q4_0", "quantised after training", "300 kB", "0.123",
        f"98.7{SPACE}%", "1.610", "2.50", f"7.1{SPACE}%",
    )  # fmt: skip
    assert small.interval == f"4.0 to 6.0{SPACE}%"
    assert all(len(row.cells) == len(exported.HEADER) for row in (policy, plain, small))


def test_without_judge_or_demonstrations_there_are_dashes() -> None:
    bare = {"score": 1.0, "perplexity": None}
    row = exported.rows(ExportResult.of(EXPORT | {"judge": None, "policy": bare, "formats": []}))[0]
    assert row.cells[-3:] == ("–", "1.00", "–")
    assert row.interval == ""
    assert "judge" not in exported.explanation(ExportResult.of(EXPORT | {"judge": None}))


def test_the_cards_table_is_the_reports(finished: Callable[[dict[str, Any]], RunSummary]) -> None:
    run = finished(EXPORT)
    export = exported.read(run)
    assert export is not None
    assert export.json == EXPORT
    table = exported.markdown(export)
    assert "| GGUF Q4_0 | quantised after training | 300 kB | 0.123 |" in table
    assert "measured on 64 held-out prompts" in table
    assert exported.markdown(None) == ""


def test_the_report_has_the_same_table(finished: Callable[[dict[str, Any]], RunSummary], tmp_path: Path) -> None:
    run = finished(EXPORT)
    for name in ("rank", "reward", "ppo", "eval"):
        del run.stages[name]  # whose pages need more than this
    build_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Exported files</h2>" in page
    assert '<th>GGUF Q4_0</th>\n<td data-label="Weights">quantised after training</td>' in page
    assert json.loads((tmp_path / "report.json").read_text())["export"]["formats"][1]["kl"] == 0.1234
