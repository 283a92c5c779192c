"""Benchmarks run from the command line, on runs of a few seconds. What they print is in the documentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT
from small_run import SMALL

pytestmark = pytest.mark.slow
SETS = f"{SMALL} device=cpu"


def printed(script: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_reward_losses_compares_variants_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    arguments = ["--recipe", "quickstart", "--set", SETS, "--runs", tmp_path / "runs", "--out", out, "--seeds", "2"]
    pairwise, listwise = "pairwise=reward.objective=bradley_terry", "listwise=reward.objective=plackett_luce"
    first = printed("reward_losses.py", *arguments, "--variant", pairwise)
    assert "pairwise seed 1: accuracy" in first
    second = printed("reward_losses.py", *arguments, "--variant", pairwise, "--variant", listwise)
    assert "pairwise seed" not in second
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("pairwise", 0),
        ("pairwise", 1),
        ("listwise", 0),
        ("listwise", 1),
    ]
    table = second.splitlines()[-2:]
    for name, line in zip(("pairwise", "listwise"), table, strict=True):
        accuracies = [row["accuracy"] for row in rows if row["variant"] == name]
        assert line.split()[:3] == [name, "2", f"{sum(accuracies) / 2:.3f}"]


def test_serving_loads_a_server_and_finds_every_stream(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stages", "run", "sft", "--runs", str(tmp_path), "--set", SETS]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    table = printed(
        *("serving.py", "--clients", "4", "--minutes", "0.1", "--tokens", "8", "--"),
        *("base", "sft", "--recipe", "quickstart", "--runs", tmp_path, "--set", SETS),
    )
    for line in (
        "one client, sft: ",
        "4 clients: ",
        " finished, 0 lost, ",
        "0 running, 0 waiting",
        "10,000 words: 400 context_length_exceeded",
        "garbage: 400 ",
        "disconnected in mid-stream: ",
    ):
        assert line in table, table
