"""A tiny run, served."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import Api, served_run, serving

from pipeline.config.load import load_recipe
from pipeline.engine.plan import RunSummary
from stages.serve.models import Served, load_run

RECIPE = """\
name: small
device: cpu
base: {pretrain: {corpus: {task: venues, size: 10}}}
data: {demonstrations: {task: venues, size: 10}}
rank: {source: simulated, annotators: [{name: ann}, {name: bob}]}
ppo:
  kl: {target: 6}
"""


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    folder = tmp_path_factory.mktemp("served")
    (folder / "small.yaml").write_text(RECIPE)
    return served_run(folder / "runs", load_recipe(folder / "small.yaml", []))


@pytest.fixture(scope="package")
def served(run: RunSummary) -> Served:
    return load_run(run, [], "cpu")


@pytest.fixture(scope="package")
def api(served: Served) -> Iterator[Api]:
    with serving(served) as client:
        yield client
