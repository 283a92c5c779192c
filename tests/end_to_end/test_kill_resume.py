"""A run killed at random moments and resumed writes the same artifacts, to the bit, as an uninterrupted run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

TINY = (
    "base.pretrain.corpus.size=200 base.pretrain.hidden_size=32 base.pretrain.intermediate_size=64 "
    "base.pretrain.trainer.num_train_epochs=1 base.check_tokens=4 data.demonstrations.size=200 "
    "collect.num_prompts=12 collect.eval_prompts=6 collect.response_length=24 reward.trainer.num_train_epochs=8 "
    "reward.gate=null ppo.total_episodes=128 ppo.batch_size=16 ppo.kl.kind=adaptive "
    "ppo.response_length=24 ppo.eval_updates=3 ppo.eval_prompts=4 eval.num_prompts=12 eval.response_length=24 "
    "eval.bootstrap=50 sft.trainer.num_train_epochs=2 ppo.save_updates=1 ppo.score.normalization=running"
)
OFTEN = (
    "base.pretrain.trainer.save_steps=3 sft.trainer.save_steps=2 reward.trainer.save_steps=2 "
    "base.pretrain.trainer.logging_steps=5 sft.trainer.logging_steps=3 reward.trainer.logging_steps=3"
)
"""Checkpoints fall between log lines, so they must hold the running sums of the log."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sets", "nproc"),
    [
        pytest.param("sft.lora.lora_dropout=0.1 reward.lora.lora_dropout=0.1", 1, id="lora, dropout"),
        pytest.param("sft.lora=null reward.lora=null", 1, id="full"),
        pytest.param("sft.packing=true", 2, id="two processes"),
        pytest.param("sharding=full sft.lora=null reward.lora=null", 2, id="two processes, sharded"),
    ],
)
def test_a_killed_run_resumes_to_identical_artifacts(sets: str, nproc: int, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_resume.py"), "--kills", "4", "--seed", "1"]
    command += ["--nproc", str(nproc), "--folder", str(tmp_path), "--set", f"{TINY} {OFTEN} {sets}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    ended = re.search(r"^(\d+) kills: all artifacts and metrics are bit-identical$", done.stdout, re.MULTILINE)
    assert ended, done.stdout + done.stderr
    assert int(ended[1]) >= 2
