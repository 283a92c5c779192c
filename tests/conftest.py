"""Fixtures: a small recipe, its runner with fake stages, and the RunContext of a stage."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_fakes import FakeStages, Lines

import stages.registry
from pipeline import invocation
from pipeline.config.load import LoadedRecipe, load_recipe
from pipeline.device import available_device
from pipeline.engine import registry
from pipeline.engine import runner as running
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Artifact, RunContext
from pipeline.errors import StageError

RECIPE = """\
name: small
device: cpu
base: {pretrain: {corpus: {task: venues, size: 10}}}
data: {demonstrations: {task: venues, size: 10}}
rank: {source: simulated, annotators: [{name: ann}, {name: bob}]}
ppo:
  kl: {target: 6}
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="cpu",
        help="where tests/invariants/test_on_device.py computes",
    )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The torch device of `--device`, or the simulated one of tests/device."""
    if "SIMULATED_DEVICE" in os.environ:
        import simulated_device

        return simulated_device.NAME
    try:
        return available_device(request.config.getoption("--device"))
    except StageError as error:
        pytest.exit(error.what, returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, or else Playwright's. Of one module: while it is open, no other event loop can run."""
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        if system is None and not os.path.exists(driver.chromium.executable_path):
            pytest.skip("there is no Chromium: install one, or run `playwright install chromium`")
        launched = driver.chromium.launch(executable_path=system)
        yield launched
        launched.close()


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test simulates a power cut, and fsync takes most of the tests' time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def plain_invocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages print commands as if no command line had been read, and make had not been used."""
    monkeypatch.delenv(invocation.MAKE, raising=False)
    monkeypatch.setattr(invocation, "_present", invocation.Invocation())


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


def pytest_configure(config: pytest.Config) -> None:
    # peft 0.21 asks transformers 5.23 for an attribute by its old name.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """More threads do not speed up tiny tensors, and slow down tests that run in parallel."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., RunContext]:
    """Makes the context of a stage without a metrics log; its progress is discarded."""

    def make(seed: int = 0) -> RunContext:
        none: Any = None
        progress = Notes().progress
        return RunContext(
            seed=seed,
            device="cpu",
            state_dir=tmp_path,
            metrics=none,
            progress=progress,
            say=lambda line: None,
            recipe_dir=tmp_path,
        )

    return make


class Bar:
    """A loop of `Notes`."""

    def __init__(self, notes: Notes, name: str) -> None:
        self.notes, self.name = notes, name

    def advance(self, steps: int = 1, **numbers: float) -> None:
        self.notes.bars[self.name] += steps
        self.notes.advance(steps, **numbers)


class Notes:
    """Records a stage's metrics log, progress (of all loops, and by name in `bars`) and messages."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.truncated: list[int] = []
        self.lines: list[str] = []
        self.advanced = 0
        self.bars: Counter[str] = Counter()
        self.numbers: dict[str, float] = {}

    def log(self, step: int, **values: Any) -> None:
        self.logged.append((step, values))

    def truncate(self, step: int) -> None:
        self.truncated.append(step)

    def advance(self, steps: int = 1, **numbers: float) -> None:
        self.advanced += steps
        self.numbers |= numbers

    @contextlib.contextmanager
    def progress(self, name: str, total: int | None = None, done: int = 0) -> Iterator[Bar]:
        self.advanced += done
        self.bars[name] += done
        yield Bar(self, name)


@pytest.fixture
def training_context(tmp_path: Path) -> Callable[..., tuple[RunContext, Notes]]:
    """Makes the context of a stage that trains, and the Notes that record its output."""

    def make(seed: int = 0, state: str = "state", **values: Any) -> tuple[RunContext, Notes]:
        notes = Notes()
        folder = tmp_path / state
        folder.mkdir(exist_ok=True)
        return (
            RunContext(
                seed=seed,
                device="cpu",
                state_dir=folder,
                metrics=notes,
                progress=notes.progress,
                say=notes.lines.append,
                recipe_dir=tmp_path,
                **values,
            ),
            notes,
        )

    return make


@pytest.fixture
def artifact(tmp_path: Path) -> Callable[[str], Artifact]:
    """Makes an empty artifact of a stage."""

    def make(stage: str) -> Artifact:
        folder = tmp_path / stage
        folder.mkdir(exist_ok=True)
        return Artifact(stage, folder, "0" * 64)

    return make
