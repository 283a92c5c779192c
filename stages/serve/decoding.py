"""Continuous batching: rows join and leave a decoding that is in progress.

A model's rows are decoded together, one token each per step. New rows are started as a batch of their own, and then
joined with the rows of the batch that is running (`Steps.join`). Where a cache cannot be joined (sliding windows,
recurrent layers), the batches stay apart and take turns.

Shapes: B rows of a batch, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.memory.limits import positions_at_once
from stages.models.actor import Actor
from stages.models.passes import Steps
from stages.models.text import pad
from stages.sampling.decoding import sample
from stages.serve.rows import Row, Token

ROOM = 128
"""Positions that a cache grows by. A cache for the longest answer would take memory that most rows never use."""


@dataclass
class _Batch:
    """Rows that are decoded together, and the hidden states (B, H) that their next tokens are sampled from.

    Attributes:
        room: positions left in the cache.
    """

    steps: Steps
    rows: list[Row]
    hidden_BH: Tensor
    room: int

    def keep(self, remaining: Sequence[int], device: torch.device) -> None:
        if len(remaining) == len(self.rows):
            return
        if not remaining:  # the batch is dropped
            self.rows = []
            return
        places = torch.tensor(remaining, device=device)
        self.steps.keep(places)
        self.rows = [self.rows[i] for i in remaining]
        self.hidden_BH = self.hidden_BH[places]


class Decoder:
    """The rows of one model.

    All methods are called inside the role's context of its bank, with its actor.

    Args:
        pad_id: pads prompts; it is never attended to.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id, self._batches = pad_id, list[_Batch]()

    @property
    def rows(self) -> list[Row]:
        return [row for batch in self._batches for row in batch.rows]

    def clear(self) -> list[Row]:
        """Forgets all rows, and returns them."""
        rows = self.rows
        self._batches = []
        return rows

    @torch.no_grad()
    def admit(self, actor: Actor, rows: Sequence[Row]) -> None:
        """Reads the prompts of new rows, and joins the rows with those that are decoded already."""
        for row in rows:
            if row.begin(prompt_tokens(actor, row) if row.options.echo else ()):
                row.cancelled = True
        rows = [row for row in rows if not row.cancelled]
        # With a limited length, padding to the longest prompt and the longest answer together may exceed it.
        endless = actor.passes.longest == float("inf") and actor.passes.plain in (0, float("inf"))
        for group in [rows] if endless else [[row] for row in rows]:
            if group:
                self._start(actor, group, endless=endless)

    def _start(self, actor: Actor, rows: Sequence[Row], *, endless: bool) -> None:
        ids, mask = pad([row.prompt for row in rows], self._pad_id, left=True)
        room = max(row.left for row in rows)
        if endless:  # elsewhere the total length selects the pass
            room = min(room, ROOM)
        with actor.computing():
            steps = actor.decode(ids.to(actor.device), mask.to(actor.device), room)
            batch = _Batch(steps, list(rows), steps.start(), room)
        for running in self._batches:
            if type(running.steps) is type(steps):
                room = min(ROOM, max(row.left for row in (*running.rows, *rows)))
                if running.steps.join([steps], room):
                    running.rows += rows
                    running.hidden_BH = torch.cat([running.hidden_BH, batch.hidden_BH])
                    running.room = room
                    return
        self._batches.append(batch)

    @torch.no_grad()
    def step(self, actor: Actor) -> None:
        """Samples one token of each row. Rows that are finished or cancelled leave."""
        with actor.computing():
            for batch in self._batches:
                self._step(actor, batch)
        self._batches = [batch for batch in self._batches if batch.rows]

    def _step(self, actor: Actor, batch: _Batch) -> None:
        batch.keep([i for i, row in enumerate(batch.rows) if not row.cancelled], actor.device)
        if not batch.rows:
            return
        logits_BV = actor.project(batch.hidden_BH)
        tokens = draw(logits_BV, batch.rows)
        logprobs = chosen_logprobs(logits_BV, tokens, batch.rows)
        remaining = [
            i
            for i, (row, token) in enumerate(zip(batch.rows, tokens, strict=True))
            if not row.accept(token, *logprobs.get(i, ()))
        ]
        batch.keep(remaining, actor.device)
        if not batch.rows:
            return
        if batch.room == 0:
            batch.room = min(ROOM, max(row.left for row in batch.rows) + 1)
            batch.steps.join([], batch.room)
        batch.room -= 1
        batch.hidden_BH = batch.steps.next(torch.tensor([tokens[i] for i in remaining], device=actor.device))


def draw(logits_BV: Tensor, rows: Sequence[Row]) -> list[int]:
    """The next token of each row, by its own options and random numbers."""
    groups: dict[tuple[float, int, float], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.options.draw, []).append(i)
    tokens = torch.empty(len(rows), dtype=torch.long, device=logits_BV.device)
    uniform = torch.tensor([row.uniform() for row in rows], device=logits_BV.device)
    for (temperature, top_k, top_p), members in groups.items():
        places = torch.tensor(members, device=logits_BV.device)
        tokens[places], _ = sample(logits_BV[places], uniform[places], temperature, top_k, top_p)
    chosen: list[int] = tokens.tolist()
    return chosen


Logprob = tuple[float, list[tuple[int, float]]]
"""A token's log-prob, and the most likely tokens at its position with theirs."""


def chosen_logprobs(logits_BV: Tensor, tokens: Sequence[int], rows: Sequence[Row]) -> dict[int, Logprob]:
    """The log-probs of the rows that want them, by place."""
    wanted = {i: row.options.logprobs for i, row in enumerate(rows) if row.options.logprobs is not None}
    if not wanted:
        return {}
    places = list(wanted)
    selected = logits_BV[torch.tensor(places, device=logits_BV.device)]
    found = token_logprobs(selected, [tokens[i] for i in places], max(wanted.values()))
    return {i: (logprob, top[: wanted[i]]) for i, (logprob, top) in zip(places, found, strict=True)}


def token_logprobs(logits_NV: Tensor, tokens: Sequence[int], top: int) -> list[Logprob]:
    """The log-prob of a token at each of N positions, in nats, and of the `top` most likely tokens, best first."""
    logprobs_NV = logits_NV.float().log_softmax(-1)
    chosen = logprobs_NV.gather(1, torch.tensor(tokens, device=logits_NV.device)[:, None])[:, 0].tolist()
    if top == 0:
        return [(logprob, []) for logprob in chosen]
    values, ids = logprobs_NV.topk(min(top, logprobs_NV.shape[1]), dim=-1)
    pairs = (list(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True))
    return list(zip(chosen, pairs, strict=True))


def prompt_tokens(actor: Actor, row: Row) -> list[Token]:
    """The tokens of a row's prompt, with log-probs if the row wants any. Raises as `Actor.hidden`."""
    if row.options.logprobs is None:
        return [Token(i) for i in row.prompt]
    ids = torch.tensor(row.prompt, device=actor.device)
    hidden_LH = actor.hidden(ids[None])[0]
    size = positions_at_once(actor.lm.get_output_embeddings().weight.shape[0], actor.device.type)
    tokens = [Token(row.prompt[0])]
    for start in range(0, len(row.prompt) - 1, size):
        targets = row.prompt[start + 1 : start + 1 + size]
        logits = actor.project(hidden_LH[start : start + len(targets)])
        found = token_logprobs(logits, targets, row.options.logprobs)
        tokens += [Token(i, 0, logprob, top) for i, (logprob, top) in zip(targets, found, strict=True)]
    return tokens
