"""A batch of episodes: prompts, responses as sampled (token-in-token-out), and per-token values.

Shapes: B episodes, L tokens of prompt and response (right-padded), T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from stages.models.actor import Actor
from stages.models.fast.packing import Packing
from stages.models.microbatch import MicroBatch
from stages.models.text import pad
from stages.sampling.decoding import Record


def response_mask(ids_BT: Tensor, lengths_B: Tensor, stop_ids: Collection[int]) -> Tensor:
    """(B, T) bool: true up to and including the first stop token, and false beyond a response's length."""
    position = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    stops = torch.isin(ids_BT, torch.tensor(sorted(stop_ids), device=ids_BT.device))
    stopped_before = (stops.long().cumsum(1) - stops.long()) > 0
    return ~stopped_before & (position < lengths_B[:, None])


@dataclass(frozen=True)
class Episodes:
    """Sequences and masks. Values computed from them keep the (B, T) layout.

    Lengths are on the CPU for every device and determine all shapes, so that only `responses` synchronises with the
    device.

    Attributes:
        ids_BL: prompt and response, right-padded.
        responses_BT, mask_BT: response tokens, right-padded, and whether each is valid. Valid tokens come first.
        starts_B: `prompt_lengths_B`, on the device.
        prompt_lengths_B, lengths_B: number of prompt tokens; number of tokens of prompt and response, up to the
            first stop token. On the CPU.
        sampled: log-probs, entropies and values recorded by the sampler, if any. `select` drops them.
    """

    ids_BL: Tensor
    responses_BT: Tensor
    mask_BT: Tensor
    starts_B: Tensor
    prompt_lengths_B: Tensor
    lengths_B: Tensor
    sampled: Record | None = None

    @classmethod
    def build(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        stop_ids: Collection[int],
        pad_id: int,
        device: torch.device | str = "cpu",
        sampled: Record | None = None,
    ) -> Episodes:
        """Builds episodes. The response mask is computed only here."""
        response_ids, present = pad(responses, pad_id, left=False)
        mask = response_mask(response_ids, present.sum(1), stop_ids)
        valid_lengths = mask.sum(1)
        rows = [[*p, *r[:n]] for p, r, n in zip(prompts, responses, valid_lengths.tolist(), strict=True)]
        ids, _ = pad(rows, pad_id, left=False)
        prompt_lengths = torch.tensor([len(p) for p in prompts])
        return cls(
            ids.to(device),
            response_ids.to(device),
            mask.to(device),
            prompt_lengths.to(device),
            prompt_lengths,
            prompt_lengths + valid_lengths,
            sampled,
        )

    def __len__(self) -> int:
        return len(self.ids_BL)

    @property
    def device(self) -> torch.device:
        return self.ids_BL.device

    @property
    def packing(self) -> Packing | None:
        """The places of the tokens in `ids_BL`; None if there is little padding."""
        return Packing.of(self.lengths_B, self.starts_B + self.mask_BT.sum(1), self.ids_BL.shape[1])

    def hidden(self, actor: Actor) -> Tensor:
        """The last hidden states (B, L, H) of the active role."""
        return actor.hidden(self.ids_BL, self.packing)

    @property
    def response_lengths_B(self) -> Tensor:
        """Number of valid response tokens. On the CPU."""
        return self.lengths_B - self.prompt_lengths_B

    @cached_property
    def responses(self) -> list[list[int]]:
        """Token ids of each response, up to and including its first stop token. Synchronises with the device."""
        lengths = self.response_lengths_B.tolist()
        return [row[:length] for row, length in zip(self.responses_BT.tolist(), lengths, strict=True)]

    def select(self, rows: Tensor) -> Episodes:
        """The episodes of `rows` (on the CPU), with L trimmed to the longest of them. T is unchanged."""
        return self._select(rows, rows.to(self.device))

    def _select(self, rows: Tensor, device_rows: Tensor) -> Episodes:
        lengths = self.lengths_B[rows]
        return Episodes(
            self.ids_BL[device_rows, : int(lengths.max())],
            self.responses_BT[device_rows],
            self.mask_BT[device_rows],
            self.starts_B[device_rows],
            self.prompt_lengths_B[rows],
            lengths,
        )

    @cached_property
    def _tokens(self) -> tuple[Tensor, Tensor]:
        """Row and response position (N,) of each valid response token, in order. Equals `mask_BT.nonzero()`, but
        does not synchronise with the device, because the number of tokens is known."""
        valid_B = self.mask_BT.sum(1)
        count, device = int(self.response_lengths_B.sum()), valid_B.device
        rows_N = torch.arange(len(valid_B), device=device).repeat_interleave(valid_B, output_size=count)
        first_B = valid_B.cumsum(0) - valid_B
        return rows_N, torch.arange(count, device=device) - first_B[rows_N]

    @property
    def _slots_N(self) -> Tensor:
        """Indices of the valid response tokens in a flattened (B, T) tensor."""
        rows_N, t_N = self._tokens
        return rows_N * self.mask_BT.shape[1] + t_N

    def predicting_hidden(self, hidden_BLH: Tensor) -> Tensor:
        """(N, H): for each valid response token, in order, the hidden state that predicts it."""
        rows_N, t_N = self._tokens
        places = rows_N * hidden_BLH.shape[1] + self.starts_B[rows_N] + t_N - 1
        # A flat index: the gradient of indexing by rows and positions is five times slower.
        return hidden_BLH.flatten(0, 1).index_select(0, places)

    def targets(self) -> Tensor:
        """(N,): the valid response tokens in the same order."""
        return self.responses_BT.flatten().index_select(0, self._slots_N)

    def scatter(self, values_N: Tensor) -> Tensor:
        """Scatters values (N,) of valid response tokens into (B, T), zero where masked."""
        return values_N.new_zeros(self.mask_BT.numel()).scatter(0, self._slots_N, values_N).view_as(self.mask_BT)

    def ended(self, stop_ids: Collection[int]) -> Tensor:
        """(B,) bool: whether the response ended with a stop token."""
        last_B = self.starts_B + self.mask_BT.sum(1) - 1
        ids_B = self.ids_BL.gather(1, last_B[:, None])[:, 0]
        return torch.isin(ids_B, torch.tensor(sorted(stop_ids), device=ids_B.device))

    def micro_batches(self, rows: Tensor, size: int | None) -> Iterator[tuple[Tensor, Episodes]]:
        """Yields the episodes of `rows` (on the CPU) in groups of at most `size`, with similar lengths together,
        and each group's rows on the device. All rows are copied to the device at once."""
        if not len(rows):
            # A process without rows of a minibatch still takes part in its step, with a fully masked episode.
            part = self.select(torch.zeros(1, dtype=torch.long))
            mask = torch.zeros_like(part.mask_BT)
            yield torch.zeros_like(part.starts_B), replace(part, mask_BT=mask, lengths_B=part.prompt_lengths_B)
            return
        rows = self.by_length(rows)
        device_rows, size = rows.to(self.device), size or len(rows)
        for part_rows, device_part in zip(rows.split(size), device_rows.split(size), strict=True):
            yield device_part, self._select(part_rows, device_part)

    def by_length(self, rows: Tensor) -> Tensor:
        """The rows sorted by sequence length, so that batches of them need little padding. On the CPU."""
        return rows[self.lengths_B[rows].argsort(stable=True)]


