"""Decoding in slots: the loop of devices other than the CPU.

A step (sample, record, test for stop tokens, one pass) has fixed shapes and reads and writes tensors at fixed
addresses. On CUDA it is captured as a graph and replayed, because launching hundreds of small kernels one by one
takes longer than running them. The host reads which rows are finished every `CHECK_EVERY` tokens, and gives their
slots to the next prompts. When no prompts are left, the remaining rows move to fewer slots.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from stages.models.actor import Actor
from stages.models.fast.slots import PlainSlots
from stages.models.text import pad

log = logging.getLogger(__name__)

CHECK_EVERY = 16
"""Tokens between the host's looks at which rows are finished. Until then, these are decoded needlessly."""
SIZES = (8, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of slots that remaining rows move to. A graph is captured for each that occurs."""
WARM_UP = 2
"""Steps before the capture: libraries allocate workspaces and choose kernels in the first calls."""


class Replayed:
    """A step that is captured after `WARM_UP` calls and then replayed, if the device is CUDA. Elsewhere, or if the
    capture fails, it is called each time."""

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self._step, self._left = step, WARM_UP
        self._captures = device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._captures and self._graph is None:
            if self._left:
                self._left -= 1
                self._aside()
                return
            self._capture()
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()

    def _aside(self) -> None:
        """Runs the step in a stream of its own, as capturing requires of the first calls."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step()
        except RuntimeError as error:
            self._captures = False
            log.warning("sampling goes on without CUDA graphs, which is slower: %s", error)
        else:
            self._graph = graph


@dataclass(frozen=True)
class Task:
    """What to sample, and where the results go.

    Attributes:
        prompts: token ids of all prompts.
        uniform_BT: a number in [0, 1) for each (prompt, position).
        draw: (logits (R, V), numbers (R,)) -> token ids (R,), probabilities (R, V).
        note: records what was sampled. Called with each row's prompt, the position in its response, the logits,
            probabilities and token, `hidden=` the hidden state and `where=` whether it is unfinished, all (R, ...).
        stops: ids that end a response.
        output_BT: the tokens of the responses, -1 behind their ends. Filled in.
        pad_id: pads prompts; it is never attended to.
        on_done: called with the number of prompts that were finished.
    """

    prompts: Sequence[Sequence[int]]
    uniform_BT: Tensor
    draw: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    note: Callable[..., None]
    stops: Tensor
    output_BT: Tensor
    pad_id: int
    on_done: Callable[[int], None] = lambda done: None


@dataclass
class _State:
    """One entry per slot: hidden states (R, H) that the next token is sampled from, the token's position in the row
    and in the response, the prompt, and whether the row is finished. All on the device."""

    hidden: Tensor
    position: Tensor
    t: Tensor
    prompt: Tensor
    finished: Tensor

    @classmethod
    def empty(cls, rows: int, hidden_KH: Tensor) -> _State:
        device = hidden_KH.device
        hidden = torch.zeros((rows, hidden_KH.shape[1]), dtype=hidden_KH.dtype, device=device)
        position, t, prompt = torch.zeros((3, rows), dtype=torch.long, device=device)
        return cls(hidden, position, t, prompt, torch.ones(rows, dtype=torch.bool, device=device))

    def keep(self, slots: Tensor) -> _State:
        return _State(*(getattr(self, field.name)[slots] for field in fields(self)))


class SlotDecoder:
    """Samples responses to the prompts of a queue.

    Args:
        rows: the number of slots. No more than there are prompts in the queue: a step writes to the place of every
            slot's row, finished or not, and no two slots may have the same place.
    """

    def __init__(self, actor: Actor, task: Task, rows: int) -> None:
        self._actor, self._task, self._rows = actor, task, rows
        self._length = task.uniform_BT.shape[1]
        self._slots: PlainSlots | None = None
        self._state: _State | None = None
        self._held: dict[int, int] = {}  # slot -> prompt of its unfinished row
        self._steps: dict[int, int] = {}  # slot -> steps its row has taken

    def run(self, queue: deque[int]) -> None:
        """Samples for all prompts (indices) of the queue. If it fails, those without a response return to it."""
        try:
            with self._actor.computing():
                self._run(queue)
        except BaseException:
            queue.extendleft(reversed(self._held.values()))
            raise

    def _run(self, queue: deque[int]) -> None:
        self._slots = self._actor.slots(self._rows, max(map(len, self._task.prompts)) + self._length)
        self._admit(range(self._rows), queue)
        step = self._replayed()
        while self._held:
            for _ in range(min(CHECK_EVERY, self._length - min(self._steps.values()))):
                step()
                self._steps = {slot: steps + 1 for slot, steps in self._steps.items()}
            assert self._state is not None
            finished = self._state.finished.tolist()
            free = [slot for slot in self._held if finished[slot]]
            for slot in free:
                del self._held[slot], self._steps[slot]
            if free:
                self._task.on_done(len(free))
            self._admit(free, queue)
            rows = next((size for size in SIZES if size >= len(self._held)), self._rows)
            if self._held and rows < self._rows:
                self._shrink(rows)
                step = self._replayed()

    def _replayed(self) -> Replayed:
        return Replayed(self._step, self._task.uniform_BT.device)

    def _admit(self, free: Sequence[int], queue: deque[int]) -> None:
        """Starts the next prompts of the queue in free slots."""
        chosen = [queue.popleft() for _ in range(min(len(free), len(queue)))]
        if not chosen:
            return
        slots, device = free[: len(chosen)], self._task.uniform_BT.device
        self._held |= dict(zip(slots, chosen, strict=True))
        self._steps |= dict.fromkeys(slots, 0)
        ids, mask = pad([self._task.prompts[i] for i in chosen], self._task.pad_id, left=False)
        numbers = torch.stack([torch.tensor(slots), torch.tensor(chosen), mask.sum(1)]).to(device)
        slots_K, prompts_K, lengths_K = numbers.unbind()
        assert self._slots is not None
        hidden_KH = self._slots.start(slots, slots_K, ids.to(device), lengths_K)
        if self._state is None:
            self._state = _State.empty(self._rows, hidden_KH)
        state = self._state
        state.hidden[slots_K], state.position[slots_K], state.prompt[slots_K] = hidden_KH, lengths_K, prompts_K
        state.t[slots_K], state.finished[slots_K] = 0, False

    def _step(self) -> None:
        """Samples a token of each row and reads it. Free slots compute too, without an effect."""
        state, task = self._state, self._task
        assert state is not None
        assert self._slots is not None
        logits = self._actor.project(state.hidden)
        token, probs = task.draw(logits, task.uniform_BT[state.prompt, state.t])
        live, place = ~state.finished, (state.prompt, state.t)
        task.note(*place, logits, probs, token, hidden=state.hidden, where=live)
        task.output_BT[place] = torch.where(live, token, task.output_BT[place])
        last = (token[:, None] == task.stops).any(1) | (state.t + 1 == self._length)
        state.hidden.copy_(self._slots.next(token, state.position))
        state.finished.logical_or_(last)
        # The place of a finished row stays within bounds.
        state.position.add_(~state.finished)
        state.t.add_(~state.finished)

    def _shrink(self, rows: int) -> None:
        """Moves the unfinished rows to the first slots."""
        assert self._state is not None
        assert self._slots is not None
        used = sorted(self._held)
        spare = [slot for slot in range(self._rows) if slot not in self._held]
        order = torch.tensor([*used, *spare][:rows]).to(self._task.uniform_BT.device)
        self._slots.keep(order)
        self._state, self._rows = self._state.keep(order), rows
        self._held = {new: self._held[old] for new, old in enumerate(used)}
        self._steps = {new: self._steps[old] for new, old in enumerate(used)}
