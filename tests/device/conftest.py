"""Tests on the simulated device. It changes the process it is registered in, so this folder runs in a process of
its own, started by tests/stages/test_simulated_device.py with SIMULATED_DEVICE set; a plain pytest run leaves it
out."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if "SIMULATED_DEVICE" in os.environ:
    TESTS = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(TESTS / folder) for folder in (".", "stages", "invariants")]
    import simulated_device

    os.environ["ACCELERATE_TORCH_DEVICE"] = simulated_device.install()

    import torch

    _spec: Any = importlib.util.spec_from_file_location("stage_fixtures", TESTS / "stages" / "conftest.py")
    _stages = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_stages)
    training_context = _stages.training_context

    torch.set_num_threads(1)

    @pytest.fixture(autouse=True)
    def _nothing_is_refused(request: pytest.FixtureRequest) -> Iterator[None]:
        """The product may catch what the device raises, and go on in another way."""
        before = len(simulated_device.refused)
        yield
        if "expects_refusals" not in request.keywords:
            assert simulated_device.refused[before:] == []
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "expects_refusals: the test makes the device refuse something")
    # peft 0.21 asks transformers 5.23 for an attribute by its old name.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
