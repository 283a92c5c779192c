"""The number of sequences in a forward pass: the configured size, or fewer if memory runs out.

The size affects memory, not results. Losses are divided by counts over the full batch, so the gradients of
micro-batches add up, and without gradients the result for a row does not depend on the other rows.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch

from pipeline.machine import out_of_memory

Size = int | Literal["auto"] | None
T = TypeVar("T")
Rows = TypeVar("Rows", bound=Sequence[int] | torch.Tensor)


class MicroBatch:
    """A micro-batch size that can shrink when memory runs out.

    Args:
        wanted: number of sequences; None: all at once; "auto": all at once, halved whenever memory runs out. `auto`
            needs a device that reports this as an error, as CUDA does. On a CPU the system usually kills the
            process instead, so there `auto` acts like None except for a very large allocation.
        what: the activity that the size belongs to, for the message, such as "sampling".
        say: called with a message when the size is halved.

    Attributes:
        size: the current number of sequences; None: all.
    """

    def __init__(self, wanted: Size, what: str = "", say: Callable[[str], None] = lambda text: None) -> None:
        self.auto = wanted == "auto"
        self.size: int | None = None if wanted == "auto" else wanted
        self._what, self._say = what, say

    @classmethod
    def of(cls, size: int | MicroBatch | None) -> MicroBatch:
        """Converts a batch size. A `MicroBatch` is returned as it is, so that it remembers a size that fits."""
        return size if isinstance(size, MicroBatch) else cls(size)

    def run(self, work: Callable[[int | None], T], count: int, undo: Callable[[], None] = lambda: None) -> T:
        """Calls `work(size)` for `count` sequences whose results must come from a single attempt, such as
        gradients.

        When memory runs out and the size is `auto`, it calls `undo()` and then repeats all of the work at half the
        size, with the same random numbers.
        """
        random = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not self.auto or not self._halvable(error, count):
                    raise
            # Outside the handler, so that the traceback no longer keeps the failed attempt's tensors alive.
            undo()
            self._halve(count)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda)
            torch.set_rng_state(random)

    def each(self, rows: Rows, work: Callable[[Rows], None]) -> None:
        """Calls `work` on consecutive parts of `rows`, for passes whose results belong to single rows.

        When memory runs out, it retries the part at half the size, even if the size is not `auto`. Finished parts
        are kept, since their results do not depend on the size.
        """
        start = 0
        while start < len(rows):
            part = rows[start : start + (self.size or len(rows))]
            try:
                work(part)  # type: ignore[arg-type]  # a slice has the type of what it is taken from
            except (RuntimeError, MemoryError) as error:
                if not self._halvable(error, len(part)):
                    raise
            else:
                start += len(part)
                continue
            self._halve(len(part))

    def drain(self, queue: deque[int], work: Callable[[deque[int], int], None]) -> None:
        """Calls `work(queue, size)`, which takes all sequences out of the queue and works on `size` at once.

        When memory runs out, what is then in the queue is done with half the size, even if the size is not `auto`.
        `work` puts unfinished sequences back.
        """
        while queue:
            size = min(self.size or len(queue), len(queue))
            try:
                work(queue, size)
            except (RuntimeError, MemoryError) as error:
                if not self._halvable(error, size):
                    raise
            else:
                continue
            self._halve(size)

    def _halvable(self, error: RuntimeError | MemoryError, count: int) -> bool:
        return min(self.size or count, count) > 1 and out_of_memory(error)

    def _halve(self, count: int) -> None:
        current = min(self.size or count, count)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.size = current // 2
        self._say(f"out of memory: {self._what} goes on with {self.size} sequences at once instead of {current}")

    def state_dict(self) -> dict[str, int | None]:
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Restores an `auto` size. Otherwise the recipe's current size takes precedence."""
        if self.auto:
            self.size = state["size"]
