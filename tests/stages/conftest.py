import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.stage import Artifact, RunContext


def pytest_configure(config: pytest.Config) -> None:
    # peft 0.21 asks transformers 5.23 for an attribute by its old name.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from more, and tests that share two cores lose."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., RunContext]:
    """Makes the context of a stage that needs no metrics log and whose progress nobody looks at."""

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


class Notes:
    """What a stage says of its progress: the metrics log, the progress display and the lines to the user."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.truncated: list[int] = []
        self.lines: list[str] = []
        self.advanced = 0
        self.numbers: dict[str, float] = {}

    def log(self, step: int, **values: Any) -> None:
        self.logged.append((step, values))

    def truncate(self, step: int) -> None:
        self.truncated.append(step)

    def advance(self, steps: int = 1, **numbers: float) -> None:
        self.advanced += steps
        self.numbers |= numbers

    @contextlib.contextmanager
    def progress(self, name: str, total: int | None = None, done: int = 0) -> Iterator["Notes"]:
        self.advanced += done
        yield self


@pytest.fixture
def training_context(tmp_path: Path) -> Callable[..., tuple[RunContext, Notes]]:
    """Makes the context of a stage that trains, and what it takes down."""

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
