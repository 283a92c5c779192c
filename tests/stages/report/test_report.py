from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_run import (
    HOSTILE,
    QUALITY,
    SAMPLE,
    FakeRun,
    build,
    evaluation,
    interval,
    model,
    unjudged,
)
from pipeline_fakes import FakeStages

from pipeline import wording
from pipeline.config.load import LoadedRecipe
from pipeline.engine import registry
from pipeline.engine.plan import RunSummary
from pipeline.engine.runner import Runner
from stages.eval.artifact import EvaluatedPoint, Evaluation
from stages.report import charts, findings, human, model_table, plots, verdict


@pytest.fixture
def fake(stages: FakeStages, runner: Callable[..., Runner]) -> FakeRun:
    return FakeRun(stages, runner)


def test_the_report_of_a_full_run_has_its_numbers(fake: FakeRun, tmp_path: Path) -> None:
    run = fake()
    printed, page = build(run, tmp_path)
    assert printed.startswith("PPO helped.")
    for line in printed.replace(wording.SPACE, " ").splitlines():
        assert line.removeprefix("Note: ")[:60] in " ".join(page.text.split())
    for made in run.stages.values():
        assert made.manifest.key[:12] in page.text
    for text in ("missing: food", "invented: kind", "no fault", "491,904 parameters", "small.yaml:7"):
        assert text in page.text
    drawn = 3 + len(charts.TRAINING) + len(charts.PPO) + 1 + 2
    assert page.source.count("<svg") == drawn - 1, "the loss of SFT was measured once, which a sentence says"
    assert "Measured once: 0.385 at step 10 (training batch); 0.381 at step 20 (held out)." in page.text
    numbers = json.loads((tmp_path / "made" / "report.json").read_text())
    assert numbers["verdict"]["tone"] == "good"
    assert numbers["evaluation"] == fake.evaluation
    assert numbers["samples"] == [SAMPLE | {"finished": {}}]
    assert numbers["reward"]["held_out"] == QUALITY
    assert [stage["name"] for stage in numbers["stages"]] == [
        spec.name for spec, _ in registry.planned(run.loaded.recipe)
    ]
    assert numbers["stages"][-1]["inputs"].keys() == {"base", "data", "reward", "ppo", "eval"}


@pytest.mark.parametrize("until", [None, "data", "rank", "reward", "ppo"])
def test_an_unfinished_run_has_a_report_of_its_finished_stages(
    fake: FakeRun, load: Callable[..., LoadedRecipe], tmp_path: Path, until: str | None
) -> None:
    run = fake(until) if until else RunSummary(load(), tmp_path, {})
    printed, page = build(run, tmp_path)
    assert printed.startswith("Not evaluated yet.")
    assert "Not finished: " in page.text
    assert ("Reward model and simulated annotators" in page.text) == (until in ("rank", "reward", "ppo"))
    assert ("no evidence that answers are better" in printed) == (until == "ppo")


def test_the_file_loads_nothing_and_runs_nothing(fake: FakeRun, tmp_path: Path) -> None:
    _, page = build(fake(), tmp_path)
    assert {"script", "link", "iframe", "img", "object"}.isdisjoint(tag for tag, _ in page.elements)
    for _, attributes in page.elements:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "@import" not in page.source
    assert page.source.count("url(") == page.source.count("url(#")
    assert HOSTILE in page.text, "what a model says is shown as it is"


def test_ids_are_unique_and_references_find_them(fake: FakeRun, tmp_path: Path) -> None:
    _, page = build(fake(), tmp_path)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {attributes["href"] for tag, attributes in page.elements if tag == "use"}
    clips = {attributes["clip-path"] for _, attributes in page.elements if "clip-path" in attributes}
    assert used
    assert {str(href)[1:] for href in used} | {str(clip)[5:-1] for clip in clips} <= set(ids)


def test_the_same_run_gives_the_same_bytes(fake: FakeRun, tmp_path: Path) -> None:
    run = fake()
    build(run, tmp_path)
    files = [tmp_path / "made" / name for name in ("report.html", "report.json")]
    first = [file.read_bytes() for file in files]
    build(run, tmp_path)
    assert [file.read_bytes() for file in files] == first


def test_what_is_simulated_is_never_called_human(fake: FakeRun, tmp_path: Path) -> None:
    printed, page = build(fake(), tmp_path)
    assert "Annotators are simulated" in printed
    assert "1,600 rankings by 4 simulated annotators" in page.text
    assert "human" not in page.text.lower()


