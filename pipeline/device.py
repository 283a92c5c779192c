"""The device that a recipe runs on."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config.load import LoadedRecipe
from pipeline.errors import StageError


def resolve(loaded: LoadedRecipe) -> str:
    """The recipe's torch device, with `auto` resolved. Also sets torch's threads. `cpu` without `threads` imports
    no torch."""
    wanted, threads = loaded.recipe.device, loaded.recipe.threads
    if wanted == "cpu" and threads is None:
        return wanted
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return available_device(wanted, loaded.place("device"))


def available_device(wanted: str, where: str = "") -> str:
    """A torch device, with `auto` resolved. Raises `StageError` when this machine does not have it.

    Args:
        where: what asked for it, for the error.
    """
    import torch

    available: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if wanted == "auto":
        return next(name for name, is_there in available.items() if is_there())
    if not available[wanted]():
        raise StageError(
            f"this machine has no {wanted} device",
            where=where,
            hint="set device to auto or cpu",
        )
    return wanted
