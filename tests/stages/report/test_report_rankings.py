"""The report's section on rankings: agreement, annotators, and what was left out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_run import HOSTILE, FakeRun, agreement, build, part
from pipeline_fakes import FakeStages

from pipeline.engine.runner import Runner


@pytest.fixture
def fake(stages: FakeStages, runner: Callable[..., Runner]) -> FakeRun:
    return FakeRun(stages, runner)


def test_the_report_has_annotators_models_and_dropped_rankings(fake: FakeRun, tmp_path: Path) -> None:
    fake.agreement = agreement()
    fake.dropped = [{"table": "rankings", "row": row, "reason": "missing rating"} for row in range(3, 43)]
    _, page = build(fake(), tmp_path)
    text = " ".join(page.text.split())
    for phrase in (
        "they agree on 69.0 % (64.0 to 74.0 %) of 4,321 pairs, of training and held-out prompts together",
        "the one shown first 63 % (58 to 68 %)",
        "Measured on 1,600 of 6,400 rankings: all rankings of 400 prompts",
        "42 s median; 9 of 10 below 120 s",
        "83 % of 60 pairs",
        "48 more annotators, of 59",
        "large +0.50 wins 62 %",
        "missing rating 40 900 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, …",
    ):
        assert phrase in text
    assert "<script" not in page.source
    assert text.index(HOSTILE) < text.index("worker 0") < text.index("worker 58")
    assert "worker 59" not in text
    head = next(part for part in page.source.split("<thead>") if "Agrees with others" in part).split("</thead>")[0]
    assert "Agrees with self" not in head  # nobody has it
    assert "First shown wins" in head
    numbers = json.loads((tmp_path / "made" / "report.json").read_text())
    assert numbers["rankings"]["all_annotators"] == 71
    assert numbers["dropped"][0]["count"] == 40


def test_rankings_of_which_little_is_known(fake: FakeRun, tmp_path: Path) -> None:
    measures = ("pairwise", "by_others", "tau", "self_consistency", "first_shown", "longer")
    nothing = {name: part(None) for name in measures}
    shares = {name: part(None) for name in ("agreement", "tau", "self_consistency", "first_shown", "longer")}
    fake.agreement = agreement() | nothing
    fake.agreement |= {"alpha": None, "seconds": None, "models": []}
    fake.agreement["by_annotator"] = {"unknown": {"rankings": 3, **shares, "seconds": None, "weight": 1.0}}
    fake.ranking |= {"agreement": None, "predicted_by_others": None, "alpha": None}
    _, page = build(fake("rank"), tmp_path)
    text = " ".join(page.text.split())
    assert "their agreement is not known" in text
    assert "nobody ranked the same answers twice" in text
    assert "Models behind the answers" not in text
    assert "Left out" not in text
    assert "Answers per ranking" not in text  # of a run from before it was counted


def test_the_report_has_the_figures_of_the_rankings(fake: FakeRun, tmp_path: Path) -> None:
    fake.agreement = agreement()
    fake.ranking |= {"rankings_of_2": 1500, "rankings_of_4": 100, "tied_rankings": 7}
    fake.ranking |= {"first_wins": 0.52, "first_wins_pairs": 1400}
    fake.ranking |= {"repeated_rankings": 9, "copied_rankings": 3}
    _, page = build(fake("rank"), tmp_path)
    text = " ".join(page.text.split())
    start = text.index("Answers per ranking")
    for pattern in (
        r"Answers per ranking\s*2 \(1,500\)[\s,]*4 \(100\)",
        r"All answers tied\s*7 rankings",
        r"The table’s first of two answers wins\s*52.%\s*of 1,400 strict pairs",
        r"Repeats of an earlier ranking\s*9\s*3 in the same order",
    ):
        assert re.search(pattern, text), (pattern, text[start : start + 300])
    numbers = json.loads((tmp_path / "made" / "report.json").read_text())
    assert numbers["figures"]["sizes"] == {"2": 1500, "4": 100}


def test_overlaps_are_in_the_report_and_contamination_in_the_verdict(fake: FakeRun, tmp_path: Path) -> None:
    fake.left_out = {
        "data": {
            "duplicate_answers/near": 7,
            "contaminated_demonstrations/exact": 12,
            "contaminated_demonstrations/near": 3,
        },
        "reward": {"contaminated_rankings of reward.pretrain_on/exact": 2},
    }
    text = " ".join(build(fake(), tmp_path)[1].text.split())
    assert "Duplicates and held-out prompts" in text
    assert "answers nearly repeat another row 7" in text
    assert "demonstrations nearly contains a held-out prompt 3" in text
    assert (
        "Of what was trained on, 12 demonstrations contain a held-out prompt, 3 demonstrations nearly contain a "
        "held-out prompt and 2 rankings of reward.pretrain_on contain a held-out prompt: results on held-out "
        "prompts may be too good."
    ) in text


def test_a_report_without_overlaps_does_not_mention_them(fake: FakeRun, tmp_path: Path) -> None:
    text = build(fake(), tmp_path)[1].text
    assert "Duplicates and held-out prompts" not in text
    assert "may be too good" not in text


def test_the_report_has_accuracy_by_kind_of_fault(fake: FakeRun, tmp_path: Path) -> None:
    fake.tables["by_fault"] = [
        {"kind": "missing", "pairs": 1412, "accuracy": 0.934, "low": 0.91, "high": 0.95},
        {"kind": "wrong", "pairs": 0, "accuracy": None, "low": None, "high": None},
    ]
    _, page = build(fake(), tmp_path)
    text = " ".join(page.text.split())
    assert "differ in the number of faults of one kind only" in text
    assert "missing 93 % 91 to 95 % 1,412 wrong – – 0" in text
    numbers = json.loads((tmp_path / "made" / "report.json").read_text())
    assert numbers["reward"]["by_fault"] == fake.tables["by_fault"]


def test_without_a_rubric_the_report_has_no_kinds_of_fault(fake: FakeRun, tmp_path: Path) -> None:
    _, page = build(fake("reward"), tmp_path)
    assert "Reward model" in page.text
    assert "By kind of fault" not in page.text


SENTENCE = (
    "The reward model also learned from 1,234 pairs that were made, not ranked by people: an answer, and a copy "
    "with one wrong value."
)


@pytest.mark.parametrize("human", [True, False])
@pytest.mark.parametrize("measured", [True, False])
def test_the_report_tells_made_pairs_from_rankings(
    fake: FakeRun, tmp_path: Path, measured: bool, human: bool
) -> None:
    """Wherever it counts rankings. They do not change who made the rankings."""
    fake.made = {"hard_negatives": 1234}
    fake.ranking |= {"human": human}
    if measured:
        fake.agreement = agreement()
    else:
        fake.quality = {"pairs": 0}
    _, page = build(fake("reward"), tmp_path)
    text = " ".join(page.text.split())
    who = "human annotators" if human else "simulated annotators"
    assert f"1,600 rankings by 4 {who}" in text
    assert text.count(SENTENCE) == 1
    numbers = json.loads((tmp_path / "made" / "report.json").read_text())
    assert numbers["reward"]["hard_negatives"] == 1234
    assert numbers["annotators"] == ("human" if human else "simulated")


def test_a_run_without_made_pairs_mentions_none(fake: FakeRun, tmp_path: Path) -> None:
    fake.agreement = agreement()
    _, page = build(fake("reward"), tmp_path)
    assert "not ranked by people" not in page.text
