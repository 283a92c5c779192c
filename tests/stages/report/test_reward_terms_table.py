"""The report's table of reward terms."""

from __future__ import annotations

from dataclasses import asdict

from pipeline.config.ppo import PPOConfig
from pipeline.config.terms import LengthConfig, ScoreConfig, TermConfig
from pipeline.engine.stage import parse
from stages.ppo.artifact import EvaluationPoint, PPOMetrics, PPOResult, PPOSettings
from stages.report.reward_terms import rows, summaries

TERMS = [
    TermConfig(name="model", model="reward", weight=0.5),
    TermConfig(name="length", length=LengthConfig(target=9)),
    TermConfig(name="rare", pattern="x", held_out=True),
    TermConfig(name="scaled", pattern="x", score=ScoreConfig(normalization="running")),
]


def result(terms: list[TermConfig] | None, selected: int) -> PPOResult:
    config = asdict(PPOConfig(reward=PPOConfig().reward.__class__(terms=terms)))
    points = [
        EvaluationPoint(
            update=update,
            kl=0.0,
            score=0.0,
            length=1.0,
            terms={"model": [update, 3.0], "length": [-1.0, -2.0], "rare": [None, None], "scaled": [None, 4.0]},
        )
        for update in (0, 8, 16)
    ]
    return PPOResult(
        points=points,
        alerts=[],
        settings=parse(PPOSettings, config, "manifest.json"),
        metrics=PPOMetrics(updates=16, selected_update=selected),
    )


def test_terms_are_compared_between_the_start_and_the_selected_point() -> None:
    table = rows(summaries(result(TERMS, selected=8)))
    assert [(row["name"], row["weight"], row["scaled"]) for row in table] == [
        ("model", "0.5", "the reference’s answers"),
        ("length", "1", ""),
        ("rare", "held out of the reward", ""),
        ("scaled", "1", "all batches so far"),
    ]
    assert [(row["before"], row["after"]) for row in table][:2] == [("1.50", "5.50"), ("−1.50", "−1.50")]
    assert table[2]["before"] == table[2]["after"] != "0.00"
    assert table[3]["after"] == "4.00"


def test_a_reward_model_alone_has_no_table() -> None:
    assert summaries(result(None, selected=8)) == []
