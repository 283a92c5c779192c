"""The report's sections on win rates, baselines and over-optimisation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_run import HOSTILE, FakeRun, build
from full_run import fit, full_evaluation, win
from pipeline_fakes import FakeStages

from pipeline.engine.runner import Runner
from stages.eval.artifact import Contest, Evaluation
from stages.report import findings, frontier, model_table, verdict, win_rates


@pytest.fixture
def fake(stages: FakeStages, runner: Callable[..., Runner]) -> FakeRun:
    fake = FakeRun(stages, runner)
    fake.evaluation = full_evaluation()
    return fake


def test_the_report_has_judges_baselines_and_frontier(fake: FakeRun, tmp_path: Path) -> None:
    printed, page = build(fake(), tmp_path)
    text = " ".join(page.text.replace("\N{NO-BREAK SPACE}", " ").split())
    for part in (
        "Best of 16 is better than PPO: PPO’s answer wins on 45 % of 256 prompts (41 to 49 %), at a KL of 1.86 "
        "nats against at most 1.83.",
        "Over-optimised. The curve fitted to 3 evaluation points peaks at 1.80 nats (95 % interval 0.90 to 2.50). "
        "Beyond the peak the judge’s gain falls by 0.21.",
        "The fitted curve (Gao et al. 2022) is d (alpha - beta log d), with d = √KL.",
        "Set ppo.kl.target to about that, and run again:",
        "PPO trains once, then samples one answer per reply. Best of 16 needs no PPO, but samples and scores 16",
        "The judge cannot tell PPO’s answers from DPO’s (PPO’s is preferred on 50 % of prompts",
        "PPO’s answers are better than RAFT’s (PPO’s is preferred on 55 % of prompts",
        "PPO, update 16",
        "16 answers reach at most 1.83 nats.",
        "verdict changed with the order of answers for 25 % of pairs; 3 replies without a verdict",
        "Base SFT DPO RAFT, best of 16 Best of 16 PPO Change from SFT",
        "≤ 1.83",
        "2.20 to 2.80",
        "better than SFT’s on 57 % of the prompts and worse on 0 %",
        "The 1 most improved",
        "prefers PPO’s answer to SFT’s on 60 % of 256 held-out prompts (95 % interval 56 to 64 %; ties "
        "count half).",
    ):
        assert part in text, part
    assert "The 0 most damaged" not in text
    assert "DPO is better" not in text
    assert printed.startswith("PPO helped. By the independent judge (venues)")
    assert "<script" not in page.source
    assert HOSTILE in page.text
    numbers = json.loads((tmp_path / "made" / "report.json").read_text())
    assert numbers["evaluation"]["frontier"]["fit"]["set_in"] is True


def test_the_pictures_of_the_frontier(fake: FakeRun) -> None:
    both, most, ways = frontier.charts(fake.findings().evaluation)
    assert [(line.kind, len(line.points)) for line in both.lines] == [("train", 3), ("held-out", 3), ("level", 3)]
    assert [x for x, _ in both.lines[1].points] == [0.0, 2.0, 4.0]  # by KL, not by update
    assert [(line.kind, len(line.points)) for line in most.lines] == [("level", 3), ("train", 3), ("other", 2)]
    assert [line.kind for line in ways.lines] == ["held-out", "other", "point", "triangle"]
    assert frontier.charts(None) == []
    del fake.evaluation["frontier"]
    assert frontier.charts(Evaluation.of(fake.evaluation)) == []
    assert frontier.conclude(Evaluation.of(fake.evaluation)) == ""


def test_the_share_of_the_possible_score_is_a_sentence(fake: FakeRun) -> None:
    text = frontier.possible(fake.findings().evaluation).replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith(
        "PPO has 82 % (77 to 87 %) of the gain in the reward model’s score that is possible at its KL"
    )
    fake.evaluation["optimum"] |= {"share": None, "reach": 1.5}
    unresolved = frontier.possible(Evaluation.of(fake.evaluation))
    assert "cannot be told from 16 answers per prompt" in unresolved
    assert "Raise eval.best_of_n." in unresolved
    del fake.evaluation["optimum"]
    assert frontier.possible(Evaluation.of(fake.evaluation)) == ""
    assert frontier.possible(None) == ""


@pytest.mark.parametrize(
    ("found", "phrase"),
    [
        ({"reason": "3 looks only"}, "cannot be fitted: 3 looks only."),
        (fit(None, None, set_in=False), "has no peak: within this run more KL does no harm."),
        (fit(9.0, None, set_in=False), "beyond the 4.00 nats of this run."),
        (fit(1.8, None, set_in=False), "(95 % interval 0.90 to beyond this run), but the run is too short"),
        (fit(1.8, 2.5, set_in=True), "Beyond the peak the judge’s gain falls by 0.21."),
    ],
)
def test_overoptimisation_is_described_as_far_as_it_is_known(fake: FakeRun, found: Any, phrase: str) -> None:
    fake.evaluation["frontier"]["fit"] = found
    evaluation = Evaluation.of(fake.evaluation)
    assert phrase in frontier.conclude(evaluation).replace("\N{NO-BREAK SPACE}", " ")
    assert bool(frontier.caveats(evaluation)) is bool(found.get("set_in"))


def test_judges_that_contradict_each_other_leave_it_open(fake: FakeRun) -> None:
    found = fake.findings()
    assert verdict.reach(found).tone == "good"
    assert found.evaluation is not None
    against = Contest(**win("other", "ppo", "sft", 0.3))
    found = replace(found, evaluation=replace(found.evaluation, wins=[*found.evaluation.wins[:-1], against]))
    assert verdict.reach(found).headline == "The judges disagree."


@pytest.mark.parametrize(("value", "tone"), [(0.6, "good"), (0.4, "bad"), (0.5, "unclear")])
def test_another_judge_answers_where_there_is_no_rubric(fake: FakeRun, value: float, tone: str) -> None:
    fake.evaluation["judge"] = None
    del fake.evaluation["reduction"], fake.evaluation["win_rate"]
    fake.evaluation["wins"] = [win("held-out reward model", "ppo", "sft", value)]
    reached = verdict.reach(fake.findings())
    assert reached.tone == tone
    assert reached.evidence.startswith("Held-out reward model prefers PPO’s answer")


def test_an_evaluation_without_baselines_has_three_columns(fake: FakeRun) -> None:
    for baseline in ("dpo", "raft", "best_of_n"):
        del fake.evaluation["models"][baseline]
    fake.evaluation["wins"] = fake.evaluation["wins"][:1]
    evaluation = Evaluation.of(fake.evaluation)
    assert list(win_rates.names(evaluation)) == ["base", "sft", "ppo"]
    rows = {row.metric.key: row for row in model_table.rows(evaluation)}
    assert rows["kl"].cells["ppo"] == "1.86"
    assert win_rates.caveats(Evaluation()) == []
    assert win_rates.rows(findings.collect(fake()).evaluation)[0].ours == "PPO"
