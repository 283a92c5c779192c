"""Every stage on a simulated device (tests/simulated_device.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

SMALL = (
    "base.pretrain.corpus.size=200 base.pretrain.hidden_size=32 base.pretrain.intermediate_size=64 "
    "base.pretrain.max_position_embeddings=160 base.pretrain.trainer.max_steps=20 base.check_tokens=4 "
    "data.demonstrations.size=120 sft.trainer.max_steps=3 "
    "collect.num_prompts=12 collect.eval_prompts=6 collect.response_length=12 collect.num_completions=3 "
    "reward.trainer.max_steps=3 reward.gate=null "
    "ppo.kl.num_prompts=4 ppo.kl.num_generations=8 ppo.kl.target=0.5 "
    "ppo.total_episodes=16 ppo.batch_size=8 ppo.response_length=12 ppo.eval_updates=1 ppo.eval_prompts=4 "
    "eval.num_prompts=6 eval.response_length=12 eval.bootstrap=50 eval.best_of_n=2 "
    "dpo.enabled=true dpo.trainer.max_steps=2"
)
EVERYTHING = "ppo.value=adapter ppo.ptx_coef=0.1 ppo.gradient_checkpointing=true ppo.micro_batch_size=auto "

PATHS = ("tests/device", "tests/invariants/test_on_device.py")


def pytest_on_the_device(*arguments: str) -> subprocess.CompletedProcess[str]:
    # os._exit, because the thread that autograd starts for a device in Python outlives the interpreter.
    code = "import os, sys, pytest; code = pytest.main(sys.argv[1:]); sys.stdout.flush(); os._exit(code)"
    return subprocess.run(
        [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", *PATHS, *arguments],
        cwd=ROOT,
        env=os.environ | {"SIMULATED_DEVICE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_device_tests_pass() -> None:
    result = pytest_on_the_device("-m", "not slow")
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


@pytest.mark.slow
def test_slow_device_tests_pass() -> None:
    result = pytest_on_the_device("-m", "slow")
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sets",
    [
        pytest.param("base.dtype=float32", id="float32"),
        pytest.param(f"base.dtype=bfloat16 reward.ensemble=2 {EVERYTHING}", id="bfloat16-everything"),
        pytest.param("base.dtype=float16 ppo.value=trunk", id="float16-trunk"),
        pytest.param("base.dtype=float32 rounds=2", id="rounds"),
        pytest.param("base.dtype=float32 base.quantization.qat=q4_0", id="qat"),
        pytest.param(f"base.dtype=float32 sft.lora=null reward.lora=null {EVERYTHING}", id="full"),
        pytest.param("base.dtype=bfloat16 sft.lora=null reward.lora=null", id="full-bfloat16"),
    ],
)
def test_the_command_line_runs_to_eval_dpo_and_export(tmp_path: Path, sets: str) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "tests/simulated_run.py", str(report), "run", "export"]
    options = ["--recipe", "recipes/quickstart.yaml", "--set", f"{SMALL} {sets}", "--runs", str(tmp_path / "runs")]
    result = subprocess.run(
        [*command, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-8000:]
    operations = json.loads(report.read_text(encoding="utf-8"))
    assert operations["refused"] == []
    assert list(tmp_path.glob("runs/*/export/*/out/model.safetensors"))
    assert list(tmp_path.glob("runs/*/dpo/*/out/adapter")) or "lora=null" in sets
