"""Packs several completions of a prompt into one row, so that the prompt is computed once. Gradients are the same.

A packed row is prompt, completion 1, completion 2, ... Each completion attends to the prompt and itself only, and
its positions continue from the end of the prompt (`RewardModel` builds the mask).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.models.text import pad
from stages.reward.groups import Group


def pack(groups: Sequence[Group], pad_id: int, budget: int) -> dict[str, Tensor]:
    """Packed rows of about `budget` tokens, right-padded: ids_BL; positions_BL; segments_BL (0 for the prompt, the
    completion's number from 1, -1 for padding); ends_N, the index of each completion's last token in the flattened
    rows, in the order of the groups' rows."""
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    segments: list[list[int]] = []
    ends: list[tuple[int, int]] = []
    for group in groups:
        start, open_row = group.prompt_length, False
        for row in group.rows:
            if not open_row or len(ids[-1]) + len(row) - start > budget:
                ids.append(row[:start])
                positions.append(list(range(start)))
                segments.append([0] * start)
                open_row = True
            ids[-1] += row[start:]
            positions[-1] += range(start, len(row))
            segments[-1] += [segments[-1][-1] + 1] * (len(row) - start)
            ends.append((len(ids) - 1, len(ids[-1]) - 1))
    ids_BL, _ = pad(ids, pad_id, left=False)
    width = ids_BL.shape[1]
    return {
        "ids_BL": ids_BL,
        "positions_BL": pad(positions, 0, left=False)[0],
        "segments_BL": pad(segments, -1, left=False)[0],
        "ends_N": torch.tensor([row * width + end for row, end in ends]),
    }
