"""Settings of the libraries below torch. They read them once, when torch loads."""

from __future__ import annotations

import os

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The variable's name, and its name before PyTorch 2.9."""
OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""How long an OpenMP thread waits actively: the variables of the standard, GNU and LLVM."""


def prepare() -> None:
    """Sets them for this process and its children, unless the user has set them. Must be called before torch loads.

    - The CUDA allocator uses expandable segments. Sampling and training alternately request blocks of different
      sizes, and memory between fixed segments would be lost to both.
    - Threads of GNU's OpenMP spin for microseconds instead of milliseconds before they sleep. On a machine with
      shared cores, a spinning thread keeps the thread that it waits for from running (docs/performance.md).
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    if not any(name in os.environ for name in OPENMP):
        os.environ["GOMP_SPINCOUNT"] = "1000"
