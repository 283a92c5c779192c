"""The thread that owns the models: it decodes the rows of all requests, and scores between turns."""

from __future__ import annotations

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from pipeline.machine import out_of_memory
from stages.models.bank import Bank
from stages.serve.decoding import Decoder
from stages.serve.errors import ApiError, broken, busy, no_memory, stopping
from stages.serve.rows import Row

TURN = 8
"""Tokens that a model decodes while another model's rows, or scores, wait."""

log = logging.getLogger("tutelage.serve")
T = TypeVar("T")


@dataclass(frozen=True)
class LanguageModel:
    """A model that answers: a role of a bank."""

    bank: Bank
    role: str


class Engine:
    """Decodes rows of several models.

    Models take turns. Rows start in the order in which they came, as far as `batch` allows.

    Args:
        models: by name.
        pad_id: pads prompts.
        batch: rows decoded at once, of all models together.
        queue: rows, and scoring jobs, that may wait.
    """

    def __init__(self, models: Mapping[str, LanguageModel], pad_id: int, *, batch: int, queue: int) -> None:
        self.models, self.batch, self.queue = models, batch, queue
        self._decoders = {name: Decoder(pad_id) for name in models}
        self._waiting: deque[Row] = deque()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its present step. Rows that are not finished fail."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def running(self) -> int:
        """Rows that are decoded."""
        return sum(len(decoder.rows) for decoder in self._decoders.values())

    @property
    def waiting(self) -> int:
        """Rows that wait to be started."""
        return len(self._waiting)

    def submit(self, rows: Sequence[Row]) -> None:
        """Queues rows. Raises `ApiError` (429) when there is no place for all of them."""
        with self._changed:
            if self._stopping:
                raise stopping()
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
            if len(self._waiting) + len(rows) > self.queue + max(0, self.batch - self.running):
                raise busy(len(self._waiting))
            self._waiting.extend(rows)
            self._changed.notify()

    def run(self, job: Callable[[], T]) -> Future[T]:
        """Runs a job between steps. Raises `ApiError` (429) when too many wait."""
        future: Future[T] = Future()
        with self._changed:
            if self._stopping:
                raise stopping()
            if len(self._jobs) >= self.queue:
                raise busy(len(self._jobs))
            self._jobs.append((job, future))
            self._changed.notify()
        return future

    # --- The thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._jobs or self._waiting or self.running)
                if self._stopping:
                    break
            self._run_job()
            for name in self.models:
                if self._has_work(name):
                    self._turn(name)
        for row in [*self._waiting, *(row for decoder in self._decoders.values() for row in decoder.clear())]:
            row.fail(stopping())
        for _, future in self._jobs:
            if future.set_running_or_notify_cancel():
                future.set_exception(stopping())

    def _run_job(self) -> None:
        with self._changed:
            if not self._jobs:
                return
            job, future = self._jobs.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job())
        except Exception as error:  # the request that asked for it reports it
            future.set_exception(error)

    def _turn(self, name: str) -> None:
        """Decodes a model's rows until they are finished, or for `TURN` tokens if others wait."""
        model, decoder = self.models[name], self._decoders[name]
        started: list[Row] = []
        try:
            with model.bank.active(model.role) as actor:
                for tokens in range(1, 10**9):
                    started = self._next_rows(name)
                    if started:
                        decoder.admit(actor, started)
                    decoder.step(actor)
                    if not self._has_work(name) or self._stopping or (tokens >= TURN and self._others_wait(name)):
                        return
        except Exception as error:
            rows = {id(row): row for row in (*started, *decoder.clear())}
            problem = _reported(error)
            for row in rows.values():
                row.fail(problem)

    def _next_rows(self, name: str) -> list[Row]:
        """Takes the model's rows from those that are next: a place is kept for rows of other models in front."""
        with self._changed:
            waiting = [row for row in self._waiting if not row.cancelled]
            places = max(0, self.batch - self.running)
            taken = [row for row in waiting[:places] if row.model == name]
            chosen = set(map(id, taken))
            self._waiting = deque(row for row in waiting if id(row) not in chosen)
        return taken

    def _has_work(self, name: str) -> bool:
        return bool(self._decoders[name].rows) or (
            self.running < self.batch and any(row.model == name for row in list(self._waiting))
        )

    def _others_wait(self, name: str) -> bool:
        return bool(self._jobs) or any(self._has_work(other) for other in self.models if other != name)


def _reported(error: Exception) -> ApiError:
    """What the clients of failed rows are told. The reason goes to the server's log."""
    if isinstance(error, RuntimeError | MemoryError) and out_of_memory(error):
        log.error("out of memory: the rows being decoded were given up (lower --batch or --max-length)")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return no_memory()
    log.exception("decoding failed")
    return broken()
