"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), its moments in 32 bits or in 8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.errors import StageError


def adamw(kind: str, parameters: Sequence[nn.Parameter], device: str, **values: Any) -> torch.optim.Optimizer:
    """An optimizer of `ppo.optimizer`.

    With 8 bits (Dettmers et al. 2022, arXiv:2110.02861) bitsandbytes keeps the moments of tensors of 4,096 numbers
    and more in blocks of 256 that share a scale, those of smaller ones in float32; on a CPU too, but slowly.

    Args:
        kind: adamw, adamw_8bit or paged_adamw_8bit.
        values: of `torch.optim.AdamW`.

    Raises `StageError` for paging without a CUDA device, where bitsandbytes would quietly do without.
    """
    if kind == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **values)
    from bitsandbytes import optim

    if kind == "paged_adamw_8bit" and not device.startswith("cuda"):
        raise StageError(
            f"{kind} moves moments between a CUDA device and the system's memory, and the device is {device}",
            where="ppo.optimizer",
            hint="set ppo.optimizer: adamw_8bit, which does the same arithmetic",
        )
    made: Any = getattr(optim, "AdamW8bit" if kind == "adamw_8bit" else "PagedAdamW8bit")
    optimizer: torch.optim.Optimizer = made(parameters, **values)
    return optimizer
