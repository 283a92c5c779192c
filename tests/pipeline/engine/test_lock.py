from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from pipeline.engine.lock import locked
from pipeline.errors import StageError

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.engine.lock import locked

with locked(Path(sys.argv[1]), wait=False, say=print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StageError, match=f"process {holder.pid} is at work on this stage"):
            locked(tmp_path, wait=False, say=print).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(tmp_path, wait=False, say=print):
        assert (tmp_path / "lock.pid").read_text() == str(os.getpid())


def test_an_error_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path, wait=False, say=print):
        raise KeyError
    with locked(tmp_path, wait=False, say=print):
        pass
