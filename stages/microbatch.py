"""How many sequences go through a model at once: as many as were asked for, or as many as fit.

The size changes memory, not mathematics: losses are divided by counts of the whole batch, so that parts add up.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

Size = int | Literal["auto"] | None
T = TypeVar("T")


class MicroBatch:
    """A size, and what to do when memory does not suffice for it.

    Args:
        wanted: sequences; None: all of what is given; "auto": all of it, and half as many whenever memory runs out.
            Only a device that says so instead of killing the process can be tried out in this way: CUDA does, the
            system's memory mostly does not, so that there `auto` is None but for a very large allocation.
        what: what it is the size of, for the message.
        say: told of a smaller size.

    Attributes:
        size: sequences at once now; None: all.
    """

    def __init__(self, wanted: Size, what: str = "", say: Callable[[str], None] = lambda text: None) -> None:
        self.auto = wanted == "auto"
        self.size: int | None = None if wanted == "auto" else wanted
        self._what, self._say = what, say

    def run(self, work: Callable[[int | None], T], count: int, undo: Callable[[], None] = lambda: None) -> T:
        """`work(size)` on `count` sequences. When memory runs out and the size is `auto`: `undo()`, and the whole
        work again, with the same random numbers, at half the size. Nothing of a failed attempt is kept."""
        random = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        while True:
            try:
                return work(self.size)
            except RuntimeError as error:
                now = min(self.size or count, count)
                if not self.auto or now <= 1 or not should_reduce_batch_size(error):
                    raise
            # Outside of the handler, where the traceback no longer holds the tensors that did not fit.
            undo()
            gc.collect()
            if cuda is not None:
                torch.cuda.empty_cache()
                torch.cuda.set_rng_state(cuda)
            torch.set_rng_state(random)
            self.size = now // 2
            self._say(f"out of memory: {self._what} goes on with {self.size} sequences at once instead of {now}")

    def state_dict(self) -> dict[str, int | None]:
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Of `auto` only: a size that the recipe gives now is the one that counts."""
        if self.auto:
            self.size = state["size"]
