"""Tests on the simulated device (tests/simulated_device.py).

The device changes the process it is registered in, so tests/end_to_end/test_simulated_device.py runs this folder in
a separate process with SIMULATED_DEVICE set. A plain pytest run skips it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if "SIMULATED_DEVICE" in os.environ:
    import simulated_device

    os.environ["ACCELERATE_TORCH_DEVICE"] = simulated_device.install()

    @pytest.fixture(autouse=True)
    def _nothing_is_refused(request: pytest.FixtureRequest) -> Iterator[None]:
        """Fails on refusals that the code under test catches, too."""
        before = len(simulated_device.refused)
        yield
        if "expects_refusals" not in request.keywords:
            assert simulated_device.refused[before:] == []
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "expects_refusals: the test makes the device refuse something")
