"""The `hardware` section: the machine that a recipe is planned for. It changes no result."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from pipeline.config.section import Positive, section

SIZE = r"^([0-9]+(?:\.[0-9]+)?) ?(MB|MiB|GB|GiB)$"
UNITS = {"MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}


@section
class HardwareConfig:
    """The machine that the memory and time plan assumes (docs/memory.md)."""

    memory: Annotated[str, Field(pattern=SIZE)] | None = None
    """Memory of the device, such as `16GB` or `15.5GiB` (GB: 10^9 bytes, GiB: 2^30 bytes). A run that is predicted
    to need more is refused. null: what the GPU reports; on a CPU nothing is refused."""
    tflops: Positive | None = None
    """Measured speed of one large matrix product on this machine, in 10^12 operations/s. With it the plan gives a
    lower bound on each stage's time. null: times are shown only for stages that have run here."""


def size_in_bytes(text: str) -> int:
    """Bytes of a size as `HardwareConfig.memory` writes it."""
    parts = re.fullmatch(SIZE, text)
    assert parts is not None
    return int(float(parts[1]) * UNITS[parts[2]])
