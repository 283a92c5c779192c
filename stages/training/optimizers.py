"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), with optimizer state in 32 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.errors import StageError


def adamw(
    kind: str, parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]], device: str, **values: Any
) -> torch.optim.Optimizer:
    """Builds the optimizer that `ppo.optimizer` names.

    With 8 bits (Dettmers et al. 2022, arXiv:2110.02861) bitsandbytes stores the state of tensors of at least 4,096
    elements in blocks of 256 with a shared scale, and that of smaller tensors in float32. It also works on a CPU,
    slowly.

    Args:
        kind: adamw, adamw_8bit or paged_adamw_8bit.
        parameters: parameters, or groups of them, as `torch.optim.AdamW` takes them.
        values: keyword arguments of `torch.optim.AdamW`.

    Raises `StageError` for paging without a CUDA device, where bitsandbytes would silently not page.
    """
    if kind == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **values)
    from bitsandbytes import optim

    if kind == "paged_adamw_8bit" and not device.startswith("cuda"):
        raise StageError(
            f"{kind} pages optimizer state between GPU and host memory, but the device is {device}",
            where="ppo.optimizer",
            hint="set ppo.optimizer: adamw_8bit, which computes the same without paging",
        )
    optimizer_class: Any = getattr(optim, "AdamW8bit" if kind == "adamw_8bit" else "PagedAdamW8bit")
    optimizer: torch.optim.Optimizer = optimizer_class(parameters, **values)
    return optimizer
