from __future__ import annotations

import platform
import time
from collections.abc import Callable

import pytest

from pipeline import machine
from pipeline.config.load import LoadedRecipe
from pipeline.device import resolve
from pipeline.errors import StageError
from pipeline.files import readable_bytes, readable_seconds


@pytest.fixture(params=["as this system can", "sampled"])
def measured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Peaks with and without the system's help."""
    monkeypatch.setattr(machine.PeakMemory, "left", 0)
    if request.param == "sampled":
        monkeypatch.setattr(machine, "_reset_peak", lambda: False)
    return str(request.param)


def test_peak_memory_sees_what_was_freed_again(measured: str) -> None:
    with machine.PeakMemory() as peak:
        before = machine._resident_bytes()
        block = bytearray(b"x" * 200_000_000)
        time.sleep(3 * peak.INTERVAL)
        del block
    assert before is not None
    assert peak.report()["peak_bytes"] > before + 150_000_000


def test_each_block_has_its_own_peak(measured: str) -> None:
    with machine.PeakMemory() as first:
        block = bytearray(b"x" * 200_000_000)
        time.sleep(3 * machine.PeakMemory.INTERVAL)
        del block
    with machine.PeakMemory() as second:
        after = machine._resident_bytes()
    assert after is not None
    assert second.report()["peak_bytes"] < after + 100_000_000
    assert first.report()["peak_bytes"] > after + 150_000_000
    assert ("sampled" in first.report()["how"]) or measured != "sampled"


def test_what_a_stage_leaves_is_not_in_the_next_ones_peak(measured: str) -> None:
    with machine.PeakMemory() as first:
        kept = b"x" * 200_000_000
    first.settle()
    with machine.PeakMemory() as second:
        block = b"x" * 50_000_000
        time.sleep(3 * machine.PeakMemory.INTERVAL)
    second.settle()
    assert len(kept) == 4 * len(block)
    peaks = [stage.report() for stage in (first, second)]
    assert 140e6 < peaks[0]["peak_bytes"] - peaks[1]["peak_bytes"] < 160e6
    assert peaks[0]["left_bytes"] == 0
    assert 190e6 < peaks[1]["left_bytes"] < 210e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep nothing, or do not say")
def test_free_memory_below_a_used_block_is_given_back() -> None:
    blocks = [bytearray(b"x" * 60_000) for _ in range(2_000)]
    del blocks[:-1]
    kept = machine._resident_bytes()
    assert machine.trim_memory()
    after = machine._resident_bytes()
    assert kept is not None
    assert after is not None
    assert after < kept - 80_000_000
    assert len(blocks[0]) == 60_000


def test_versions_are_those_of_what_is_imported() -> None:
    import torch

    versions = machine.package_versions()
    assert versions["torch"] == torch.__version__
    assert versions["python"] == platform.python_version()


def test_a_missing_device_is_refused(load: Callable[..., LoadedRecipe]) -> None:
    with pytest.raises(StageError, match="this machine has no mps device") as error:
        resolve(load("device=mps"))
    assert error.value.where == "--set #1"


def test_threads_are_set(load: Callable[..., LoadedRecipe]) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        assert resolve(load("threads=1")) == "cpu"
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "2 kB"), (5e6, "5 MB"), (2.5e9, "2.5 GB")]
)
def test_readable_bytes(size: float, text: str) -> None:
    assert readable_bytes(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (75, "1 min 15 s"), (3700, "1 h 01 min")])
def test_readable_seconds(seconds: float, text: str) -> None:
    assert readable_seconds(seconds) == text
