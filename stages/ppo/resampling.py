"""Dynamic sampling (DAPO: Yu et al. 2025, arXiv:2503.14476, section 3.2): responses to a prompt that all have the
same reward have no advantage, so they are replaced by responses to another prompt.

A prompt keeps its rows of the batch, so each process replaces its own rows, and the number of processes does not
change the batch. Shapes: B rows of this process, G prompts of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.models.text import Codec
from stages.ppo.estimators import Groups
from stages.sampling.decoding import Record
from stages.sampling.episodes import Episodes
from stages.sampling.prompts import EncodedPrompt
from stages.sampling.sampler import Share


@dataclass(frozen=True)
class Scored:
    """Sampled and scored rows of a batch.

    Attributes:
        scores: raw scores of the reward model (B), or of the reward's terms (T, B).
        rewards_B: what PPO optimises, before the KL penalty.
    """

    prompts: Sequence[EncodedPrompt]
    episodes: Episodes
    scores: Tensor
    rewards_B: Tensor


def replace_equal(
    batch: Scored,
    groups: Groups,
    rows_B: Tensor,
    limit: int,
    *,
    take: Callable[[int], Sequence[EncodedPrompt]],
    sample: Callable[[Sequence[EncodedPrompt], Share, Tensor], Scored],
    codec: Codec,
) -> tuple[Scored, int]:
    """Replaces rows of prompts whose responses have equal rewards, up to `limit` times. Returns the batch, and how
    many prompts were replaced.

    Args:
        rows_B: this process's rows of the whole batch.
        take: draws further prompts, the same on every process.
        sample: samples and scores responses to prompts. Called on every process, with its share of the rows to
            replace. A process that has none of them samples one row and drops it: the third argument, bool, says
            which rows are kept.
    """
    replaced = 0
    for _ in range(limit):
        equal_G = groups.equal(batch.rewards_B)
        count = int(equal_G.sum())
        if not count:
            break
        replaced += count
        prompts = take(count)
        place_G = equal_G.long().cumsum(0) - 1
        mine_N = equal_G[groups.index_B].nonzero()[:, 0]
        place_N, response_N = place_G[groups.index_B[mine_N]], rows_B[mine_N] % groups.size
        share_N = place_N * groups.size + response_N
        kept = torch.ones(max(1, len(mine_N)), dtype=torch.bool)
        if not len(mine_N):
            share_N, place_N, kept = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), ~kept
        share = Share(share_N, count * groups.size)
        drawn = sample([prompts[i] for i in place_N.tolist()], share, kept)
        if len(mine_N):
            batch = _with(batch, mine_N, drawn, codec)
    return batch, replaced


def _with(batch: Scored, rows_N: Tensor, new: Scored, codec: Codec) -> Scored:
    """`batch` with its rows `rows_N` replaced by the rows of `new`."""
    prompts, responses = list(batch.prompts), list(batch.episodes.responses)
    for row, prompt, response in zip(rows_N.tolist(), new.prompts, new.episodes.responses, strict=True):
        prompts[row], responses[row] = prompt, response
    old, device = batch.episodes, batch.episodes.device
    record = old.sampled
    if record is not None and new.episodes.sampled is not None:
        rows = rows_N.to(device)
        columns = zip(
            (record.logp_BT, record.entropy_BT, record.values_BT),
            (new.episodes.sampled.logp_BT, new.episodes.sampled.entropy_BT, new.episodes.sampled.values_BT),
            strict=True,
        )
        record = Record(*(before.index_copy(0, rows, after) for before, after in columns))
    episodes = Episodes.build([p.ids for p in prompts], responses, codec.stop_ids, codec.pad_id, device, record)
    return replace(
        batch,
        prompts=prompts,
        episodes=episodes,
        scores=batch.scores.index_copy(-1, rows_N, new.scores),
        rewards_B=batch.rewards_B.index_copy(0, rows_N, new.rewards_B),
    )
