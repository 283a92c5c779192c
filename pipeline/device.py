"""Which device a recipe runs on."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config.load import LoadedRecipe
from pipeline.errors import StageError


def resolve(loaded: LoadedRecipe) -> str:
    """The torch device that the recipe means; also sets torch's threads. Plain CPU needs no torch for it."""
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
            f"there is no {wanted} device here",
            where=loaded.describe("device"),
            hint="set device to auto or cpu",
        )
    return wanted
