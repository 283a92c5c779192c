"""Where the judgement of a blind comparison (`tutelage judge`) is kept."""

from __future__ import annotations

from pathlib import Path

from pipeline.engine.plan import KEY_DIGITS


def judged_file(folder: Path, fingerprint: str) -> Path:
    """The file of the judgement of an eval artifact's answers, in the recipe's folder."""
    return folder / f"judged-{fingerprint[:KEY_DIGITS]}.json"
