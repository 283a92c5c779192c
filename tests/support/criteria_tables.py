"""Tables of rankings by two criteria that disagree: `more` prefers answers with more z's, `less` with fewer."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny

from pipeline.engine.stage import Artifact
from stages import criteria

COLUMNS: dict[str, str | list[str]] = {
    "prompt": "prompt",
    "completions": ["answer1", "answer2", "answer3"],
    "ratings": ["rating1", "rating2", "rating3"],
    "annotator": "who",
}
NAMES = ("more", "less")


def write(folder: Path, prompts: Sequence[str], counts: Sequence[int] = (0, 2, 4)) -> dict[str, dict[str, Any]]:
    """Writes more.csv and less.csv: the same two people rate the same answers in both. Returns the value of
    `data.rankings.criteria`."""
    for name in NAMES:
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["prompt", "answer1", "answer2", "answer3", "rating1", "rating2", "rating3", "who"])
            for i, prompt in enumerate(prompts):
                shifted = [counts[(place + i) % 3] for place in range(3)]
                ratings = [count if name == "more" else -count for count in shifted]
                for who in ("ann", "bob"):
                    rows.writerow([prompt, *("a" + "z" * count + "." for count in shifted), *ratings, who])
    return {name: {"path": str(folder / f"{name}.csv"), "format": "wide", "columns": COLUMNS} for name in NAMES}


def reward_artifact(folder: Path, base: Artifact, *, members: int = 1) -> Artifact:
    """Like the `reward` stage's with these criteria, with random weights."""
    for seed, name in enumerate(NAMES):
        tiny.reward_artifact(folder / name, base, seed=20 + seed, members=members, criterion=name)
    criteria.write(folder, NAMES)
    return Artifact("reward", folder, "reward")
