"""Settings of the libraries below torch, which they read once, when torch loads."""

from __future__ import annotations

import os

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The name, and the one that it had before PyTorch 2.9."""
OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""How long a thread of OpenMP waits actively: the standard's name, GNU's and LLVM's."""


def prepare() -> None:
    """Sets them for this process and those that it starts, unless the user has. To be called before torch loads.

    - The CUDA allocator grows its segments: rollout and training ask for blocks of different sizes in turn, and
      room between fixed segments is lost to both.
    - Threads of GNU's OpenMP that wait for work spin for microseconds instead of milliseconds before they sleep. On
      a machine whose cores are shared, a spinning thread keeps the one that it waits for from running
      (docs/performance.md).
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    if not any(name in os.environ for name in OPENMP):
        os.environ["GOMP_SPINCOUNT"] = "1000"
