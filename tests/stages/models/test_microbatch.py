"""Out-of-memory errors: which exceptions count, and how passes continue."""

from __future__ import annotations

import pytest
import torch

from pipeline.machine import out_of_memory
from stages.models.microbatch import MicroBatch

SHORTAGES = [
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB"
    ),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cublasLt ran into an error!\n\tshapeA=(64, 64)"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: (str(error) or "MemoryError")[:40])
def test_shortages_of_every_allocator_are_recognised(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("CUDA out of memory"), KeyError("x")],
    ids=str,
)
def test_other_errors_are_not_shortages(error: Exception) -> None:
    assert not out_of_memory(error)


class Scarce:
    """Work that runs out of memory above `room` rows."""

    def __init__(self, room: int, error: Exception = SHORTAGES[0]) -> None:
        self.room, self.error, self.sizes, self.done = room, error, [], []  # type: ignore[var-annotated]

    def __call__(self, rows: list[int]) -> None:
        self.sizes.append(len(rows))
        if len(rows) > self.room:
            raise self.error
        self.done += rows


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: (str(error) or "MemoryError")[:40])
def test_passes_continue_with_the_remaining_rows(error: Exception) -> None:
    messages: list[str] = []
    micro, work = MicroBatch(8, "scoring", messages.append), Scarce(3, error)
    micro.each(list(range(20)), work)
    assert work.done == list(range(20)), "each row once, in order"
    assert work.sizes == [8, 4] + [2] * 10
    assert micro.size == 2
    assert messages == [
        "out of memory: scoring goes on with 4 sequences at once instead of 8",
        "out of memory: scoring goes on with 2 sequences at once instead of 4",
    ]


def test_a_part_that_does_not_fit_is_halved_from_its_size() -> None:
    micro, work = MicroBatch(None), Scarce(4)
    micro.each(list(range(10)), work)
    assert work.sizes == [10, 5, 2, 2, 2, 2, 2]
    assert work.done == list(range(10))


def test_a_single_row_that_does_not_fit_is_an_error() -> None:
    work = Scarce(0)
    with pytest.raises(torch.OutOfMemoryError):
        MicroBatch(2).each([1, 2], work)
    assert work.sizes == [2, 1]


def test_other_errors_are_raised_immediately() -> None:
    work = Scarce(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        MicroBatch(2).each([1, 2], work)
    assert work.sizes == [2]


def test_rows_may_be_a_tensor() -> None:
    parts: list[list[int]] = []
    MicroBatch(3).each(torch.arange(7), lambda rows: parts.append(rows.tolist()))
    assert parts == [[0, 1, 2], [3, 4, 5], [6]]
