"""Samplers: generate episodes from an actor, prompts, a seed and sampling parameters.

Every stage generates text through a `Sampler`. For PPO, a recipe can choose another inference engine than the
built-in one (`stages.sampling.vllm`).
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
    """Sampling parameters, with the names of transformers' `GenerationConfig`.

    Attributes:
        max_new_tokens: upper limit on the tokens of a response, stop token included.
        stop_ids: tokens that end a response, which includes the first of them.
        temperature: divides the logits; 0: always the most likely token.
        top_k: sample from the k most likely tokens only; 0: from all.
        top_p: sample from the smallest set of tokens whose probabilities reach this sum; 1: from all.

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
        rows: indices into the whole batch. On the CPU.
        total: number of sequences in the whole batch.
    """

    rows: Tensor
    total: int


class Sampler(ABC):
    """Samples responses from an actor.

    Attributes:
        native: whether the actor's own passes decode. What is recorded while sampling then equals a pass over the
            finished sequences, up to the rounding of its precision. Other engines record log-probs at most.
    """

    native: bool

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
        """Samples one response per prompt. Episodes are in the order of the prompts, on the actor's device.

        Args:
            prompts: token ids.
            seed: a seed, or a CPU generator, which is advanced.
            share: the rows of a batch that several processes sample together; None: `prompts` are the whole batch.
            record: whether to record log-probs and, if `native`, entropies and values (`Episodes.sampled`).
            on_batch: called with the number of prompts in each finished batch.
        """


class BuiltinSampler(Sampler):
    """Decodes with the actor's forward passes (`stages.sampling.decoding`).

    It gives two guarantees, which other engines need not give:

    - *A resumed run equals an uninterrupted one bit for bit* (on a CPU). A response depends only on its prompt and
      its random numbers, which are drawn from `seed` before decoding starts.
    - *The number of processes does not change the samples.* Random numbers are drawn for the whole batch, and each
      process uses those of its `share`. The batch size has no effect beyond rounding.

    Args:
        pad_id: pads prompts on the left; never attended to.
        batch_size: sequences decoded together, reduced when memory runs out; None: all.
    """

    native = True

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
    """The built-in sampler."""
    return BuiltinSampler(codec.pad_id, batch_size)
