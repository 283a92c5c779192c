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
    memory: Annotated[str, Field(pattern=SIZE)] | None = None
    """What the device has, such as `16GB` or `15.5GiB` (GB: 10^9 bytes, GiB: 2^30). A run that is predicted to need
    more is refused. null: what the GPU says it has; nothing is refused on a CPU."""
    tflops: Positive | None = None
    """10^12 operations a second that one large matrix product reaches here; the plan then says how long a stage
    takes at least. null: times only of stages that ran here before."""


def size_in_bytes(text: str) -> int:
    """Of a size that `HardwareConfig.memory` allows."""
    found = re.fullmatch(SIZE, text)
    assert found is not None
    return int(float(found[1]) * UNITS[found[2]])
