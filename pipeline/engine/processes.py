"""The processes that share a run: the first one plans, locks and writes; the others join its parallel stages.

They find each other as torchrun's processes do, through RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT,
which `pipeline.engine.launch`, torchrun or `accelerate launch` sets. The process group and those variables exist
during parallel stages only, so what runs in the first process alone cannot join the others by accident. The others
wait for it by polling the store, which no timeout of a collective interrupts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from pipeline.errors import RecipeError, StageError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others in a collective. In a healthy run they wait for seconds."""
POLL_INTERVAL = 0.2
"""Seconds between two polls of the store."""

_SHARDING = "set `sharding: full` in the recipe, which uses PyTorch's FSDP2"
ACCELERATE = {
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed is not supported", _SHARDING),
    "ACCELERATE_USE_FSDP": ("FSDP cannot be configured through accelerate", _SHARDING),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM is not supported", _SHARDING),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "tensor and context parallelism are not supported: adapters, fast layers and losses need whole layers",
        _SHARDING,
    ),
    "ACCELERATE_MIXED_PRECISION": ("precision cannot be set through accelerate", "set base.dtype in the recipe"),
    "ACCELERATE_DYNAMO_BACKEND": ("torch.compile cannot be set through accelerate", "leave it out"),
}
"""Variables of `accelerate launch` for what the recipe decides -> why they are refused, and a hint."""


class Processes:
    """The processes that share a run, seen from this one. On its own: process 0 of 1.

    Attributes:
        rank: this process's number; 0 is the first.
        size: how many processes there are.
        local_rank: this process's number on its machine.
    """

    rank, size, local_rank = 0, 1, 0

    @staticmethod
    def join(expected: int | None = None) -> Processes:
        """Joins the processes that the environment names. Raises `RecipeError` when their number is not the
        expected one, or for a configuration of `accelerate launch` that would change the training."""
        for name, (what, hint) in ACCELERATE.items():
            if os.environ.get(name, "no").lower() not in ("no", "false", "0", ""):
                raise RecipeError(what, where=f"{name}={os.environ[name]}, from accelerate launch", hint=hint)
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if expected is not None and expected != size:
            raise RecipeError(
                f"--nproc asks for {expected} processes, and the environment says {size}",
                where="WORLD_SIZE",
                hint="leave --nproc out under torchrun and accelerate launch",
            )
        return _Joined() if size > 1 else Processes()

    def describe(self) -> str:
        """What the user should know about how the processes were started; usually nothing."""
        if self.size == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ:
            return (
                "accelerate launch has started a single process. (With --cpu, it ignores --num_processes: use "
                "torchrun or --nproc.)"
            )
        return ""

    @contextmanager
    def together(self, stage: str, device: str) -> Iterator[None]:
        """A parallel stage. Every process enters it, or none does."""
        yield

    def announce(self, task: Mapping[str, Any]) -> None:
        """The first process tells the others which task they join next."""

    def finish(self) -> None:
        """The first process announces that there are no more tasks, and waits until every process has read that."""

    def tasks(self) -> Iterator[dict[str, Any]]:
        """The tasks that the first process announces, until it finishes."""
        yield from ()


class _Joined(Processes):
    def __init__(self) -> None:
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]
        from torch.distributed.rendezvous import rendezvous

        self._environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        store, self.rank, self.size = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._store: Any = PrefixStore("tutelage", store)
        self._count = 0
        for name in self._environment:
            del os.environ[name]

    @contextmanager
    def together(self, stage: str, device: str) -> Iterator[None]:
        import torch
        import torch.distributed as dist
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        backend = "gloo"
        if device == "cuda":
            if torch.cuda.device_count() <= self.local_rank:
                raise StageError(
                    f"process {self.local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}",
                    hint="start one process per GPU",
                )
            torch.cuda.set_device(self.local_rank)
            backend = "cpu:gloo,cuda:nccl"
        os.environ.update(self._environment)
        dist.init_process_group(
            backend,
            store=PrefixStore(f"{stage} {self._count}", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=COLLECTIVE_TIMEOUT,
        )
        yield
        dist.barrier()  # no process continues before all have done their part
        # Not in a `finally`: after an error the process exits, and destroying a group that waits for a dead process
        # would hang.
        dist.destroy_process_group()
        for name in self._environment:
            del os.environ[name]
        accelerate = sys.modules.get("accelerate.state")
        if accelerate:
            accelerate.AcceleratorState._reset_state(reset_partial_state=True)

    def announce(self, task: Mapping[str, Any]) -> None:
        self._count += 1
        self._store.set(f"task {self._count}", json.dumps(task))

    def finish(self) -> None:
        self.announce({})
        deadline = time.monotonic() + 60
        while self._store.add("heard", 0) < self.size - 1 and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)

    def tasks(self) -> Iterator[dict[str, Any]]:
        while True:
            self._count += 1
            while not self._store.check([f"task {self._count}"]):
                time.sleep(POLL_INTERVAL)
            task: dict[str, Any] = json.loads(self._store.get(f"task {self._count}"))
            if not task:
                self._store.add("heard", 1)
                return
            yield task
