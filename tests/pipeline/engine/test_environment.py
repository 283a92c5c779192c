from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.engine import environment


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*environment.ALLOCATOR, *environment.OPENMP):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("bare")
def test_libraries_are_set_up_before_torch_loads() -> None:
    program = (
        "import os, sys\n"
        "from stages import __main__\n"
        "assert 'torch' not in sys.modules\n"
        "__main__.app = lambda **_: print(os.environ['PYTORCH_ALLOC_CONF'], os.environ['GOMP_SPINCOUNT'])\n"
        "__main__.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["expandable_segments:True", "1000"]


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("name", "left_alone"),
    [
        ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
        ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
        ("KMP_BLOCKTIME", "GOMP_SPINCOUNT"),
    ],
)
def test_what_the_user_set_stays(name: str, left_alone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    environment.prepare()
    assert os.environ[name] == "7"
    assert left_alone not in os.environ
