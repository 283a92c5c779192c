"""The artifacts of rankings by several criteria.

`data`, `rank` and `reward` then write `criteria.json`, the criteria's names. `rank` and `reward` write a folder for
each criterion, which holds what they would write of its rankings alone; metrics have the criterion before them, as
in `quality/accuracy`. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config.data import rankings_path
from pipeline.engine.stage import Artifact, Metrics
from pipeline.errors import RecipeError, StageError

FILE = "criteria.json"
OPTION = "--criterion"
"""The option of commands that names a criterion."""


def criteria_of(artifact: Artifact | Path) -> list[str]:
    """The criteria of an artifact, or of one in a folder; empty where its rankings have none."""
    whole = Artifact("", artifact, "") if isinstance(artifact, Path) else artifact
    return list(whole.json(FILE)) if whole.has(FILE) else []


def write(out_dir: Path, criteria: Sequence[str]) -> None:
    (out_dir / FILE).write_text(json.dumps(list(criteria)) + "\n", encoding="utf-8")


def table_name(criterion: str | None, kind: str = "rankings") -> str:
    """The name of a table of rankings in metrics and dropped.jsonl: its path below `data`. `kind`: `rankings`, or
    those that merge annotators."""
    return kind + rankings_path(criterion).removeprefix("data.rankings")


def part(artifact: Artifact, criterion: str) -> Artifact:
    """What a `rank` or `reward` artifact holds of one of its criteria, as an artifact."""
    prefix = f"{criterion}/"
    metrics = {
        name.removeprefix(prefix): value for name, value in artifact.metrics.items() if name.startswith(prefix)
    }
    return replace(artifact, path=artifact.path / criterion, metrics=metrics)


def of_criterion(artifact: Artifact, criterion: str | None, where: str) -> Artifact:
    """The part of the named criterion; the artifact itself where its rankings have none and none is named.

    Args:
        where: what names the criterion, an option or a recipe's key.

    Raises `StageError` where there are several and none of them is named, and where there are none.
    """
    criteria = criteria_of(artifact)
    if criterion is None and not criteria:
        return artifact
    if criterion is None or criterion not in criteria:
        raise refusal(criteria, criterion, str(artifact.path), where)
    return part(artifact, criterion)


def refusal(criteria: Sequence[str], criterion: str | None, place: str, where: str) -> StageError:
    """The error for a criterion that is missing, or that the rankings do not have."""
    if not criteria:
        return StageError(
            f"the rankings have no criteria, and {where} names {criterion}", where=place, hint=f"drop {where}"
        )
    what = "several criteria, and none of them is named" if criterion is None else f"no criterion {criterion}"
    return StageError(f"the rankings have {what}", where=place, hint=f"set {where} to one of {', '.join(criteria)}")


def prefixed(parts: Mapping[str, Metrics]) -> Metrics:
    """The metrics of several criteria as those of a stage."""
    return {f"{criterion}/{name}": value for criterion, own in parts.items() for name, value in own.items()}


def check_option(criteria: Sequence[str], criterion: str | None, place: str) -> None:
    """Raises `RecipeError` unless the option --criterion of a command is one of the criteria, or nothing where
    there are none."""
    if criterion not in (criteria or (None,)):
        error = refusal(criteria, criterion, place, OPTION)
        raise RecipeError(error.what, where=error.where, hint=error.hint)
