"""The file with the result of a blind comparison (`tutelage judge`)."""

from __future__ import annotations

from pathlib import Path

from pipeline.engine.plan import KEY_DIGITS


def judged_file(folder: Path, fingerprint: str) -> Path:
    """The result for the answers of an eval artifact, in the recipe's folder."""
    return folder / f"judged-{fingerprint[:KEY_DIGITS]}.json"
