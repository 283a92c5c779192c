"""Report, model card and verdict name the method that trained the policy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from full_run import FullRun
from pipeline_fakes import FakeStages
from test_report_language import visible

from pipeline.config.ppo import METHODS
from pipeline.engine.runner import Runner
from stages.publish.card import model_card
from stages.report.build import build_report, compare_reports

RLOO = "ppo.advantage_estimator=rloo ppo.num_generations=4"


@pytest.fixture
def full(stages: FakeStages, runner: Callable[..., Runner]) -> FullRun:
    return FullRun(stages, runner)


def page(path: Path) -> str:
    """The visible text without the run's values."""
    source = path.read_text(encoding="utf-8")
    return visible(source, "Environment</summary>", "Recipe, and")


@pytest.mark.parametrize(
    ("sets", "name"),
    [
        (RLOO, "RLOO"),
        ("ppo.advantage_estimator=grpo ppo.num_generations=4", "GRPO"),
        ("ppo.advantage_estimator=reinforce", "REINFORCE"),
    ],
)
def test_no_text_says_ppo_where_another_estimator_trained_the_policy(
    full: FullRun, tmp_path: Path, sets: str, name: str
) -> None:
    run = full(None, sets)
    printed = build_report(run, tmp_path / "report.html")
    text = page(tmp_path / "report.html")
    card = model_card(run, "me/model", [])
    card = card[: card.index("## Recipe")]
    for shown in (printed, text, card):
        assert f"{name}" in shown
        assert [shown[m.start() - 40 : m.end() + 40] for m in re.finditer("PPO", shown)] == []
    assert printed.startswith(f"{name} helped.")
    assert f"{name} minus SFT" in card
    assert f"- {name.lower()}\n" in card
    assert "Proximal policy optimisation" not in text


def test_ppo_is_the_name_of_the_estimator_with_a_critic(full: FullRun, tmp_path: Path) -> None:
    assert [name for name, method in METHODS.items() if method.label == "PPO"] == ["gae"]
    run = full()
    assert build_report(run, tmp_path / "report.html").startswith("PPO helped.")
    assert "Proximal policy optimisation" in page(tmp_path / "report.html")
    assert "PPO minus SFT" in model_card(run, "me/model", [])


def test_a_comparison_uses_the_name_that_both_policies_have(full: FullRun, tmp_path: Path) -> None:
    for folder, sets in (("a", RLOO), ("b", RLOO), ("c", "seed=1")):
        build_report(full("eval", sets), tmp_path / folder / "report.html")
    assert "RLOO’s policy" in compare_reports(tmp_path / "a", tmp_path / "b", tmp_path / "same.html")
    assert "PPO’s policy" in compare_reports(tmp_path / "a", tmp_path / "c", tmp_path / "other.html")


def test_the_name_is_translated_too(full: FullRun, tmp_path: Path) -> None:
    printed = build_report(full(None, f"{RLOO} report.language=zh"), tmp_path / "report.html")
    assert printed.startswith("RLOO 有效")
    assert "PPO" not in printed
