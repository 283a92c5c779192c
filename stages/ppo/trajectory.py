"""A batch of episodes: prompts, responses as sampled (token-in-token-out), and what is known of each token.

Shapes: B episodes, L tokens of prompt and response (right-padded), T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.microbatch import MicroBatch
from stages.models.actor import Actor
from stages.models.text import pad


def response_mask(ids_BT: Tensor, lengths_B: Tensor, stop_ids: Collection[int]) -> Tensor:
    """(B, T) bool: true up to and including the first stop token, and never past a response's length."""
    position = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    stops = torch.isin(ids_BT, torch.tensor(sorted(stop_ids), device=ids_BT.device))
    stopped_before = (stops.long().cumsum(1) - stops.long()) > 0
    return ~stopped_before & (position < lengths_B[:, None])


@dataclass(frozen=True)
class Episodes:
    """Sequences and masks. Everything computed from them keeps their (B, T) layout.

    Attributes:
        ids_BL: prompt and response, right-padded.
        prompt_lengths_B, lengths_B: tokens of the prompt; of prompt and response up to the first stop token.
        responses_BT, mask_BT: response tokens, right-padded, and which of them count.
    """

    ids_BL: Tensor
    prompt_lengths_B: Tensor
    lengths_B: Tensor
    responses_BT: Tensor
    mask_BT: Tensor

    @classmethod
    def build(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        stop_ids: Collection[int],
        pad_id: int,
        device: torch.device | str = "cpu",
    ) -> Episodes:
        """The only place where the response mask is made."""
        response_ids, present = pad(responses, pad_id, left=False)
        mask = response_mask(response_ids, present.sum(1), stop_ids)
        kept = mask.sum(1)
        rows = [[*p, *r[:n]] for p, r, n in zip(prompts, responses, kept.tolist(), strict=True)]
        ids, _ = pad(rows, pad_id, left=False)
        prompt_lengths = torch.tensor([len(p) for p in prompts])
        tensors = (ids, prompt_lengths, prompt_lengths + kept, response_ids, mask)
        return cls(*(tensor.to(device) for tensor in tensors))

    def __len__(self) -> int:
        return len(self.ids_BL)

    def select(self, rows: Tensor) -> Episodes:
        """Some episodes, trimmed to the longest among them in prompt and response; T stays."""
        width = int(self.lengths_B[rows].max())
        return Episodes(
            self.ids_BL[rows, :width],
            self.prompt_lengths_B[rows],
            self.lengths_B[rows],
            self.responses_BT[rows],
            self.mask_BT[rows],
        )

    def predicting_hidden(self, hidden_BLH: Tensor) -> Tensor:
        """(N, H): for each valid response token, in order, the hidden state that predicts it."""
        rows, t = self.mask_BT.nonzero(as_tuple=True)
        places = rows * hidden_BLH.shape[1] + self.prompt_lengths_B[rows] + t - 1
        # By one flat index: the gradient of indexing by rows and positions takes five times as long.
        return hidden_BLH.flatten(0, 1).index_select(0, places)

    def targets(self) -> Tensor:
        """(N,): the valid response tokens in the same order."""
        return self.responses_BT[self.mask_BT]

    def scatter(self, values_N: Tensor) -> Tensor:
        """(N,) values of valid response tokens -> (B, T), zero where masked."""
        return torch.zeros(self.mask_BT.shape, device=values_N.device, dtype=values_N.dtype).masked_scatter(
            self.mask_BT, values_N
        )

    def ended(self, stop_ids: Collection[int]) -> Tensor:
        """(B,) bool: whether the response stopped by itself."""
        last = self.ids_BL.gather(1, self.lengths_B[:, None] - 1)[:, 0]
        return torch.isin(last, torch.tensor(sorted(stop_ids), device=last.device))

    def micro_batches(self, rows: Tensor, size: int | None) -> Iterator[tuple[Tensor, Episodes]]:
        """The episodes of `rows` in groups of at most `size`, those of like length together."""
        if not len(rows):
            # A process that has no share of a minibatch still takes part in its step: with an episode of which no
            # token counts.
            rows = torch.zeros(1, dtype=torch.long)
            yield rows, replace(self.select(rows), mask_BT=torch.zeros_like(self.mask_BT[rows]))
            return
        for part in self.by_length(rows).split(size or len(rows)):
            yield part, self.select(part)

    def by_length(self, rows: Tensor) -> Tensor:
        """The rows, those of like length together, so that batches of them need little padding."""
        return rows[self.lengths_B[rows].argsort(stable=True).to(rows.device)]


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
    totals = torch.zeros(len(episodes))

    def read(rows: Tensor) -> None:
        part = episodes.select(rows)
        hidden = actor.hidden(part.ids_BL)
        logps, _ = logprobs(actor, part, hidden, temperature=temperature, chunk_size=None, entropy=False)
        totals[rows] = logps.sum(1).cpu()
        on_batch(len(rows))

    MicroBatch.of(batch_size).each(episodes.by_length(torch.arange(len(episodes))), read)
    return totals, episodes.mask_BT.sum(1).cpu()
