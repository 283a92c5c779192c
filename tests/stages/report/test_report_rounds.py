"""The report of several rounds: their lineage, curves that go on, and a comparison with other values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun, build, evaluation, interval, model, unjudged
from pipeline_fakes import FakeStages

from pipeline import wording
from pipeline.engine.runner import Runner
from pipeline.errors import StageError
from stages.report import charts, findings, recipe_comparison, verdict


def rounds_evaluation() -> dict[str, Any]:
    """As `eval` writes it after two rounds."""
    made = evaluation()
    made["models"]["ppo-1"] = model(0.09, kl=0.9, slot_error_low=0.07, slot_error_high=0.11)
    made["by_round"] = [interval(-0.31, -0.4, -0.2), interval(-0.35, -0.5, -0.1)]
    made["along"] = [{"round": number} | look for number in (1, 2) for look in made["along"]]
    return made


@pytest.fixture
def fake(stages: FakeStages, runner: Callable[..., Runner]) -> FakeRun:
    made = FakeRun(stages, runner)
    made.evaluation = rounds_evaluation()
    ppo = stages.does["ppo"]

    def one_round(config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        made_of_it = ppo(config, inputs, out, ctx)
        lines = (out / "evaluations.jsonl").read_text().splitlines(keepends=True)
        (out / "evaluations.jsonl").write_text("".join(lines[:3]))
        return dict(made_of_it)

    stages.does["ppo"] = one_round
    stages.does["collect"] = lambda *given: {"prompts": 866, "answers": 3464, "candidates": 3200}
    return made


@pytest.fixture
def judged(fake: FakeRun, stages: FakeStages) -> Callable[..., None]:
    """Sets the errors, prompt by prompt, that the judge finds in a run of so many rounds."""
    errors: dict[int, list[int]] = {}
    inner = stages.does["eval"]

    def run(config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        rounds = sum(name.startswith("ppo") for name in inputs)
        rows = [{"prompt": str(i), "given": 4, "errors": {"ppo": n}} for i, n in enumerate(errors[rounds])]
        (out / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return dict(inner(config, inputs, out, ctx))

    stages.does["eval"] = run

    def make(**by_rounds: list[int]) -> None:
        errors.update({{"one": 1, "two": 2}[name]: found for name, found in by_rounds.items()})

    return make


def test_the_lineage_has_a_row_a_round(fake: FakeRun, tmp_path: Path) -> None:
    run = fake(None, "rounds=2")
    _, page = build(run, tmp_path)
    first, second = findings.collect(run).lineage
    assert (first.number, second.number) == (1, 2)
    assert (first.rankings_total, second.rankings_total) == (1600, 3200)
    assert (first.kl, second.kl) == (0.9, 1.86)
    assert (first.slot_error_rate, second.slot_error_rate) == (0.09, 0.0585)
    assert first.change is not None
    assert second.change is not None
    assert (first.change.value, second.change.value) == (-0.31, -0.35)
    text = page.text.replace(wording.SPACE, " ")
    for shown in ("Lineage", "chosen from 3,200", "3,200 in all", "9.0 %", "5.9 %", "−50 to −10 %"):
        assert shown in text, shown
    assert "ppo-2" in page.text
    assert "1,600 rankings by 4 simulated annotators" in page.text


def test_one_round_has_no_lineage(fake: FakeRun, tmp_path: Path) -> None:
    fake.evaluation = evaluation()
    run = fake()
    assert findings.collect(run).lineage == []
    assert "Lineage" not in build(run, tmp_path)[1].text


@pytest.mark.parametrize("until", ["rank-2", "reward-2", "ppo-2"])
def test_an_unfinished_round_has_a_row_with_what_is_known(fake: FakeRun, tmp_path: Path, until: str) -> None:
    run = fake(until, "rounds=2")
    rows = findings.collect(run).lineage
    assert [row.number for row in rows] == [1, 2]
    assert (rows[1].accuracy is None) == (until == "rank-2")
    assert (rows[1].episodes is None) == (until != "ppo-2")
    assert rows[1].change is None
    printed, page = build(run, tmp_path)
    assert printed.startswith("Not evaluated yet.")
    assert "Lineage" in page.text


def test_without_a_judge_the_lineage_claims_nothing(fake: FakeRun, tmp_path: Path) -> None:
    fake.evaluation = unjudged()
    _, page = build(fake(None, "rounds=2"), tmp_path)
    assert "Lineage" in page.text
    assert "Fact errors" not in page.text


def test_curves_go_on_from_round_to_round(fake: FakeRun) -> None:
    run = fake(None, "rounds=2")
    found = findings.collect(run)
    score, kl, errors = charts.along(run, found)
    assert [x for x, _ in score.lines[0].points] == list(range(1, 33))
    assert [x for x, _ in errors.lines[0].points] == [0, 8, 16, 16, 24, 32]
    assert [x for x, _ in kl.lines[1].points] == [0, 8, 16, 16, 24, 32]


def test_overoptimisation_is_searched_in_the_last_round_only(fake: FakeRun) -> None:
    """Another round's scores are another reward model's: a rise from one to the next is none."""
    for look in fake.evaluation["along"]:
        look["slot_error_rate"] = 0.02 if look["round"] == 1 else 0.3
    found = findings.collect(fake("eval", "rounds=2"))
    assert not any("Over-optimised" in caveat for caveat in verdict.reach(found).caveats)
    fake.evaluation["along"][3]["slot_error_rate"] = 0.02
    found = findings.collect(fake("eval", "rounds=2 seed=1"))
    assert any("Over-optimised" in caveat for caveat in verdict.reach(found).caveats)


# --- Against other values ---


@pytest.mark.parametrize(
    ("ours", "theirs", "tone", "phrase"),
    [
        ([0, 1] * 40, [2, 3] * 40, "good", "It makes fewer fact errors"),
        ([2, 3] * 40, [0, 1] * 40, "bad", "It makes more fact errors"),
        ([0, 2] * 40, [2, 0] * 40, "unclear", "This comparison cannot tell which run is better."),
    ],
)
def test_a_comparison_names_the_better_run_or_says_that_it_cannot_tell(
    fake: FakeRun, judged: Callable[..., None], tmp_path: Path,
    ours: list[int], theirs: list[int], tone: str, phrase: str,
) -> None:  # fmt: skip
    judged(one=theirs, two=ours)
    run, other = fake(None, "rounds=2"), fake(None, "rounds=1")
    found = recipe_comparison.compare(run, other, "rounds=1")
    reached, headline, evidence = recipe_comparison.conclude(found)
    assert reached == tone
    assert phrase in headline
    change = found.change
    assert change.value == pytest.approx(sum(ours) / sum(theirs) - 1)
    assert change.low is not None
    assert change.high is not None
    assert change.low <= change.value <= change.high
    assert found.ours.slot_error_rate == sum(ours) / 320
    assert (found.ours.episodes, found.theirs.episodes) == (4096, 2048)
    assert "2 rounds, 3,200 rankings, 4,096 PPO episodes, KL 1.86" in evidence
    assert "the same recipe under rounds=1." in evidence
    assert "did not have the same number of rankings and episodes." in evidence
    assert ("which contains zero" in evidence) == (tone == "unclear")
    from stages.report.build import build_report

    text = build_report(run, tmp_path / "report.html", other, "rounds=1")
    assert phrase in text
    assert phrase in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_runs_on_other_prompts_are_not_compared(fake: FakeRun, judged: Callable[..., None]) -> None:
    judged(one=[1, 2], two=[1, 2, 3])
    run, other = fake(None, "rounds=2"), fake(None, "rounds=1")
    with pytest.raises(StageError, match="not evaluated on the same prompts"):
        recipe_comparison.compare(run, other, "rounds=1")


def test_a_run_without_a_judge_is_not_compared(fake: FakeRun) -> None:
    fake.evaluation = unjudged()
    run = fake(None, "rounds=2")
    with pytest.raises(StageError, match="needs a judge"):
        recipe_comparison.compare(run, run, "")
