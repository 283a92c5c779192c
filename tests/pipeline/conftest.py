"""A small recipe, and a runner of it with fake stages."""

from __future__ import annotations

import dataclasses
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_fakes import FakeStages, Lines

from pipeline.config.load import LoadedRecipe, load_recipe
from pipeline.engine import registry
from pipeline.engine import runner as running
from pipeline.engine.runner import Runner

RECIPE = """\
name: small
device: cpu
base: {pretrain: {corpus: {task: venues, size: 10}}}
data: {demonstrations: {task: venues, size: 10}}
rank: {source: simulated, annotators: [{name: ann}, {name: bob}]}
ppo:
  kl: {target: 6}
"""


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power, and waiting for the disk is most of their time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def load(recipe_file: Path) -> Callable[..., LoadedRecipe]:
    return lambda *sets: load_recipe("small.yaml", sets)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStages]:
    fakes = FakeStages()
    module = types.ModuleType("fake_stages")
    for name in registry.STAGES:
        setattr(module, name, fakes.function(name))
    monkeypatch.setitem(sys.modules, "fake_stages", module)
    specs = {
        name: dataclasses.replace(spec, target=f"fake_stages:{name}") for name, spec in registry.STAGES.items()
    }
    monkeypatch.setattr(registry, "STAGES", specs)
    monkeypatch.setattr(running, "_free_memory", lambda: None)  # slow once another test has imported torch
    return fakes


@pytest.fixture
def runner(load: Callable[..., LoadedRecipe], stages: FakeStages) -> Callable[..., Runner]:
    """`runner("seed=1", fresh=["ppo"])`: a runner of the small recipe with fake stages."""

    def make(*sets: str, **options: Any) -> Runner:
        return Runner(load(*sets), Path("runs"), display=options.pop("display", Lines()), **options)

    return make
