"""Memory does not grow with the table: a table 200 times larger adds at most the size of the sample and caches."""

import re
import subprocess
import sys

import pytest
from repository import ROOT

SCRIPT = ROOT / "benchmarks" / "rankings_memory.py"
MOST = {"data": 60.0, "rank": 60.0}
"""Stage -> the most MB above the peak of a thousand rankings."""


@pytest.mark.slow
@pytest.mark.parametrize("format", ["wide", "long"])
def test_peak_memory_does_not_grow_with_the_table(format):
    command = [sys.executable, str(SCRIPT), "--format", format, "--sizes", "1000", "200000"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peaks = {}
    for size, stage, megabytes in re.findall(r"([\d,]+) rankings\s+(\w+)\s+([\d.]+) MB", output):
        peaks[stage, int(size.replace(",", ""))] = float(megabytes)
    assert len(peaks) == 4, output
    for stage, most in MOST.items():
        assert peaks[stage, 200_000] - peaks[stage, 1000] < most, output
