"""The Chinese quickstart through every stage, on a small model."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import runner

from pipeline.engine.plan import RunSummary
from stages.report.build import build_report


@pytest.mark.slow
def test_the_chinese_quickstart_runs_through_every_stage(tmp_path: Path) -> None:
    small = runner(tmp_path, "export.formats=[safetensors]", recipe="quickstart-zh")
    small.run(None)
    run: RunSummary = small.planner.summary()
    assert {"base", "data", "sft", "collect", "rank", "reward", "ppo", "dpo", "eval", "export"} <= set(run.stages)
    evaluated = run.stages["eval"]
    assert evaluated.manifest.metrics["judge"] == "venues-zh"
    [sample, *_] = evaluated.artifact.jsonl("samples.jsonl")
    assert sample["prompt"].startswith("名称[")
    judged = evaluated.artifact.json("eval.json")["models"]["ppo"]
    assert 0 < judged["distinct_2"] <= 1
    build_report(run, tmp_path / "report.html")
    assert "名称[" in (tmp_path / "report.html").read_text(encoding="utf-8")
