"""The cost of an update: FLOPs from the model's shape, and utilisation against this machine's attainable rate.

The FLOP formulas are in pipeline/memory/flops.py, shared with the estimate before a run.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from pipeline.config.ppo import PPOConfig
from pipeline.memory.flops import PHASES, ModelCost, update_flops
from stages.models.bank import Bank, FullBank
from stages.models.distributed import World
from stages.models.fast.linear import matmul
from stages.models.precision import COMPUTE
from stages.sampling.episodes import Episodes

__all__ = ["PHASES", "Clock", "Meter", "ModelCost", "attainable", "shape_of", "update_flops"]


def shape_of(lm: Any) -> ModelCost:
    """The model's cost shape, counted on its modules, whether quantised or wrapped by peft."""
    head = lm.get_output_embeddings()
    config = lm.config.get_text_config()
    layers = config.num_hidden_layers
    heads = getattr(config, "num_attention_heads", 0)  # recurrent models have none
    width = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return ModelCost(
        trunk=sum(_weights(m) for name, m in lm.named_modules() if "lora_" not in name and m is not head),
        head=_weights(head),
        mixing=layers * heads * width,
        cached=2 * layers * kv_heads * width,
    )


def _weights(module: Any) -> int:
    """Number of weights of a linear layer, quantised or transposed (`Conv1D`) ones included; 0 for peft's
    wrappers."""
    if isinstance(module, BaseTunerLayer):
        return 0
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features) * int(module.out_features)
    return module.weight.numel() if hasattr(module, "nf") and isinstance(module.weight, torch.Tensor) else 0


@cache
def attainable(device: str, dtype: torch.dtype) -> float:
    """FLOPs per second that this machine attains in a large matrix product, the denominator of utilisation. Takes
    0.2 s, once."""
    size = 4096 if torch.device(device).type == "cuda" else 1024
    a, b = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < 0.2:
        began = time.perf_counter()
        matmul(a, b)
        if a.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


class Meter:
    """Measures throughput, FLOPs and utilisation of updates, and the share of responses that end with EOS."""

    def __init__(self, bank: Bank, config: PPOConfig, device: str, world: World) -> None:
        self._bank, self._config, self._world = bank, config, world
        with bank.active("policy") as actor:
            self._shape = shape_of(actor.lm)
        weight = next(p for p in bank.parameters() if p.is_floating_point())
        self._attainable = attainable(device, getattr(actor.lm, COMPUTE, weight.dtype))
        self._operations = self._seconds = 0.0

    def measure(self, episodes: Episodes, ended_B: Tensor, seconds: float) -> dict[str, float]:
        """Metrics of one update (docs/ppo.md), over all processes.

        Args:
            episodes: this process's episodes.
            ended_B: bool, whether each response ended with a stop token; on the CPU.
            seconds: duration of the update.
        """
        counts = [
            float(ended_B.sum()),
            float(len(ended_B)),
            float(episodes.response_lengths_B.sum()),
            self._flops(episodes),
        ]
        ended, count, tokens, flops = self._world.sum(torch.tensor(counts, dtype=torch.float64)).tolist()
        self._operations += flops / self._world.size
        self._seconds += seconds
        return {
            "response/ended": ended / count,
            "tokens_per_second": tokens / seconds,
            "flops": flops,
            "mfu": flops / self._world.size / seconds / self._attainable,
        }

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation of this process's updates so far: the algorithm's FLOPs per second over the
        attainable rate."""
        return self._operations / self._seconds / self._attainable if self._seconds else 0.0

    def _flops(self, episodes: Episodes) -> float:
        lengths = torch.stack([episodes.prompt_lengths_B, episodes.response_lengths_B], dim=1)
        by_phase = update_flops(
            self._shape,
            [(prompt, response) for prompt, response in lengths.tolist()],
            epochs=self._config.num_ppo_epochs,
            adapter_value=self._config.critic == "adapter",
            full=isinstance(self._bank, FullBank),
            rewards=sum(role.startswith("reward") for role in self._bank.roles),
        )
        return sum(by_phase.values())


class Clock:
    """Times the phases of an update, in seconds."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    @property
    def total(self) -> float:
        return self.last - self.start
