"""The report, the card and the next steps of a run without SFT name the base model instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import build, model
from full_run import FullRun, win
from pipeline_fakes import FakeStages

from pipeline.engine.plan import RunSummary
from pipeline.engine.runner import Runner
from stages.eval.artifact import Evaluation
from stages.publish.card import comparisons, model_card
from stages.report import win_rates
from stages.report.findings import collect
from stages.report.next_steps import steps


@pytest.fixture
def run(stages: FakeStages, runner: Callable[..., Runner]) -> RunSummary:
    fake = FullRun(stages, runner)
    content = fake.evaluation
    del content["models"]["sft"]
    content["models"]["base"] = model(0.13, kl=0.0)
    content["wins"] = [row | {"theirs": row["theirs"].replace("sft", "base")} for row in content["wins"]]
    improved: list[dict[str, Any]] = content["extremes"]["improved"]
    for row in improved:
        row["base"] = row.pop("sft")
    fake.sample = fake.sample | {
        name: {key: value for key, value in fake.sample[name].items() if key != "sft"}
        for name in ("answers", "faults")
    }
    finished: RunSummary = fake(None, "sft=null")
    return finished


def test_no_sentence_speaks_of_sft(run: RunSummary, tmp_path: Path) -> None:
    printed, page = build(run, tmp_path)
    assert "SFT" not in printed
    assert "PPO’s answer beats the base model’s on" in printed
    assert "PPO’s KL from the base model is 1.86 nats per response" in printed
    texts = re.sub(r"SFTSupervised fine-tuning on demonstrations, before PPO\.", "", page.text)  # the glossary
    assert [texts[m.start() - 60 : m.end() + 40] for m in re.finditer(r"\bSFT", texts)] == []
    assert "Change from the base model" in texts
    assert "<h3>Base</h3>" in page.source
    assert "KL from the base model" in texts


def test_the_base_model_has_one_column_and_no_interval_of_its_kl(run: RunSummary) -> None:
    evaluation = Evaluation.read(run.need("eval").artifact)
    assert list(win_rates.names(evaluation)) == ["base", "dpo", "raft", "best_of_n", "ppo"]
    assert evaluation.reference == "base"
    assert win_rates.against_reference(evaluation)["ppo"].theirs == "base"
    assert {name: value for name, value, _, _ in comparisons(evaluation)}["win_rate"] == 0.71


def test_the_next_step_is_a_chat_with_the_base_model(run: RunSummary) -> None:
    first = steps(run, collect(run))[0]
    assert first.text == "Talk to the base model and PPO side by side:"
    assert first.command.endswith("chat base ppo")


def test_the_card_says_that_there_was_no_sft(run: RunSummary) -> None:
    card = model_card(run, "me/model", [])
    text = card[: card.index("## Recipe")]
    assert (
        "a reward model from rankings and, without supervised fine-tuning before it, PPO with a KL penalty." in text
    )
    assert "win rate against the base model" in text
    assert "PPO minus Base" in text
    assert "SFT" not in text


def test_a_win_row_of_sft_is_not_the_reference_where_there_is_sft() -> None:
    rows = [win("j", "ppo", "base", 0.9), win("j", "ppo", "sft", 0.6)]
    content = {"judge": None, "models": {"base": model(0.1), "sft": model(0.1), "ppo": model(0.1)}, "wins": rows}
    assert [row.value for row in win_rates.other_judges(Evaluation.of(content))] == [0.6]
