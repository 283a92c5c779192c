"""Several processes of one run: the first error is the one that is told, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from repository import ROOT

from pipeline.engine import launch as launching
from pipeline.engine.processes import Processes
from pipeline.engine.runner import terminate_as_interrupt
from pipeline.errors import Interrupted, RecipeError, TutelageError

START = f"import os, signal, sys, time; sys.path.insert(0, {str(ROOT)!r}); rank = int(os.environ['RANK'])\n"


def launch(code: str, count: int = 2) -> None:
    launching.launch(count, ["-c", START + code], [sys.executable])


def test_all_processes_end_well(tmp_path: Path) -> None:
    launch(f"open({str(tmp_path)!r} + f'/{{rank}} of ' + os.environ['WORLD_SIZE'], 'w')", count=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0 of 3", "1 of 3", "2 of 3"]


def test_cores_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch(f"open({str(tmp_path / 'threads')!r}, 'w').write(os.environ['OMP_NUM_THREADS'])")
    assert int((tmp_path / "threads").read_text()) == max(1, len(os.sched_getaffinity(0)) // 2)


FAILS = """
from pipeline.errors import DataError
from pipeline.engine.launch import report_failure
if rank == {rank}:
    report_failure(DataError("the row is bad", where="file:3", hint="fix it"))
    sys.exit(3)
try:
    time.sleep(30)
finally:
    report_failure(ConnectionError("a peer is gone"))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_error_is_raised_with_its_exit_code(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "GRACE", 0.3)
    with pytest.raises(TutelageError) as caught:
        launch(FAILS.format(rank=rank))
    assert str(caught.value) == "the row is bad\n  where: file:3\n  hint:  fix it"
    assert caught.value.exit_code == 3


BUG = """
from pipeline.engine.launch import report_failure
try:
    1 / 0
except Exception as error:
    report_failure(error)
    sys.exit(1)
"""


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(TutelageError, match=r"Traceback[\s\S]*ZeroDivisionError") as caught:
        launch(BUG)
    assert caught.value.exit_code == 1


KILLED = """
from pipeline.engine.launch import report_failure
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.05)
tell(RuntimeError("Connection closed by peer"))
sys.exit(1)
"""


def test_a_killed_process_is_named_though_its_peer_complains() -> None:
    with pytest.raises(TutelageError, match="process 1 of 2 was killed by SIGKILL") as caught:
        launch(KILLED)
    assert caught.value.exit_code == 137


def test_a_polite_kill_ends_all_and_is_an_interruption(tmp_path: Path) -> None:
    """As Ctrl-C does, which the terminal sends to the launcher alone."""
    code = f"open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(str(os.getpid()))\ntime.sleep(60)"

    def kill_when_both_run() -> None:
        while len([path for path in tmp_path.iterdir() if path.read_text()]) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=kill_when_both_run, daemon=True).start()
    with terminate_as_interrupt(), pytest.raises(Interrupted, match="interrupted") as caught:
        launch(code)
    assert caught.value.exit_code == 130
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_the_number_of_processes_must_match_nproc(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu` starts one process whatever it is told."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Processes.join().size == 1
    assert not Processes.join().describe()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert "started a single process" in Processes.join().describe()
    with pytest.raises(RecipeError, match="asks for 2 processes, and the environment says 1"):
        Processes.join(2)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed is not supported"),
        ("ACCELERATE_USE_FSDP", "true", "FSDP cannot be configured through accelerate"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "tensor and context parallelism are not supported"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "precision cannot be set through accelerate"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "torch.compile cannot be set through accelerate"),
    ],
)
def test_what_the_recipe_decides_cannot_be_set_through_accelerate(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=message):
        Processes.join()
