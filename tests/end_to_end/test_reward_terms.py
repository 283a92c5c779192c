"""The example recipe and a held-out term, made small: the stages run, and the report shows the terms."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import small_run
import yaml
from repository import ROOT

from stages.report.build import build_report


@pytest.mark.slow
def test_the_example_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    example = yaml.safe_load((ROOT / "examples/reward_terms.yaml").read_text())["ppo"]["reward"]["terms"]
    held_out = {"name": "one-sentence", "pattern": r"^[^.]*\.$", "held_out": True}
    terms = f"ppo.reward.terms={json.dumps([*example, held_out])}"
    values = "dpo.enabled=false eval.num_prompts=6 export.formats=[adapter] ppo.kl.kind=adaptive"
    runner = small_run.runner(tmp_path / "runs", values, shlex.quote(terms), recipe="../examples/reward_terms")
    runner.run("eval")
    run = runner.planner.summary()
    result = json.loads((run.stages["eval"].folder / "out/eval.json").read_text())
    assert [judge["name"] for judge in result["judges"]] == ["venues", "one-sentence"]
    assert {row["judge"] for row in result["wins"]} == {"venues", "one-sentence"}
    manifest = run.stages["ppo"].manifest
    assert manifest.local_files["ppo.reward.terms[1].function"].path == "examples/rewards.py"
    copy = run.stages["ppo"].artifact.path / "functions/opening.py"
    assert copy.read_text() == (ROOT / "examples/rewards.py").read_text()

    page = tmp_path / "report.html"
    build_report(run, page)
    text = page.read_text()
    for shown in (
        "Reward terms",
        "function examples/rewards.py:opens_with_name",
        "length near 24 tokens",
        "held out",
    ):
        assert shown in text
    terms = json.loads(page.with_suffix(".json").read_text())["ppo"]["terms"]
    assert [term["weight"] for term in terms] == [1.0, 0.5, 0.5, None]
    assert all(term["before"] is not None and term["after"] is not None for term in terms)
    points = list(run.stages["ppo"].artifact.jsonl("evaluations.jsonl"))
    for term in terms:
        values_of = points[0]["terms"][term["name"]]
        assert term["before"] == pytest.approx(sum(values_of) / len(values_of))
