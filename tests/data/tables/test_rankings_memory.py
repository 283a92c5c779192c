"""Memory does not grow with the table: once the sample and the caches are full, more rankings add little."""

import re
import subprocess
import sys

import pytest
from repository import ROOT

SCRIPT = ROOT / "benchmarks" / "rankings_memory.py"
SMALL, LARGE = 12_000, 50_000
MOST = 25.0
"""MB that the larger table may add. It adds 3 to 9; 400 bytes per ranking would be too many."""


@pytest.mark.slow
@pytest.mark.parametrize("format", ["wide", "long"])
def test_peak_memory_does_not_grow_with_the_table(format):
    command = [sys.executable, str(SCRIPT), "--format", format, "--sizes", str(SMALL), str(LARGE)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peaks = {}
    for size, stage, megabytes in re.findall(r"([\d,]+) rankings\s+(\w+)\s+([\d.]+) MB", output):
        peaks[stage, int(size.replace(",", ""))] = float(megabytes)
    assert len(peaks) == 4, output
    for stage in ("data", "rank"):
        assert peaks[stage, LARGE] - peaks[stage, SMALL] < MOST, output
