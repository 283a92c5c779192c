from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_run import RANKING, FakeRun
from hub_run import write_base, write_model, write_policy
from pipeline_fakes import FakeStages, write_rankings

from pipeline.engine.plan import RunSummary
from pipeline.engine.runner import Runner


@pytest.fixture
def finished(runner: Callable[..., Runner], stages: FakeStages) -> Callable[..., RunSummary]:
    """Runs the small recipe with these values, unless a test has put something else in a stage's place."""
    fake = FakeRun(stages, runner)
    stages.does |= {
        "base": write_base(fake),
        "ppo": write_policy(fake),
        "rank": lambda *given: write_rankings(*given) | RANKING,
        "export": write_model,
    }

    def make(*sets: str) -> RunSummary:
        made = runner(*sets)
        made.run()
        return made.planner.summary()

    return make
