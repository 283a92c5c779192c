"""torchrun and `accelerate launch` start the same run as --nproc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

TINY = (
    "base.pretrain.corpus.size=200 base.pretrain.hidden_size=32 base.pretrain.intermediate_size=64 "
    "base.pretrain.trainer.num_train_epochs=1 base.check_tokens=4 data.demonstrations.size=200 "
    "sft.trainer.num_train_epochs=1 device=cpu"
)
LAUNCHERS = {
    "--nproc": ["-m", "stages", "run", "--nproc", "2"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "stages", "run"],
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "stages", "run"),
    ],
}


def run(runs: Path, launcher: list[str], *sets: str) -> str:
    command = [sys.executable, *launcher, "sft", "--runs", str(runs), "--set", " ".join([TINY, *sets])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifest(runs: Path) -> dict[str, Any]:
    (path,) = runs.glob("quickstart/sft/*/manifest.json")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


@pytest.mark.slow
def test_launchers_start_the_same_run(tmp_path: Path) -> None:
    records = {}
    for name, launcher in LAUNCHERS.items():
        run(tmp_path / name, launcher, "sharding=full")
        records[name] = manifest(tmp_path / name)
        assert records[name]["processes"] == 2
    assert records["torchrun"]["files"] == records["accelerate"]["files"] == records["--nproc"]["files"]
    assert records["torchrun"]["key"] == records["accelerate"]["key"] == records["--nproc"]["key"]


@pytest.mark.slow
def test_a_single_process_of_accelerate_says_so(tmp_path: Path) -> None:
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", *LAUNCHERS["--nproc"][:3]]
    assert "accelerate launch has started a single process" in run(tmp_path, launcher)
    assert manifest(tmp_path)["processes"] == 1
