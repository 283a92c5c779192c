"""What the report says of rankings and annotators, from the `data` and `rank` stages."""

from __future__ import annotations

from typing import Any

from pipeline.engine.plan import StageRun

PLACES = 12
"""Rows that are named for each reason."""
MOST_ANNOTATORS = 60
SHOWN = 12
"""Annotators in the table and, of these, the ones that are not folded away. The others are in agreement.json."""
TABLES = {
    "demonstrations": "demonstrations",
    "prompts": "prompts",
    "rankings": "rankings",
    "completions": "rankings",
}
"""What can be left out -> the table of the recipe that it stands in."""
RANKED = {"": "training rankings", "eval_": "held-out rankings", "pretraining_": "rankings of reward.pretrain_on"}
"""Of the `reward` stage's metrics: prefix -> what they are of."""


def measured(rank: StageRun | None) -> dict[str, Any] | None:
    """`agreement.json`, with the annotators who ranked most as a list; None before the stage is finished."""
    if rank is None or not (rank.artifact.path / "agreement.json").is_file():
        return None
    found = dict(rank.artifact.json("agreement.json"))
    everyone = found.pop("by_annotator", {})
    found.pop("weights", None)
    rows = [{"name": name, **row} for name, row in everyone.items()]
    found["by_annotator"] = sorted(rows, key=lambda row: -row["rankings"])[:MOST_ANNOTATORS]
    found["all_annotators"] = len(everyone)
    return found


def dropped(data: StageRun | None, reward: StageRun | None) -> list[dict[str, Any]]:
    """What the `data` and `reward` stages left out: table, its file, rows read, reason, how often, and the first
    rows. The latter's rows are rankings and have no number."""
    return [*(_dropped_rows(data) if data else []), *(_dropped_rankings(reward) if reward else [])]


def _dropped_rows(data: StageRun) -> list[dict[str, Any]]:
    metrics, config = data.manifest.metrics, data.manifest.config
    places: dict[tuple[str, str], list[int]] = {}
    if (data.artifact.path / "dropped.jsonl").is_file():
        for place in data.artifact.jsonl("dropped.jsonl"):
            rows = places.setdefault((place["table"], place["reason"]), [])
            if len(rows) < PLACES and place["row"] not in rows:
                rows.append(place["row"])
    return [
        {
            "table": what,
            "file": (config.get(table) or {}).get("path", ""),
            "read": metrics.get(f"read_{table}"),
            "reason": name.partition("/")[2],
            "count": count,
            "rows": places.get((table, name.partition("/")[2]), []),
        }
        for what, table in TABLES.items()
        for name, count in metrics.items()
        if name.startswith(f"dropped_{what}/")
    ]


def _dropped_rankings(reward: StageRun) -> list[dict[str, Any]]:
    metrics = reward.manifest.metrics
    return [
        {
            "table": table,
            "file": "reward stage",
            "read": metrics.get(f"{prefix}read_rankings"),
            "reason": name.partition("/")[2],
            "count": count,
            "rows": [],
        }
        for prefix, table in RANKED.items()
        for name, count in metrics.items()
        if name.startswith(f"{prefix}dropped_rankings/")
    ]


def columns(found: dict[str, Any]) -> list[str]:
    """The measures that at least one annotator has."""
    rows = found["by_annotator"]
    shares = ("agreement", "self_consistency", "first_shown", "longer")
    return [name for name in shares if any(row[name]["value"] is not None for row in rows)]


def strengths(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The models with their places on one axis, in per cent of its width."""
    rows = found["models"]
    ends = [row[end] for row in rows for end in ("low", "high") if row[end] is not None]
    if not ends:
        return []
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return float(round(100 * (value - low) / width, 1))

    return [
        {
            **row,
            "at": place(row["strength"]),
            "from": place(row["low"] if row["low"] is not None else row["strength"]),
            "to": place(row["high"] if row["high"] is not None else row["strength"]),
            "zero": place(0.0),
        }
        for row in rows
    ]
