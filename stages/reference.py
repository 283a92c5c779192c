"""Prints docs/recipes.md: python -m stages.reference. It includes the formats that `stages.registry` registers."""

from __future__ import annotations

import sys

from pipeline.config.reference import reference
from stages import registry  # noqa: F401 (registers formats)

if __name__ == "__main__":
    sys.stdout.write(reference())