def test_people_are_called_people(fake: FakeRun, tmp_path: Path) -> None:
    fake.ranking["human"] = True
    printed, page = build(fake("rank"), tmp_path)
    assert "simulated" not in printed
    assert "1,600 rankings by 4 people" in page.text


def test_an_ensembles_members_are_named(fake: FakeRun, tmp_path: Path) -> None:
    fake.quality |= {"member_accuracy": [0.701, 0.689, 0.7], "disagreement": 0.42}
    _, page = build(fake("reward"), tmp_path)
    text = page.text.replace(wording.SPACE, " ")
    assert "Accuracy of each of 3 members" in text
    assert "70 %, 69 %, 70 %" in text


def test_of_many_annotators_the_busiest_are_shown(fake: FakeRun, tmp_path: Path) -> None:
    _, page = build(fake("reward"), tmp_path)
    assert "worker 5" in page.text
    assert "worker 6" not in page.text
    assert "of 9 annotators" in page.text


def test_unknown_agreement_is_reported_as_unknown(fake: FakeRun, tmp_path: Path) -> None:
    fake.quality |= dict.fromkeys(("agreement", "agreement_low", "agreement_high", "predicted_by_others"))
    _, page = build(fake("reward"), tmp_path)
    assert "so their agreement is not known" in page.text
    assert "Two annotators agree" not in page.text


def test_the_ceiling_is_the_agreement_on_held_out_prompts(fake: FakeRun, tmp_path: Path) -> None:
    """Not that of all rankings, which is another number."""
    _, page = build(fake("reward"), tmp_path)
    text = " ".join(page.text.split())
    assert "The agreement of two annotators on the same held-out prompts (1,234 pairs) is about the ceiling" in text
    assert "Two annotators agree 0.73 0.68 to 0.78" in text


def test_the_report_compares_the_reward_model_with_a_bag_of_words(fake: FakeRun, tmp_path: Path) -> None:
    fake.warnings = ["it may be no better than a bag of words"]
    printed, page = build(fake("reward"), tmp_path)
    text = " ".join(page.text.split())
    assert "A bag of words 0.70" in text
    assert "Better than a bag of wordsby 1 % (−1 % to 3 %)" in text
    assert "Warning: it may be no better than a bag of words." in text
    assert "About this run’s reward model: it may be no better than a bag of words." in printed


def test_what_each_stage_left_out_is_listed(fake: FakeRun, tmp_path: Path) -> None:
    fake.left_out = {
        "sft": {
            "read_demonstrations": 60,
            "dropped_demonstrations": 2,
            "dropped_demonstrations/longer than max_length": 2,
            "longest_demonstrations": 1812,
        },
        "rank": {"collected_read_prompts": 40, "collected_dropped_prompts/not ranked": 5},
        "reward": {
            "read_rankings": 1603,
            "dropped_rankings": 3,
            "dropped_rankings/longer than max_length": 3,
            "eval_read_rankings": 200,
            "eval_dropped_rankings/all answers tied": 7,
            "pretraining_dropped_rows/held-out prompt": 4,
        },
        "ppo": {"eval_read_prompts": 9, "eval_dropped_prompts/longer than max_prompt_length": 1},
    }
    _, page = build(fake(), tmp_path)
    text = " ".join(page.text.split())
    assert "training rankingsreward stage longer than max_length 3 1,603" in text
    assert "held-out rankingsreward stage all answers tied 7 200" in text
    assert "demonstrationssft stage longer than max_length (the longest has 1,812 tokens) 2 60" in text
    assert "collected promptsrank stage not ranked 5 40" in text
    assert "rows of reward.pretrain_onreward stage held-out prompt 4 –" in text
    assert "held-out promptsppo stage longer than max_prompt_length 1 9" in text


# --- The verdict --------------------------------------------------------------------------------------------


def test_good_with_its_price(fake: FakeRun) -> None:
    reached = verdict.reach(fake.findings())
    text = reached.text.replace(wording.SPACE, " ")
    assert reached.tone == "good"
    assert "fell from 13.0 % to 5.9 %, by 55 % (95 % interval 48 to 61 %)" in text
    assert "beats SFT’s on 71 % of them (66 to 76 %; ties count half)" in text
    assert "PPO’s KL from SFT is 1.86 nats per response" in text
    for price in ("average 20.7 tokens (SFT: 21.6)", "28.4 % of word pairs", "0.392 nats per token (SFT: 0.381)"):
        assert price in text


