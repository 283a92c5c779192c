"""A reward function for the quickstart's task, which examples/reward_terms.yaml names.

Its signature is that of TRL's `reward_funcs`, so the same function works in a `GRPOTrainer` (docs/rewards.md).
"""

from __future__ import annotations

import re
from typing import Any

Messages = list[dict[str, str]]


def opens_with_name(prompts: list[Messages], completions: list[Messages], **_: Any) -> list[float | None]:
    """1 where a description starts with the name of the venue, else 0; None where the prompt gives no name."""
    scores: list[float | None] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        name = re.search(r"name\[([^\]]+)\]", prompt[-1]["content"])
        scores.append(None if name is None else float(completion[0]["content"].strip().startswith(name[1])))
    return scores
