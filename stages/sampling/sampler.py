"""Samplers: an actor, prompts, a seed and sampling parameters in, episodes out.

Every stage that needs responses asks a `Sampler`. To add an engine, write another subclass and have `sampler_of`
choose it; nothing else in the code base generates text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.models.actor import Actor
from stages.models.microbatch import MicroBatch
from stages.models.text import Codec
from stages.sampling.decoding import Record, generate
from stages.sampling.episodes import Episodes


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How responses are drawn. The names are those of transformers' `GenerationConfig`.

    Attributes:
        max_new_tokens: the longest response, in tokens, its stop token included.
        stop_ids: tokens that end a response. The first of them is its last token.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens are drawn; 0: all.
        top_p: only the smallest set of tokens whose probabilities reach this sum is drawn; 1: all.

    Raises `ValueError` for a value out of range.
    """

    max_new_tokens: int
    stop_ids: Collection[int]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"sampling parameters out of range: {self}")


@dataclass(frozen=True)
class Share:
    """This process's rows of a batch that several processes sample together.

    Attributes:
        rows: their numbers in the whole batch. On the CPU.
        total: sequences in the whole batch.
    """

    rows: Tensor
    total: int


class Sampler(ABC):
    """Draws responses from an actor."""

    @abstractmethod
    def sample(
        self,
        actor: Actor,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        seed: int | torch.Generator,
        *,
        share: Share | None = None,
        record: bool = False,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> Episodes:
        """One response per prompt; episodes in the prompts' order, on the actor's device.

        Args:
            prompts: token ids.
            seed: a seed, or a CPU generator that is advanced.
            share: of a batch that several processes sample together; None: `prompts` are the whole batch.
            record: whether the episodes carry what the model gave each token as it was drawn
                (`Episodes.sampled`). An engine that does not know may leave it out.
            on_batch: called with the number of prompts of each batch that is done.
        """


class BuiltinSampler(Sampler):
    """Decoding with the actor's own passes (`stages.sampling.decoding`).

    Two guarantees, which other engines need not give:

    - *A run that is resumed equals one that never stopped, to the bit* (on a CPU). A response depends on its
      prompt and its own random numbers alone, and all of them are drawn from `seed` before decoding starts.
    - *Several processes sample what one would.* Numbers are drawn for the whole batch, and each process takes
      those of its `share`. Nor does the batch size matter, beyond rounding.

    Args:
        pad_id: fills prompts on the left; never attended to.
        batch_size: sequences decoded at once, fewer where memory runs out; None: all.
    """

    def __init__(self, pad_id: int, batch_size: int | MicroBatch | None = None) -> None:
        self.pad_id, self.batch_size = pad_id, MicroBatch.of(batch_size)

    def sample(
        self,
        actor: Actor,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        seed: int | torch.Generator,
        *,
        share: Share | None = None,
        record: bool = False,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> Episodes:
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        total = len(prompts) if share is None else share.total
        uniform_BT = torch.rand((total, params.max_new_tokens), generator=generator)
        if share is not None:
            uniform_BT = uniform_BT[share.rows]
        sampled = Record.empty((len(prompts), params.max_new_tokens), actor.device) if record else None
        responses = generate(
            actor,
            prompts,
            uniform_BT,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            stop_ids=params.stop_ids,
            pad_id=self.pad_id,
            batch_size=self.batch_size,
            on_batch=on_batch,
            record=sampled,
        )
        return Episodes.build(prompts, responses, params.stop_ids, self.pad_id, actor.device, sampled)


def sampler_of(codec: Codec, batch_size: int | MicroBatch | None = None) -> Sampler:
    """The sampler that stages use."""
    return BuiltinSampler(codec.pad_id, batch_size)