@pytest.mark.parametrize(
    ("reduction", "win_rate", "tone", "phrase"),
    [
        ((0.3, 0.1, 0.5), (0.4, 0.35, 0.45), "bad", "PPO did not help"),
        ((0.3, 0.1, 0.5), (0.5, 0.45, 0.55), "bad", "rose from"),
        ((-0.05, -0.2, 0.1), (0.5, 0.45, 0.55), "unclear", "−20 to +10 %) contains zero"),
        ((-0.05, -0.2, 0.1), (0.6, 0.55, 0.65), "unclear", "This evaluation cannot tell whether PPO helped."),
        ((-0.3, -0.5, -0.1), (0.5, 0.45, 0.55), "good", "PPO helped."),
        ((-0.3, -0.5, -0.1), (0.4, 0.35, 0.45), "unclear", "fact errors and win rate disagree"),
    ],
)
def test_the_interval_decides(
    fake: FakeRun, reduction: tuple[float, ...], win_rate: tuple[float, ...], tone: str, phrase: str
) -> None:
    fake.evaluation["reduction"] = interval(*reduction)
    fake.evaluation["win_rate"] = interval(*win_rate, ties=0.3)
    reached = verdict.reach(fake.findings())
    assert reached.tone == tone
    assert phrase in reached.text.replace(wording.SPACE, " ")


def test_without_errors_before_the_win_rate_decides(fake: FakeRun) -> None:
    fake.evaluation["models"]["sft"] = model(0.0)
    fake.evaluation["reduction"] = interval(-1.0, -1.0, -1.0)
    fake.evaluation["win_rate"] = interval(0.3, 0.25, 0.35, ties=0.4)
    reached = verdict.reach(fake.findings())
    assert reached.tone == "bad"
    assert "by 100" not in reached.text


def test_without_a_judge_nothing_is_claimed(fake: FakeRun, tmp_path: Path) -> None:
    fake.evaluation = unjudged()
    printed, page = build(fake("eval"), tmp_path)
    assert printed.startswith("Whether PPO helped is not known. No independent judge read the answers.")
    assert "PPO helped." not in page.text
    assert "Fact errors" not in page.text
    assert "no fault" not in page.text
    assert json.loads((tmp_path / "made" / "report.json").read_text())["verdict"]["tone"] == "unknown"


def test_an_unfit_reward_model_is_named(fake: FakeRun, tmp_path: Path) -> None:
    fake.unfit = ["its accuracy on held-out pairs is 0.510, below 0.55"]
    printed, page = build(fake("reward"), tmp_path)
    assert "The reward model of this run is unfit for PPO: its accuracy" in printed
    assert "Unfit for PPO: its accuracy" in page.text


def test_force_is_named(fake: FakeRun) -> None:
    fake.unfit = fake.forced_past_gate = ["its scores follow length"]
    [caveat] = [text for text in verdict.reach(fake.findings()).caveats if "unfit" in text]
    assert "its scores follow length" in caveat
    assert "--force" in caveat


def test_an_unmeasured_reward_model_is_shown_as_such(fake: FakeRun, tmp_path: Path) -> None:
    fake.quality, fake.unfit = {"pairs": 0}, ["it was measured on no held-out pair"]
    _, page = build(fake("reward"), tmp_path)
    assert "measured on no held-out pair" in page.text


def test_kl_beyond_its_target_and_answers_without_end_are_named(fake: FakeRun) -> None:
    fake.evaluation["models"]["ppo"] |= {"kl": 7.5, "ended": 0.8}
    text = verdict.reach(fake.findings()).text.replace(wording.SPACE, " ")
    assert "exceeds the recipe’s target of 6 nats" in text
    assert "Only 80 % of PPO’s answers end" in text


@pytest.mark.parametrize(
    ("rates", "scores", "expected"),
    [
        ((0.2, 0.05, 0.25), (1.0, 2.0, 3.0), True),
        ((0.2, 0.05, 0.07), (1.0, 2.0, 3.0), False),  # within what 64 prompts can tell
        ((0.2, 0.05, 0.25), (1.0, 2.0, 1.5), False),  # the score fell too: not over-optimised, only worse
        ((0.2, 0.10, 0.05), (1.0, 2.0, 3.0), False),
    ],
)
def test_overoptimisation_is_a_rise_of_score_and_errors(
    rates: tuple[float, ...], scores: tuple[float, ...], expected: bool
) -> None:
    points = [
        EvaluatedPoint(update=update, slot_error_rate=rate, score=score)
        for update, (rate, score) in enumerate(zip(rates, scores, strict=True))
    ]
    peak = verdict.overoptimised(points, prompts=64)
    assert peak == ((points[1], points[2]) if expected else None)


