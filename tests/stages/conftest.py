from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.stage import Artifact, RunContext


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., RunContext]:
    """Makes the context of a stage that needs neither metrics log nor progress display."""

    def make(seed: int = 0) -> RunContext:
        none: Any = None
        return RunContext(
            seed=seed, device="cpu", state_dir=tmp_path, metrics=none, progress=none, say=lambda line: None
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
