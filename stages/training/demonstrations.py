"""Encodes the demonstrations of the `data` artifact."""

from __future__ import annotations

from collections.abc import Callable

from data.schema import Split
from pipeline.engine.stage import Artifact
from stages.left_out import LeftOut, of_split
from stages.models.text import IGNORED, Codec


def encode_demonstrations(
    data: Artifact,
    codec: Codec,
    split: Split,
    max_length: int,
    *,
    key: str = "sft.max_length",
    prefix: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, list[int]]], LeftOut]:
    """Rows of ids and labels for the demonstrations of a split, and what was left out because it exceeds
    `max_length` tokens. Labels of prompt tokens are `IGNORED`.

    Args:
        key: the recipe key, or sum of keys, of `max_length`.
        prefix: which demonstrations these are, one of `stages.left_out.PREFIXES`; None: those of the split.
        advance: called for each demonstration.
    """
    left_out = LeftOut("demonstrations", of_split(split) if prefix is None else prefix, key, max_length)
    left_out.measured = "with prompt and answer"
    rows = []
    for demonstration in data.jsonl("demonstrations.jsonl"):
        if demonstration["split"] != split:
            continue
        prompt, completion = (
            codec.prompt(demonstration["prompt"]),
            codec.completion(demonstration["completion"]),
        )
        if left_out.fits(len(prompt) + len(completion)):
            rows.append({"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion})
        advance()
    return rows, left_out
