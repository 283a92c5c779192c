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
            where=loaded.place("device"),
            hint="set device to auto or cpu",
        )
    return wanted
