"""Limits of the stages that decide how much memory they take. The stages run with them and the plan counts with
them, so each is written here once. Imports nothing, so that both may import it."""

from __future__ import annotations

EXPLICIT_ATTENTION = 128
"""Positions up to which a CPU attends with its scores written out, which is faster there than the fused kernel."""

MERGED_COPIES = 2**29
"""Bytes that copies of weights with their adapter merged in may take while decoding. They are released before
training, which needs more memory, starts."""


def positions_at_once(vocabulary: int, device: str) -> int:
    """Positions whose logits exist at once, where the recipe does not say. Their logits take 4 MB on a CPU, about
    the size of its caches, and 256 MB on other devices; but at least 256 positions, because smaller matrix products
    are slow.

    Args:
        device: the type of a torch device.
    """
    return max(256, 2 ** (20 if device == "cpu" else 26) // vocabulary)