# --- Parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval_", "tone"), [((-0.5, -0.6, -0.4), "good"), ((0.5, 0.4, 0.6), "bad"), ((-0.1, -0.3, 0.1), "")]
)
def test_a_change_has_a_colour_only_if_its_interval_excludes_zero(
    interval_: tuple[float, float, float], tone: str
) -> None:
    content = evaluation() | {"reduction": interval(*interval_)}
    rows = {row.metric.key: row for row in model_table.rows(Evaluation.of(content))}
    assert rows["slot_error_rate"].tone == tone
    assert rows["slot_error_rate"].change_interval.startswith("relative: ")


def test_changes_are_judged_by_their_direction() -> None:
    rows = {row.metric.key: row for row in model_table.rows(Evaluation.of(evaluation()))}
    assert (rows["slot_error_rate"].tone, rows["slot_error_rate"].change) == ("good", "−7.2 points")
    assert rows["slot_error_rate"].intervals["sft"].replace(wording.SPACE, " ") == "12.0 to 14.0 %"
    assert {row.tone for row in rows.values() if row.metric is not model_table.ERRORS} == {""}, "no intervals"
    assert rows["kl"].change == ""
    assert model_table.rows(None) == []


def test_long_curves_are_thinned_by_means() -> None:
    points = [(float(x), 2.0 * x) for x in range(1000)]
    few = plots.thinned(points, 300)
    assert len(few) == 250
    assert few[0] == (1.5, 3.0)
    assert plots.thinned(points[:300], 300) == points[:300]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.number(0.5381), "0.538"),
        (wording.number(2703.0), "2,703"),
        (wording.number(0.0), "0"),
        (wording.fixed(-0.001), "0.00"),
        (wording.fixed(-1.5, 1, sign=True), "−1.5"),
        (wording.fixed(0.0, 1, sign=True), "0.0"),
        (wording.fixed(None), "–"),
        (wording.listing(["a", "b", "c"]), "a, b and c"),
        (wording.listing([]), ""),
    ],
)
def test_numbers_read_well(written: str, expected: str) -> None:
    assert written == expected


# --- What people say ----------------------------------------------------------------------------------------


def people(
    run: RunSummary, value: float, low: float, high: float, eval_: str | None = None, prompts: int = 100
) -> None:
    """As `tutelage judge` writes it."""
    fingerprint = run.stages["eval"].manifest.fingerprint
    found = {
        "eval": eval_ or fingerprint,
        "prompts": prompts,
        "judges": 3,
        "win_rate": interval(value, low, high, ties=0.1),
        "agreement": interval(0.8, 0.7, 0.9, pairs=60),
    }
    human.judged_file(run.folder, fingerprint).write_text(json.dumps(found))


def test_people_answer_where_no_judge_can(fake: FakeRun, tmp_path: Path) -> None:
    fake.evaluation = unjudged()
    run = fake()
    people(run, 0.61, 0.53, 0.69)
    printed, page = build(run, tmp_path)
    assert printed.startswith(
        "PPO helped. 3 people compared the answers to 100 held-out prompts blind: PPO’s beats SFT’s on "
        "61\N{NO-BREAK SPACE}% of them (95 % interval 53 to 69\N{NO-BREAK SPACE}%; ties count half)."
    )
    assert "Two judges agree on 80\N{NO-BREAK SPACE}%" in printed
    assert "People prefer it to SFT" in page.text
    people(run, 0.4, 0.3, 0.45)
    assert verdict.reach(findings.collect(run)).tone == "bad"
    people(run, 0.5, 0.4, 0.6)
    assert verdict.reach(findings.collect(run)).tone == "unclear"


def test_people_and_the_judge_of_facts(fake: FakeRun) -> None:
    run = fake()
    people(run, 0.61, 0.53, 0.69)
    both = verdict.reach(findings.collect(run))
    assert both.tone == "good"
    assert "3 people compared" in both.evidence
    assert "By the independent judge (venues)" in both.evidence
    people(run, 0.3, 0.2, 0.4)
    assert verdict.reach(findings.collect(run)).headline == "People and the judge of facts disagree."
    people(run, 0.5, 0.4, 0.6)
    assert verdict.reach(findings.collect(run)).tone == "good"


def test_verdicts_on_other_answers_are_not_shown(fake: FakeRun) -> None:
    run = fake()
    people(run, 0.3, 0.2, 0.4, eval_="0" * 64)
    assert findings.collect(run).human is None
    people(run, 0.3, 0.2, 0.4)
    fake.evaluation["prompts"] = 255
    assert findings.collect(fake(None, "eval.num_prompts=255")).human is None
