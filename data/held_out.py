"""Whether enough prompts are held out to measure anything."""

from __future__ import annotations

FEW = 30
"""Below this number of prompts a result decides nothing: a bootstrap interval over so few is too narrow (three wins
of three give 100 % to 100 %), and a single prompt moves a share by more than 3 points."""


def too_few(count: int, purpose: str) -> str:
    """A warning if fewer than `FEW` prompts are held out; empty otherwise.

    Args:
        count: number of held-out prompts.
        purpose: what they are for, after "prompts": "to evaluate on", "with rankings".
    """
    if count >= FEW:
        return ""
    prompts = "prompt" if count == 1 else "prompts"
    return (
        f"only {count} held-out {prompts} {purpose}: results on fewer than {FEW} decide nothing. Add prompts, or "
        "raise data.eval_fraction"
    )
