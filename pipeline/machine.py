"""What a manifest records about the machine: versions, hardware, memory. Uses torch only if it is already imported.

Versions are looked up once per process, because code that changes on disk later is not the code that runs.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
import threading
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "tutelage",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "numpy",
)


@cache
def package_versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def code_commit() -> str | None:
    """The commit of this code's checkout, or None if it is not in one."""
    return _git("rev-parse", "HEAD")


@cache
def code_state() -> dict[str, Any]:
    """The commit, and whether the checkout has uncommitted changes."""
    commit = code_commit()
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain")) if commit else None}


def hardware() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": gpu,
        "threads": torch.get_num_threads() if torch else None,
        "platform": platform.platform(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _resident_bytes(name: str = "VmRSS") -> int | None:
    """The resident size of this process; with "VmHWM" its highest value, which only Linux knows."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if name != "VmRSS":
        return None
    try:
        import psutil  # type: ignore[import-untyped]  # comes with accelerate
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)


def _reset_peak() -> bool:
    """Makes the system record the highest resident size anew. Returns whether it does: only Linux can, and a
    sandbox may refuse, or accept the request and ignore it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    highest, now = _resident_bytes("VmHWM"), _resident_bytes()
    return highest is not None and now is not None and highest <= now + 2**24


RETURNED = 2**20
"""Bytes of the smallest block that is returned to the system as soon as it is freed (`return_memory`)."""


def return_memory() -> bool:
    """Makes the C library return large blocks to the system as soon as they are freed. Returns whether it can.

    By default glibc raises its limit for this with every freed block, up to 32 MB, and keeps smaller blocks for
    later: a quarter of a training run's peak was such memory (docs/log/memory.md). The price is page faults at each
    allocation.
    """
    libc = _glibc()
    return libc is not None and bool(libc.mallopt(-3, RETURNED))  # M_MMAP_THRESHOLD


def trim_memory() -> bool:
    """Makes the C library return the memory that is free now, once. Returns whether there was any. Takes about a
    millisecond."""
    libc = _glibc()
    return libc is not None and bool(libc.malloc_trim(0))


@cache
def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 (other C libraries have another constant, or none)
    except (AttributeError, OSError):
        return None
    return libc


_OUT_OF_MEMORY = (
    " out of memory",  # CUDA, HIP, MPS; and a kernel launch without memory
    "can't allocate memory",  # PyTorch on a CPU
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER: their workspaces
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cuBLAS, if there is no memory for its handle
    "cublasLt ran into an error",  # bitsandbytes' int8 product, which needs a cuBLAS workspace
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a device or on the host, in any library that allocates.
    PyTorch's exception class covers only its own allocator."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


class PeakMemory:
    """Measures the peak memory of a stage: `with PeakMemory() as peak: ...`, then `peak.report()`.

    On Linux the system records the highest resident size, reset for each stage; elsewhere a thread samples the size
    ten times per second. Child processes are not counted.

    A process that has run other stages is larger from the start: kernels compiled for their shapes stay cached,
    and their allocator's blocks stay fragmented. `settle` measures what a stage leaves, and the reports of later
    stages are without it, so that a stage has about the same figure whatever ran before.
    """

    INTERVAL = 0.1
    left = 0
    """Bytes that the stages of this process have left in it so far."""

    def __init__(self) -> None:
        self._peak = self._before = 0
        self._before_stage = PeakMemory.left
        self._exact = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        torch = sys.modules.get("torch")
        if torch and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._before = _resident_bytes() or 0
        self._exact = _reset_peak()
        self._sample()
        if not self._exact:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._exact:
            self._done.set()
            self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._done.wait(self.INTERVAL):
            self._sample()

    def _sample(self) -> None:
        now = _resident_bytes("VmHWM" if self._exact else "VmRSS")
        self._peak = max(self._peak, now or 0)

    def settle(self) -> None:
        """Call this when the stage's garbage is freed: what the process has grown by is what the stage left."""
        if self._before and (now := _resident_bytes()):
            PeakMemory.left = max(0, PeakMemory.left + now - self._before)

    def report(self) -> dict[str, Any]:
        """`peak_bytes`, without `left_bytes` of earlier stages; `peak_gpu_bytes`; and `how` it was measured."""
        torch = sys.modules.get("torch")
        gpu = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else None
        if self._peak:
            how = "highest resident size" if self._exact else "resident size, sampled at 10 Hz"
            left = min(self._before_stage, self._peak)
            return {"peak_bytes": self._peak - left, "peak_gpu_bytes": gpu, "left_bytes": left, "how": how}
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {
            "peak_bytes": peak,
            "peak_gpu_bytes": gpu,
            "how": "resident size, highest of the whole process",
        }
