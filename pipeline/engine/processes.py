"""The processes that share a run: rank 0 plans, locks and writes; the others take part in its parallel stages.

They find each other as torchrun's processes do, by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, set
by `pipeline.engine.launch` or by torchrun itself. A process group exists during parallel stages only, and so do
those variables: what runs on rank 0 alone cannot join the others by accident, and they wait for it by looking at
the store, which no time limit of a collective ends.
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
PATIENCE = timedelta(hours=2)
"""How long a process waits in a collective for the others; what it waits for is seconds in a sound run."""
LOOK = 0.2
"""Seconds between looks at the store."""


class Ranks:
    """This process's place among those that share the run. Alone: rank 0 of 1."""

    rank, size, local_rank = 0, 1, 0

    @staticmethod
    def join(expected: int | None = None) -> Ranks:
        """The place that the environment says. Raises `RecipeError` when there are not as many processes as
        expected."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if expected is not None and expected != size:
            raise RecipeError(
                f"{expected} processes were asked for and {size} run",
                where="--nproc",
                hint="leave --nproc out under torchrun, and start it without accelerate launch",
            )
        return _Joined() if size > 1 else Ranks()

    @contextmanager
    def together(self, stage: str, device: str) -> Iterator[None]:
        """A parallel stage: every rank enters it, or none."""
        yield

    def announce(self, task: Mapping[str, Any]) -> None:
        """Rank 0 says what the others shall take part in next."""

    def finish(self) -> None:
        """Rank 0 says that there is nothing more, and waits until all have heard it."""

    def tasks(self) -> Iterator[dict[str, Any]]:
        """What rank 0 announces, until it finishes."""
        yield from ()


class _Joined(Ranks):
    def __init__(self) -> None:
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]
        from torch.distributed.rendezvous import rendezvous

        self._environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        store, self.rank, self.size = next(rendezvous("env://", timeout=PATIENCE))
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
                    f"process {self.local_rank} of this machine has no card: there are {torch.cuda.device_count()}",
                    hint="start as many processes as there are cards",
                )
            torch.cuda.set_device(self.local_rank)
            backend = "cpu:gloo,cuda:nccl"
        os.environ.update(self._environment)
        dist.init_process_group(
            backend,
            store=PrefixStore(f"{stage} {self._count}", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=PATIENCE,
        )
        yield
        dist.barrier()  # no rank goes on before all have done their part
        # After an error the process ends, and a group that waits for a dead rank cannot be taken apart in peace.
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
            time.sleep(LOOK)

    def tasks(self) -> Iterator[dict[str, Any]]:
        while True:
            self._count += 1
            while not self._store.check([f"task {self._count}"]):
                time.sleep(LOOK)
            task: dict[str, Any] = json.loads(self._store.get(f"task {self._count}"))
            if not task:
                self._store.add("heard", 1)
                return
            yield task