def logprobs(
    actor: Actor,
    episodes: Episodes,
    hidden_BLH: Tensor,
    *,
    temperature: float,
    chunk_size: int | None,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (B, T) of the response tokens under the active role, nats, zero where masked.
    Entropies need a second pass over the vocabulary; they are zero unless `entropy` is set."""
    logps, entropies = actor.logprobs(
        episodes.predicting_hidden(hidden_BLH),
        episodes.targets(),
        temperature=temperature,
        chunk_size=chunk_size,
        entropy=entropy,
    )
    return episodes.scatter(logps), episodes.scatter(entropies)


def values(actor: Actor, episodes: Episodes, hidden_BLH: Tensor) -> Tensor:
    """V (B, T) of the state before each response token: the role's head on the hidden state that predicts it."""
    return episodes.scatter(actor.scalar(episodes.predicting_hidden(hidden_BLH)))


@torch.no_grad()
def response_logprobs(
    actor: Actor,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    stop_ids: Collection[int],
    pad_id: int,
    *,
    temperature: float,
    batch_size: int | MicroBatch,
    on_batch: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Log-prob (B,) of each response given its prompt, nats, and its number of tokens (B,), up to and including the
    first stop token. Both on the CPU.

    Args:
        batch_size: responses per forward pass, reduced when memory runs out.
        on_batch: called with the number of responses in each finished batch.
    """
    episodes = Episodes.build(prompts, responses, stop_ids, pad_id, actor.device)
    totals_B = torch.zeros(len(episodes), device=actor.device)

    def read(rows: Tensor) -> None:
        part = episodes.select(rows)
        hidden = part.hidden(actor)
        logps, _ = logprobs(actor, part, hidden, temperature=temperature, chunk_size=None, entropy=False)
        totals_B[rows.to(actor.device)] = logps.sum(1)
        on_batch(len(rows))

    MicroBatch.of(batch_size).each(episodes.by_length(torch.arange(len(episodes))), read)
    return totals_B.cpu(), episodes.response_lengths_B
