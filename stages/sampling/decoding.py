"""The built-in decoding: inverse-CDF sampling from an actor's passes.

On a CPU, and for models without a plain pass, batches are decoded one after the other: prompts are padded on the
left, and finished rows are dropped. Other devices decode in slots (`stages.sampling.slots`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stages.models.actor import Actor, Steps
from stages.models.microbatch import MicroBatch
from stages.models.text import pad
from stages.sampling.slots import SlotDecoder, Task

COMPACT_AT = 0.75
"""Finished rows are dropped when at most this share of the cached rows is unfinished. Each drop copies the
cache."""
CHECK_EVERY = 8
"""Tokens between checks for finished rows, on devices other than the CPU that do not decode in slots. A check
synchronises with the device; between checks, finished rows are decoded needlessly."""


@dataclass(frozen=True)
class Record:
    """Log-probs, entropies and values of each token, recorded while sampling, float32 (B, T).

    They equal those of a forward pass over the finished sequences, up to rounding. Values are zero without a scalar
    head. Entries past a response's end are undefined.
    """

    logp_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int], device: torch.device | str) -> Record:
        return cls(*(torch.zeros(shape, device=device) for _ in range(3)))

    def note(
        self,
        rows: Tensor,
        t: int | Tensor,
        logits: Tensor,
        probs: Tensor,
        token: Tensor,
        values: Tensor | None,
        where: Tensor | None = None,
    ) -> None:
        """Records a token of each of `rows`, which differ, at position `t`.

        Args:
            logits: divided by the temperature.
            where: the rows to record; None: all.
        """
        chosen = token[:, None]
        logp = probs.gather(1, chosen)[:, 0].log()
        # H = log Z - E[logit], with log Z = logit - log-prob of the sampled token.
        log_z = logits.gather(1, chosen)[:, 0] - logp
        numbers = [(self.logp_BT, logp), (self.entropy_BT, log_z - torch.linalg.vecdot(probs, logits))]
        if values is not None:
            numbers.append((self.values_BT, values))
        for into, number in numbers:
            into[rows, t] = number if where is None else torch.where(where, number, into[rows, t])


@torch.no_grad()
def generate(
    actor: Actor,
    prompts: Sequence[Sequence[int]],
    uniform_BT: Tensor,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: Collection[int],
    pad_id: int,
    batch_size: int | MicroBatch | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
    record: Record | None = None,
) -> list[list[int]]:
    """Samples a response to each prompt: token ids up to and including the first stop token, at most T.

    Args:
        actor: the LM to sample from; set to evaluation mode.
        uniform_BT: a number in [0, 1) for each (prompt, position). Drawn in advance, so that a response depends on
            neither the rest of its batch nor the number of processes.
        temperature, top_k, top_p: as in `stages.sampling.sampler.SamplingParams`.
        batch_size: sequences decoded together, reduced when memory runs out; None: all.
        on_batch: called with the number of prompts in each finished batch.
        record: filled in, if not None.
    """
    actor.lm.eval()
    # Prompts of similar length share a batch, which reduces padding. Responses keep the order of the prompts.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    if not order:
        return []
    uniform_BT, batch = uniform_BT.to(actor.device), MicroBatch.of(batch_size)
    stops = torch.tensor(sorted(stop_ids), device=actor.device)
    draw = partial(sample, temperature=temperature, top_k=top_k, top_p=top_p)

    def note(*noted: Any, hidden: Tensor, where: Tensor | None = None) -> None:
        if record is not None:
            rows, t, logits, probs, token = noted
            values = actor.scalar(hidden) if actor.has_head else None
            record.note(rows, t, logits.float() / temperature, probs, token, values, where)

    if uses_slots(actor, len(prompts[order[-1]]) + uniform_BT.shape[1]):
        output_BT = torch.full(uniform_BT.shape, -1, device=actor.device)
        task = Task(prompts, uniform_BT, draw, note, stops, output_BT, pad_id, on_batch)
        batch.drain(deque(order), lambda queue, rows: SlotDecoder(actor, task, rows).run(queue))
        return _responses(output_BT)
    responses: list[list[int]] = [[] for _ in prompts]
    places = torch.tensor(order, dtype=torch.long, device=actor.device)

    def work(part: range) -> None:  # positions in `order`
        rows, batch_places = order[part.start : part.stop], places[part.start : part.stop]
        ids, mask = pad([prompts[i] for i in rows], pad_id, left=True)
        with actor.computing():
            steps = actor.decode(ids.to(actor.device), mask.to(actor.device), uniform_BT.shape[1])
            decoded = _decode(actor, steps, uniform_BT[batch_places], draw, note, stops, batch_places)
        for i, response in zip(rows, decoded, strict=True):
            responses[i] = response
        on_batch(len(rows))

    batch.each(range(len(order)), work)
    return responses


def uses_slots(actor: Actor, length: int) -> bool:
    """Whether rows of `length` positions are decoded in slots. On a CPU, where launching a kernel costs little,
    they would only do needless work."""
    return actor.device.type != "cpu" and actor.has_slots(length)


def _responses(output_BT: Tensor) -> list[list[int]]:
    """The tokens of each row, without the -1 that marks positions behind its end."""
    return [[i for i in row if i >= 0] for row in output_BT.tolist()]


def _decode(
    actor: Actor,
    steps: Steps,
    uniform_BT: Tensor,
    draw: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    note: Callable[..., None],
    stops: Tensor,
    places: Tensor,
) -> list[list[int]]:
    device, length = uniform_BT.device, uniform_BT.shape[1]
    every = 1 if device.type == "cpu" else CHECK_EVERY
    live = torch.arange(len(uniform_BT), device=device)  # rows still in the cache -> rows of the batch
    unfinished = torch.ones_like(live, dtype=torch.bool)  # of the rows still in the cache
    output = torch.full(uniform_BT.shape, -1, device=device)
    hidden = steps.start()
    for t in range(length):
        logits = actor.project(hidden)
        token, probs = draw(logits, uniform_BT[live, t])
        note(places[live], t, logits, probs, token, hidden=hidden)
        output[live, t] = torch.where(unfinished, token, -1)
        unfinished = unfinished & (token[:, None] != stops).all(1)
        if t + 1 == length:
            break
        if (t + 1) % every == 0:
            left = int(unfinished.sum())
            if left == 0:
                break
            if left <= COMPACT_AT * len(live):
                # Their number is known: sorting selects them without another synchronisation, unlike `nonzero`.
                remaining = (~unfinished).byte().argsort(stable=True)[:left]
                steps.keep(remaining)
                live, token, unfinished = live[remaining], token[remaining], unfinished[remaining]
        hidden = steps.next(token)
    return _responses(output)


def sample(
    logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Samples token ids (B,) by inverse CDF: the first token whose cumulative probability exceeds the uniform
    number. Also returns the probabilities (B, V) before `top_k` and `top_p` (nucleus sampling, Holtzman et al.
    2020,
    arXiv:1904.09751, section 3.1). At temperature 0: the most likely tokens, and the untempered probabilities.

    `torch.multinomial` samples the same distribution, but is 40 times slower on a CPU.
    """
    probs = torch.softmax(logits_BV.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        return logits_BV.argmax(-1), probs
    cdf = _truncated(probs, top_k, top_p).cumsum(-1)
    target = uniform_B[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True)[:, 0].clamp(max=logits_BV.shape[1] - 1), probs


def _truncated(probs_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """The probabilities, not renormalised, with zeros for tokens outside the `top_k` or outside the nucleus of
    these. The most likely token always stays."""
    if not top_k and top_p == 1:
        return probs_BV
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    if top_k:
        sorted_BV[:, top_k:] = 0
    if top_p < 1:
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        sorted_BV = sorted_BV.masked_fill(before_BV >= top_p * sorted_BV.sum(-1, keepdim=True), 0)
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV)
