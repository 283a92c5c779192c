"""Encodes the demonstrations of the `data` artifact."""

from __future__ import annotations

from pipeline.engine.stage import Artifact
from stages.models.text import IGNORED, Codec


def encode_demonstrations(
    data: Artifact, codec: Codec, split: str, max_length: int
) -> tuple[list[dict[str, list[int]]], int]:
    """Rows of ids and labels for the demonstrations of a split, and the number of those left out because they
    exceed `max_length` tokens. Labels of prompt tokens are `IGNORED`."""
    rows, too_long = [], 0
    for demonstration in data.jsonl("demonstrations.jsonl"):
        if demonstration["split"] != split:
            continue
        prompt, completion = (
            codec.prompt(demonstration["prompt"]),
            codec.completion(demonstration["completion"]),
        )
        if len(prompt) + len(completion) > max_length:
            too_long += 1
            continue
        rows.append({"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion})
    return rows, too_long
