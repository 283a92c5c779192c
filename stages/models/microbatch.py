"""How many sequences go through a model at once: the number that was asked for, or fewer where memory runs out.

The size changes memory, not mathematics: losses are divided by counts of the whole batch, so that the gradients of
micro-batches add up, and what a pass without gradients says of a row does not depend on the others.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch

from pipeline.machine import out_of_memory

Size = int | Literal["auto"] | None
T = TypeVar("T")
Rows = TypeVar("Rows", bound=Sequence[int] | torch.Tensor)


class MicroBatch:
    """A size, and what to do when memory does not suffice for it.

    Args:
        wanted: sequences; None: all at once; "auto": all at once, halved whenever memory runs out. Only a device
            that reports it instead of killing the process allows this: CUDA does, the system's memory mostly does
            not, so that on a CPU `auto` is None except for a very large allocation.
        what: what it is the size of, for the message.
        say: called with a message when the size is halved.

    Attributes:
        size: sequences at once now; None: all.
    """

    def __init__(self, wanted: Size, what: str = "", say: Callable[[str], None] = lambda text: None) -> None:
        self.auto = wanted == "auto"
        self.size: int | None = None if wanted == "auto" else wanted
        self._what, self._say = what, say

    @classmethod
    def of(cls, size: int | MicroBatch | None) -> MicroBatch:
        """What callers give as a batch size: a number, or an object that remembers what turned out to fit."""
        return size if isinstance(size, MicroBatch) else cls(size)

    def run(self, work: Callable[[int | None], T], count: int, undo: Callable[[], None] = lambda: None) -> T:
        """`work(size)` on `count` sequences, which must all count together or not at all, such as gradients. When
        memory runs out and the size is `auto`: `undo()`, and the whole work again, with the same random numbers, at
        half the size. Nothing of a failed attempt is kept."""
        random = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not self.auto or not self._halvable(error, count):
                    raise
            # Outside of the handler, where the traceback no longer holds the tensors that did not fit.
            undo()
            self._halve(count)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda)
            torch.set_rng_state(random)

    def each(self, rows: Rows, work: Callable[[Rows], None]) -> None:
        """`work` on consecutive parts of `rows`, for passes whose results belong to rows. Where memory runs out the
        same part is tried again at half the size, whatever size was asked for: finished parts stay, and the results
        do not depend on the size."""
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

    def _halvable(self, error: RuntimeError | MemoryError, count: int) -> bool:
        return min(self.size or count, count) > 1 and out_of_memory(error)

    def _halve(self, count: int) -> None:
        now = min(self.size or count, count)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.size = now // 2
        self._say(f"out of memory: {self._what} goes on with {self.size} sequences at once instead of {now}")

    def state_dict(self) -> dict[str, int | None]:
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Of `auto` only: a size that the recipe gives now is the one that counts."""
        if self.auto:
            self.size = state["size"]
