"""Two criteria that disagree, from the tables to the report, on a small model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import criteria_tables
import pytest
import small_run

from pipeline.errors import RecipeError
from stages.criteria import part
from stages.publish import uploads
from stages.report.build import build_report
from stages.score.source import from_run
from stages.serve.models import load_run

WORDS = ("red", "blue", "old", "new", "big", "odd", "wet", "dry", "hot", "raw")
PROMPTS = [f"name[{a} {b}], kind[pub]" for a in WORDS for b in WORDS[:4]]
TERMS = (
    "[{name: more, model: reward, criterion: more, weight: 0.7}, "
    "{name: less, model: reward, criterion: less, held_out: true}]"
)
VALUES = (
    "rank.source=data dpo.criterion=less reward.trainer.num_train_epochs=4 export.formats=[adapter] "
    "reward.trainer.learning_rate=5e-3 reward.trainer.per_device_train_batch_size=4 ppo.kl.kind=adaptive"
)


@pytest.mark.slow
def test_two_criteria_from_tables_to_report(tmp_path: Path) -> None:
    rankings = {"criteria": criteria_tables.write(tmp_path, PROMPTS)}
    tables = shlex.quote(f"data.rankings={json.dumps(rankings)}")
    runner = small_run.runner(tmp_path / "runs", VALUES, tables, shlex.quote(f"ppo.reward.terms={TERMS}"))
    runner.run()
    run = runner.planner.summary()
    reward, ppo = run.need("reward").artifact, run.need("ppo").artifact
    for name in criteria_tables.NAMES:
        assert reward.metrics[f"{name}/eval_accuracy"] > 0.9, "each adapter has learned its own criterion"
        assert run.need("rank").artifact.metrics[f"{name}/agreement"] == 1.0
    result = json.loads(run.need("eval").artifact.file("eval.json").read_text())
    assert "less" in [judge["name"] for judge in result["judges"]], "a criterion that is held out is a judge"
    terms = json.loads(ppo.file("terms.json").read_text())
    assert [term["criterion"] for term in terms["terms"]] == ["more", "less"]
    assert terms["statistics"]["more"]["count"] > 0
    points = list(ppo.jsonl("evaluations.jsonl"))
    assert set(points[0]["terms"]) == {"more", "less"}

    page = tmp_path / "report.html"
    build_report(run, page)
    content, text = json.loads(page.with_suffix(".json").read_text()), page.read_text()
    assert [part["name"] for part in content["criteria"]] == ["more", "less"]
    assert content["reward"] is None
    for entry in content["criteria"]:
        held_out = entry["reward"]["held_out"]
        assert held_out["accuracy"] == reward.metrics[f"{entry['name']}/eval_accuracy"]
        assert f"<h3>{entry['name']}</h3>" in text
    assert "the run’s reward model of less" in text
    assert "Loss of the reward model (less)" in text
    assert {path.split("/")[-2] for path in content["sources"]["reward"] if path.endswith("quality.json")} == {
        "more",
        "less",
    }

    scores = {name: from_run(run, "cpu", criterion=name) for name in criteria_tables.NAMES}
    assert scores["more"].identity != scores["less"].identity
    assert scores["less"].scorer.model.roles == ("reward_less",)
    for refused in (
        lambda: from_run(run, "cpu"),
        lambda: uploads.export_reward_model(run, tmp_path / "exported", "exported", "cpu"),
        lambda: uploads.export_rankings(run, tmp_path / "rankings"),
    ):
        with pytest.raises(RecipeError, match="several criteria, and none of them is named") as error:
            refused()
        assert error.value.hint == "set --criterion to one of more, less"
    with pytest.raises(RecipeError, match="several criteria, and none of them is named"):
        load_run(run, ["sft"], "cpu")
    served = load_run(run, ["sft"], "cpu", criterion="less").reward
    assert served is not None
    assert served.identity == scores["less"].identity
    uploads.export_rankings(run, tmp_path / "rankings", criterion="less")
    exported = uploads.export_reward_model(run, tmp_path / "exported", "exported", "cpu", criterion="less")
    assert "rankings of answers by less" in (tmp_path / "exported/README.md").read_text()
    assert exported.folder == tmp_path / "exported"
    assert part(reward, "less").path == reward.path / "less"
