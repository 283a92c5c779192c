"""A batch of episodes: prompts, responses as sampled (token-in-token-out), and what is known of each token.

Shapes: B episodes, L tokens of prompt and response (right-padded), T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from stages.models.actor import Actor
from stages.models.microbatch import MicroBatch
from stages.models.text import pad
from stages.sampling.decoding import Record


def response_mask(ids_BT: Tensor, lengths_B: Tensor, stop_ids: Collection[int]) -> Tensor:
    """(B, T) bool: true up to and including the first stop token, and never past a response's length."""
    position = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    stops = torch.isin(ids_BT, torch.tensor(sorted(stop_ids), device=ids_BT.device))
    stopped_before = (stops.long().cumsum(1) - stops.long()) > 0
    return ~stopped_before & (position < lengths_B[:, None])


@dataclass(frozen=True)
class Episodes:
    """Sequences and masks. Everything computed from them keeps their (B, T) layout.

    Lengths are kept on the host, whatever the device, and determine every shape: no method waits for the device.

    Attributes:
        ids_BL: prompt and response, right-padded.
        responses_BT, mask_BT: response tokens, right-padded, and which of them count, the first ones of each row.
        starts_B: `prompt_lengths_B`, on the device.
        prompt_lengths_B, lengths_B: tokens of the prompt; of prompt and response up to the first stop token. On the
            CPU.
        sampled: what the model gave each token as it was drawn, if the sampler recorded it. Not kept by `select`.
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
        """The only place where the response mask is made."""
        response_ids, present = pad(responses, pad_id, left=False)
        mask = response_mask(response_ids, present.sum(1), stop_ids)
        kept = mask.sum(1)
        rows = [[*p, *r[:n]] for p, r, n in zip(prompts, responses, kept.tolist(), strict=True)]
        ids, _ = pad(rows, pad_id, left=False)
        prompt_lengths = torch.tensor([len(p) for p in prompts])
        return cls(
            ids.to(device),
            response_ids.to(device),
            mask.to(device),
            prompt_lengths.to(device),
            prompt_lengths,
            prompt_lengths + kept,
            sampled,
        )

    def __len__(self) -> int:
        return len(self.ids_BL)

    @property
    def device(self) -> torch.device:
        return self.ids_BL.device

    @property
    def response_lengths_B(self) -> Tensor:
        """Response tokens that count. On the CPU."""
        return self.lengths_B - self.prompt_lengths_B

    @cached_property
    def responses(self) -> list[list[int]]:
        """Token ids of each response, up to and including its first stop token. The host waits for the device."""
        lengths = self.response_lengths_B.tolist()
        return [row[:length] for row, length in zip(self.responses_BT.tolist(), lengths, strict=True)]

    def select(self, rows: Tensor) -> Episodes:
        """Some episodes, trimmed to the longest among them in prompt and response; T stays. `rows`: on the CPU."""
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
        """Row and response position (N,) of each valid response token, in order. What `mask_BT.nonzero()` gives,
        but the number of tokens is known, so that the host does not wait for it."""
        kept_B = self.mask_BT.sum(1)
        count, device = int(self.response_lengths_B.sum()), kept_B.device
        rows_N = torch.arange(len(kept_B), device=device).repeat_interleave(kept_B, output_size=count)
        first_B = kept_B.cumsum(0) - kept_B
        return rows_N, torch.arange(count, device=device) - first_B[rows_N]

    @property
    def _slots_N(self) -> Tensor:
        """Where the valid response tokens stand in a flattened (B, T) tensor."""
        rows_N, t_N = self._tokens
        return rows_N * self.mask_BT.shape[1] + t_N

    def predicting_hidden(self, hidden_BLH: Tensor) -> Tensor:
        """(N, H): for each valid response token, in order, the hidden state that predicts it."""
        rows_N, t_N = self._tokens
        places = rows_N * hidden_BLH.shape[1] + self.starts_B[rows_N] + t_N - 1
        # By one flat index: the gradient of indexing by rows and positions takes five times as long.
        return hidden_BLH.flatten(0, 1).index_select(0, places)

    def targets(self) -> Tensor:
        """(N,): the valid response tokens in the same order."""
        return self.responses_BT.flatten().index_select(0, self._slots_N)

    def scatter(self, values_N: Tensor) -> Tensor:
        """(N,) values of valid response tokens -> (B, T), zero where masked."""
        return values_N.new_zeros(self.mask_BT.numel()).scatter(0, self._slots_N, values_N).view_as(self.mask_BT)

    def ended(self, stop_ids: Collection[int]) -> Tensor:
        """(B,) bool: whether the response stopped by itself."""
        last_B = self.starts_B + self.mask_BT.sum(1) - 1
        ids_B = self.ids_BL.gather(1, last_B[:, None])[:, 0]
        return torch.isin(ids_B, torch.tensor(sorted(stop_ids), device=ids_B.device))

    def micro_batches(self, rows: Tensor, size: int | None) -> Iterator[tuple[Tensor, Episodes]]:
        """The episodes of `rows`, given on the CPU, in groups of at most `size`, those of like length together.
        Yields each group's rows, on the device of the episodes. All rows are copied to it in one go."""
        if not len(rows):
            # A process that has no share of a minibatch still takes part in its step: with an episode of which no
            # token counts.
            part = self.select(torch.zeros(1, dtype=torch.long))
            mask = torch.zeros_like(part.mask_BT)
            yield torch.zeros_like(part.starts_B), replace(part, mask_BT=mask, lengths_B=part.prompt_lengths_B)
            return
        rows = self.by_length(rows)
        device_rows, size = rows.to(self.device), size or len(rows)
        for some, device_some in zip(rows.split(size), device_rows.split(size), strict=True):
            yield device_some, self._select(some, device_some)

    def by_length(self, rows: Tensor) -> Tensor:
        """The rows, those of like length together, so that batches of them need little padding. On the CPU."""
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
    """Log-probability and entropy (B, T) of the response tokens under the active role, zero where masked. Without
    `entropy`, which costs a second pass over the vocabulary, the latter is zero everywhere."""
    logps, entropies = actor.logprobs(
        episodes.predicting_hidden(hidden_BLH),
        episodes.targets(),
        temperature=temperature,
        chunk_size=chunk_size,
        entropy=entropy,
    )
    return episodes.scatter(logps), episodes.scatter(entropies)


def values(actor: Actor, episodes: Episodes, hidden_BLH: Tensor) -> Tensor:
    """V (B, T) of the state before each response token: the role's head where the token is predicted."""
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
    """Log-probability (B,) of each whole response given its prompt, nats, and the number of its tokens (B,) up to
    and including the first stop. Both on the CPU.

    Args:
        batch_size: responses read at once, fewer where memory runs out.
        on_batch: called with the number of responses in each batch that is done.
    """
    episodes = Episodes.build(prompts, responses, stop_ids, pad_id, actor.device)
    totals_B = torch.zeros(len(episodes), device=actor.device)

    def read(rows: Tensor) -> None:
        part = episodes.select(rows)
        hidden = actor.hidden(part.ids_BL)
        logps, _ = logprobs(actor, part, hidden, temperature=temperature, chunk_size=None, entropy=False)
        totals_B[rows.to(actor.device)] = logps.sum(1)
        on_batch(len(rows))

    MicroBatch.of(batch_size).each(episodes.by_length(torch.arange(len(episodes))), read)
    return totals_B.cpu(), episodes.response_lengths_B
