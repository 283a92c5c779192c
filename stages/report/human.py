"""What people said when they compared two models blind (`tutelage judge`), kept beside the recipe's runs."""

from __future__ import annotations

import json
from typing import Any

from pipeline.engine.plan import RunSummary
from pipeline.wording import percent, span
from ranking.judged import judged_file


def read(run: RunSummary) -> dict[str, Any] | None:
    """The judgement of the run's present evaluation; None when there is none of these very answers."""
    if "eval" not in run.stages:
        return None
    fingerprint = run.stages["eval"].manifest.fingerprint
    try:
        found: dict[str, Any] = json.loads(judged_file(run.folder, fingerprint).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found if found["eval"] == fingerprint else None


def evidence(found: dict[str, Any]) -> str:
    """In words."""
    win, agreed, judges = found["win_rate"], found["agreement"], found["judges"]
    who = "One person" if judges == 1 else f"{judges} people"
    said = (
        f"{who} compared the answers to {found['prompts']:,} held-out prompts blind: PPO’s beats SFT’s on "
        f"{percent(win['value'])} of them (95 % interval {span(win['low'], win['high'])}; ties count half)."
    )
    if agreed["value"] is not None:
        said += f" Two of them agree on {percent(agreed['value'])} of what both decide."
    return said
