"""The verdict: which evidence leads, when it decides nothing, and what it would take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import SAMPLE, FakeRun, build, interval, model, unjudged

from data.bootstrap import bootstrap
from data.held_out import FEW, too_few
from pipeline import wording
from pipeline.engine.plan import RunSummary
from stages.eval.artifact import CUT, Contest
from stages.intervals import Interval
from stages.report import evidence, findings, human, verdict
from stages.report.verdict import Verdict


@pytest.fixture
def fake(stages: Any, runner: Any) -> FakeRun:
    return FakeRun(stages, runner)


def contest(judge: str, value: float, low: float, high: float, prompts: int) -> Contest:
    return Contest(
        judge=judge, ours="ppo", theirs="sft", value=value, low=low, high=high, ties=0.1, prompts=prompts
    )


def people(run: RunSummary, value: float, low: float, high: float, prompts: int) -> None:
    """As `tutelage judge` writes it."""
    fingerprint = run.stages["eval"].manifest.fingerprint
    content = {
        "eval": fingerprint,
        "prompts": prompts,
        "judges": 2,
        "win_rate": interval(value, low, high, ties=0.1),
        "agreement": interval(None, None, None, pairs=0),
    }
    human.judged_file(run.folder, fingerprint).write_text(json.dumps(content))


def text(reached: Verdict) -> str:
    return reached.text.replace(wording.SPACE, " ")


def without_a_rubric(fake: FakeRun, *wins: Contest) -> Verdict:
    fake.evaluation = unjudged()
    found = fake.findings()
    assert found.evaluation is not None
    return verdict.reach(replace(found, evaluation=replace(found.evaluation, wins=wins)))


# --- Which evidence leads -----------------------------------------------------------------------------------


def test_three_prompts_of_people_do_not_lead_over_a_judge_that_decides(fake: FakeRun) -> None:
    run = fake()
    people(run, 0.83, 0.5, 1.0, prompts=3)
    reached = verdict.reach(findings.collect(run))
    assert (reached.tone, reached.headline) == ("good", "PPO helped.")
    assert reached.evidence.startswith(
        "By the independent judge (venues), fact errors on 256 held-out prompts fell"
    )
    assert (
        "2 people compared the answers to 3 held-out prompts blind: PPO’s beats SFT’s on 83 % of them (95 % "
        "interval 50 to 100 %; ties count half). That decides nothing: the interval includes one half and 3 "
        "prompts are fewer than 30."
    ) in text(reached)


def test_people_lead_if_their_answer_decides_too(fake: FakeRun) -> None:
    run = fake()
    people(run, 0.7, 0.6, 0.8, prompts=100)
    assert verdict.reach(findings.collect(run)).evidence.startswith("2 people compared")


JUDGES = ("people", "held-out reward model", "LLM judge")


def alone(fake: FakeRun, judge: str, value: float, low: float, high: float, prompts: int) -> Verdict:
    """The verdict if one judge is the only one."""
    if judge != "people":
        return without_a_rubric(fake, contest(judge, value, low, high, prompts))
    fake.evaluation = unjudged()
    run = fake()
    people(run, value, low, high, prompts)
    return verdict.reach(findings.collect(run))


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize(
    ("rate", "prompts", "tone"),
    [
        ((0.6, 0.55, 0.65), 100, "good"),
        ((0.4, 0.35, 0.45), 100, "bad"),
        ((0.55, 0.48, 0.62), 200, "unclear"),
        ((0.55, 0.5, 0.6), 200, "unclear"),
        ((1.0, 1.0, 1.0), 3, "unclear"),
        ((0.0, 0.0, 0.0), 3, "unclear"),
        ((0.9, 0.8, 1.0), FEW - 1, "unclear"),
        ((0.9, 0.8, 1.0), FEW, "good"),
    ],
)
def test_whoever_judges_only_an_interval_without_one_half_on_enough_prompts_decides(
    fake: FakeRun, judge: str, rate: tuple[float, float, float], prompts: int, tone: str
) -> None:
    reached = alone(fake, judge, *rate, prompts)
    assert reached.tone == tone
    assert f" {prompts} held-out prompts" in text(reached)
    assert (reached.headline == "This evaluation cannot tell whether PPO helped.") == (tone == "unclear")
    assert ("decides nothing" in reached.evidence) == (tone == "unclear")
    assert ("would show" in reached.evidence or "It takes at least" in reached.evidence) == (tone == "unclear")


def test_the_rubric_on_few_prompts_decides_nothing(fake: FakeRun) -> None:
    fake.evaluation["prompts"] = 12
    reached = verdict.reach(fake.findings())
    assert reached.headline == "This evaluation cannot tell whether PPO helped."
    assert "on 12 held-out prompts fell" in reached.evidence
    assert "12 prompts are fewer than 30" in reached.evidence
    assert "It takes at least 30 prompts: hold out more prompts (data.eval_fraction, eval.num_prompts)." in text(
        reached
    )
    assert any(note.startswith("There are only 12 held-out prompts to evaluate on") for note in reached.caveats)


def test_few_prompts_against_many_do_not_make_judges_disagree(fake: FakeRun) -> None:
    many, few = contest("a", 0.6, 0.55, 0.65, 200), contest("b", 0.1, 0.0, 0.2, 10)
    assert without_a_rubric(fake, few, many).tone == "good"
    assert without_a_rubric(fake, replace(few, prompts=100), many).headline == "The judges disagree."


# --- What it would take -------------------------------------------------------------------------------------


def test_the_needed_number_of_prompts_would_show_the_difference() -> None:
    """Simulated: with so many prompts, about 80 % of evaluations have an interval without one half."""
    rng = np.random.default_rng(0)
    rate, prompts = 0.58, 400
    wins = rng.random(prompts) < rate
    low, high = bootstrap(wins.astype(float), seed=1)
    needed = evidence.needed(Interval(value=rate, low=low, high=high), 0.5, prompts)
    assert needed is not None
    shows = 0
    for seed in range(100):
        low, _ = bootstrap((rng.random(needed) < rate).astype(float), resamples=400, seed=seed)
        shows += low > 0.5
    assert 65 <= shows <= 92


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (interval(0.5, 0.4, 0.6), None),
        (interval(0.501, 0.45, 0.55), None),
        (interval(None, None, None), None),
        (interval(1.0, 1.0, 1.0), FEW),
    ],
)
def test_no_number_is_given_where_none_can_be(value: dict[str, Any], expected: int | None) -> None:
    assert evidence.needed(Interval(**value), 0.5, 100) == expected


def test_equal_answers_to_few_prompts_do_not_make_two_models_equal(fake: FakeRun) -> None:
    fake.evaluation |= {
        "prompts": 12,
        "reduction": interval(0, 0, 0),
        "win_rate": interval(0.5, 0.5, 0.5, ties=1.0),
    }
    reached = verdict.reach(fake.findings())
    assert "It takes at least 30 prompts" in reached.evidence
    assert "equally good" not in reached.evidence


def test_two_models_that_are_equal_are_called_equal(fake: FakeRun) -> None:
    reached = without_a_rubric(fake, contest("a", 0.5, 0.48, 0.52, 2000))
    assert "10,000 prompts would not show it: treat the two models as equally good" in reached.evidence


# --- Held-out prompts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "warns"), [(0, True), (1, True), (FEW - 1, True), (FEW, False), (1000, False)])
def test_the_warning_about_few_prompts(count: int, warns: bool) -> None:
    line = too_few(count, "to evaluate on")
    assert bool(line) == warns
    if warns:
        assert f"only {count} held-out prompt{'s' * (count != 1)} to evaluate on" in line
        assert "data.eval_fraction" in line


def test_a_reward_model_measured_on_few_prompts_is_named(fake: FakeRun) -> None:
    fake.quality["prompts"] = 3
    notes = verdict.reach(fake.findings()).caveats
    start = "The reward model was measured on only 3 held-out prompts with rankings"
    assert any(note.startswith(start) for note in notes)


def test_notes_about_one_of_several_reward_models_name_its_criterion(fake: FakeRun) -> None:
    fake.quality["prompts"] = 3
    fake.warnings = ["it may be no better than a bag of words"]
    found = fake.findings()
    parts = [
        findings.ByCriterion(name=name, ranking=None, figures=None, rankings=None, reward=reward)
        for name, reward in (("quality", None), ("naturalness", found.reward))
    ]
    notes = verdict.reach(replace(found, reward=None, criteria=parts)).caveats
    for start in (
        "About this run’s reward model (naturalness): it may be no better",
        "The reward model (naturalness) was measured on only 3 held-out prompts",
    ):
        assert any(note.startswith(start) for note in notes), notes
    assert not any("(quality)" in note for note in notes)


# --- Answers that do not end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sft", "ppo", "phrase"),
    [
        (0.0, 0.0, "No response of SFT or PPO ends with a stop token; all are cut at 64 tokens."),
        (0.9, 0.0, "No response of PPO ends with a stop token; all are cut at 64 tokens."),
        (0.0, 0.9, "No response of SFT ends with a stop token; all are cut at 64 tokens."),
        (
            0.02,
            0.01,
            "At most 2 % of responses of SFT or PPO end with a stop token; the others are cut at 64 tokens.",
        ),
        (0.95, 0.6, "Only 60 % of PPO’s answers end with a stop token, and 95 % of SFT’s"),
        (0.95, 0.94, None),
        (0.95, 1.0, None),
    ],
)
def test_answers_that_never_end_are_a_note_with_the_keys(
    fake: FakeRun, sft: float, ppo: float, phrase: str | None
) -> None:
    fake.evaluation["settings"] = {"max_prompt_length": 128, "response_length": 64, "temperature": 1.0}
    fake.evaluation["models"]["sft"] = model(0.13, ended=sft)
    fake.evaluation["models"]["ppo"] = model(0.06, ended=ppo, kl=1.86)
    notes = [note.replace(wording.SPACE, " ") for note in verdict.reach(fake.findings()).caveats]
    about = [note for note in notes if "stop token" in note]
    if phrase is None:
        assert about == []
    else:
        assert phrase in about[0]
        assert len(about) == 1
        assert "ppo.missing_eos_penalty" in about[0]


def test_cut_answers_are_marked_wherever_the_page_shows_them(fake: FakeRun, tmp_path: Path) -> None:
    ends = {"sft": True, "ppo": False}
    gains = [{"prompt": "p", "gain": 1.0, "sft": "an old answer", "ppo": "a new answer", "finished": ends}]
    fake.evaluation["extremes"] = {
        "judge": "venues", "improved": gains, "damaged": [], "share_improved": 1.0, "share_damaged": 0.0,
    }  # fmt: skip
    fake.sample = SAMPLE | {"finished": {"base": True, "sft": False, "ppo": True}}
    _, page = build(fake(), tmp_path)
    assert page.text.count(CUT) == 2
    assert f"Blue Mill is a pub.{CUT}" in page.text
    assert f"a new answer{CUT}" in page.text
