"""Sampling responses: left-padded prompts, a KV cache, inverse-CDF sampling, finished rows dropped on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from stages.models.text import pad

COMPACT_AT = 0.75
"""Finished rows are dropped once the unfinished are at most this share of those in the cache: a drop copies it."""


@torch.no_grad()
def generate(
    lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniform_BT: Tensor,
    *,
    temperature: float,
    stop_ids: Collection[int],
    pad_id: int,
    batch_size: int | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """A response to each prompt: token ids up to and including the first stop token, at most T.

    Args:
        lm: a causal LM in the role that shall speak; it is put into evaluation mode.
        uniform_BT: a number in [0, 1) for each (prompt, position), drawn beforehand: a response then depends
            neither on what shares its batch nor on how many processes share the work.
        temperature: divides the logits; 0 takes the most likely token.
        batch_size: sequences decoded together; None: all.
        on_batch: told how many prompts are done.
    """
    lm.eval()
    stops = torch.tensor(sorted(stop_ids), device=lm.device)
    # Prompts of like length share a batch, which saves padding; answers return to their places.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = batch_size or max(1, len(prompts))
    responses: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        ids = _decode(lm, [prompts[i] for i in rows], uniform_BT[rows], temperature, stops, pad_id)
        for i, response in zip(rows, ids, strict=True):
            responses[i] = response
        on_batch(len(rows))
    return responses


def _decode(
    lm: PreTrainedModel,
    prompts: list[Sequence[int]],
    uniform_BT: Tensor,
    temperature: float,
    stops: Tensor,
    pad_id: int,
) -> list[list[int]]:
    ids, mask = pad(prompts, pad_id, left=True)
    ids, mask = ids.to(lm.device), mask.to(lm.device).long()
    uniform_BT = uniform_BT.to(lm.device)
    position = mask.cumsum(1) - 1
    cache = DynamicCache(config=lm.config)
    live = torch.arange(len(prompts), device=lm.device)  # rows still in the cache -> rows of the batch
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=lm.device)
    output = torch.full(uniform_BT.shape, -1, device=lm.device)
    step_ids, step_position = ids, position.clamp(min=0)
    for t in range(uniform_BT.shape[1]):
        logits = lm(
            input_ids=step_ids,
            attention_mask=mask,
            position_ids=step_position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        token = sample(logits, uniform_BT[live, t], temperature)
        open_rows = ~finished[live]
        output[live[open_rows], t] = token[open_rows]
        finished[live] |= torch.isin(token, stops)
        open_rows = ~finished[live]
        left = int(open_rows.sum())
        if left == 0:
            break
        step_position = step_position[:, -1:] + 1
        if left <= COMPACT_AT * len(live):
            cache.batch_select_indices(open_rows.nonzero()[:, 0])
            live, token, mask, step_position = (x[open_rows] for x in (live, token, mask, step_position))
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        step_ids = token[:, None]
    return [[i for i in row if i >= 0] for row in output.tolist()]


def sample(logits_BV: Tensor, uniform_B: Tensor, temperature: float) -> Tensor:
    """Token ids (B,) by inverse CDF: the first token whose cumulative probability exceeds the uniform number.

    `torch.multinomial` draws the same distribution 40 times as slowly on a CPU.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    cdf = torch.softmax(logits_BV.float() / temperature, dim=-1).cumsum(-1)
    target = uniform_B[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True)[:, 0].clamp(max=logits_BV.shape[1] - 1)
