"""Two runs side by side, from their `report.json` files alone: what differs in the recipes, and in the results.

Final policies are compared prompt by prompt where both runs were evaluated on the same prompts, so that the
interval is of the difference rather than of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Template

from pipeline.errors import StageError
from pipeline.files import jsonable, readable_seconds, write_atomic
from pipeline.wording import DASH, MINUS, fixed, percent, span
from stages.report.against import RESAMPLES, paired_change
from stages.report.comparison import METRICS, Metric
from stages.report.verdict import Tone

Report = dict[str, Any]

FILE = "report.json"


def read(path: Path) -> Report:
    """A run's report, by its folder, its report.html or its report.json. Raises `StageError`."""
    file = path / FILE if path.is_dir() else path.with_suffix(".json")
    try:
        found: Report = json.loads(file.read_text(encoding="utf-8"))
        found["recipe"], found["stages"], found["values"]
    except FileNotFoundError:
        raise StageError(
            "there is no report of this run",
            where=str(file),
            hint="give a run's folder or report.json; `tutelage report` writes it",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"this is no report: {error}", where=str(file), hint="`tutelage report` writes a new one"
        ) from error
    return found


def compare(a: Report, b: Report, names: tuple[str, str]) -> dict[str, Any]:
    """Everything the page shows, as JSON values."""
    return {
        "names": list(names),
        "recipes": [a["recipe"], b["recipe"]],
        "verdicts": [a["verdict"], b["verdict"]],
        "values": _values(a, b),
        "runs": _runs(a, b),
        "models": _models(a, b),
        "paired": paired(a, b),
    }


def paired(a: Report, b: Report) -> dict[str, Any] | None:
    """Final policies on the prompts that both runs were evaluated on: relative change of fact errors from A to B,
    and how often B's answer has fewer faults, each with a 95 % bootstrap interval over prompts. None without a
    judge, or without such prompts."""
    rows = {row["prompt"]: row for row in a.get("judged") or []}
    shared = [(rows[row["prompt"]], row) for row in b.get("judged") or [] if row["prompt"] in rows]
    judges = {(report.get("evaluation") or {}).get("judge") for report in (a, b)}
    if not shared or len(judges) > 1:
        return None
    ours, theirs = ([pair[i]["errors"]["ppo"] for pair in shared] for i in (1, 0))
    given = max(1, sum(row["given"] for row, _ in shared))
    found: dict[str, Any] = {
        "judge": judges.pop(),
        "prompts": len(shared),
        "rates": [sum(theirs) / given, sum(ours) / given],
        "change": paired_change(ours, theirs) if sum(theirs) else None,
    }
    if all("faults" in row for pair in shared for row in pair):
        found["win_rate"] = _win_rate([(x["faults"]["ppo"], y["faults"]["ppo"]) for x, y in shared])
    return found


def conclude(found: dict[str, Any]) -> tuple[Tone, str, str]:
    """Tone (of B), headline, and what it rests on."""
    (first, second), both = found["names"], found["paired"]
    if both is None or both["change"] is None:
        return (
            "unknown",
            "The two cannot be compared answer by answer.",
            "That takes the same judge (eval.judge) and held-out prompts that both were evaluated on.",
        )
    change = both["change"]
    tone: Tone = "good" if change["high"] < 0 else "bad" if change["low"] > 0 else "unclear"
    says = {
        "good": f"{second} makes fewer fact errors than {first}.",
        "bad": f"{second} makes more fact errors than {first}.",
        "unclear": f"Whether {second} or {first} is better, these prompts do not tell.",
    }[tone]
    rests = (
        f"On the {both['prompts']:,} held-out prompts of both, by the judge {both['judge']}: "
        f"{percent(both['rates'][0], 1)} fact errors with {first}, {percent(both['rates'][1], 1)} with {second}, a "
        f"change of {percent(change['value'], sign=True)} (95 % interval "
        f"{span(change['low'], change['high'], sign=True)}{', which holds zero' if tone == 'unclear' else ''})."
    )
    if win := both.get("win_rate"):
        rests += (
            f" {second}’s answer has fewer faults on {percent(win['value'])} of them "
            f"({span(win['low'], win['high'])}; ties count half)."
        )
    return tone, says, rests


def write(found: dict[str, Any], path: Path, template: Template) -> None:
    """The page, and its numbers beside it as JSON."""
    numbers = path.with_suffix(".json")
    page = template.render(found=found, conclusion=conclude(found), numbers=numbers.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(numbers, json.dumps(jsonable(found), indent=1, ensure_ascii=False) + "\n")
    write_atomic(path, page)


def _values(a: Report, b: Report) -> list[dict[str, Any]]:
    """The recipe's values that differ, less the name; a value that one lacks is None there."""
    ours, theirs = ({row["path"]: row["value"] for row in report["values"]} for report in (a, b))
    paths = [path for path in {**ours, **theirs} if path != "name"]
    return [
        {"path": path, "a": ours.get(path), "b": theirs.get(path)}
        for path in paths
        if ours.get(path) != theirs.get(path)
    ]


def _runs(a: Report, b: Report) -> list[dict[str, str]]:
    """What the runs were: a row each thing, as text."""

    def metric(report: Report, stage: str, name: str) -> Any:
        made = [row for row in report["stages"] if row["key"] and row["name"].partition("-")[0] == stage]
        return made[-1]["metrics"].get(name) if made else None

    def guards(report: Report) -> str:
        found = report.get("guards") or {}
        if not found.get("watched"):
            return DASH
        return ", ".join(event["rule"] for event in found["events"]) or "nothing noted"

    def handed_on(report: Report) -> str:
        found = report.get("guards") or {}
        if not found.get("watched"):
            return DASH
        stopped = f", stopped of {found['planned_updates']} planned" if found["stopped_at"] else ""
        return f"update {found['handed_on']} of {found['updates']}{stopped}"

    def held_out(report: Report) -> str:
        found = (report.get("reward") or {}).get("held_out") or {}
        if found.get("accuracy") is None:
            return DASH
        measured = percent(found["accuracy"], 1)
        if found.get("accuracy_low") is None:
            return measured
        return f"{measured} ({span(found['accuracy_low'], found['accuracy_high'], 1)})"

    rows: list[tuple[str, Callable[[Report], str]]] = [
        ("Seed", lambda r: str(r["seed"])),
        ("Rankings", lambda r: fixed(metric(r, "rank", "rankings"), 0)),
        ("Reward accuracy, held out", held_out),
        ("PPO episodes", lambda r: fixed(metric(r, "ppo", "episodes"), 0)),
        ("Policy handed on", handed_on),
        ("Guards", guards),
        ("Whole run", lambda r: readable_seconds(r["seconds"])),
    ]
    made = [{"label": label, "a": tell(a), "b": tell(b)} for label, tell in rows]
    return [row for row in made if {row["a"], row["b"]} != {DASH}]


def _models(a: Report, b: Report) -> list[dict[str, Any]]:
    """The final policies by metric, with their difference; of each run's own prompts."""
    ours, theirs = (((report.get("evaluation") or {}).get("models") or {}).get("ppo", {}) for report in (a, b))
    return [
        _row(metric, ours, theirs)
        for metric in METRICS
        if ours.get(metric.key) is not None or theirs.get(metric.key) is not None
    ]


def _row(metric: Metric, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    x, y = a.get(metric.key), b.get(metric.key)
    row: dict[str, Any] = {"label": metric.label, "unit": metric.unit, "a": metric.write(x), "b": metric.write(y)}
    row |= {"values": [x, y], "difference": "" if x is None or y is None else metric.write_change(y - x)}
    for side, model in (("a", a), ("b", b)):
        known = metric.key == "slot_error_rate" and model.get("slot_error_low") is not None
        interval = span(model["slot_error_low"], model["slot_error_high"], metric.decimals) if known else ""
        row[f"{side}_interval"] = interval
    return row


def _win_rate(faults: list[tuple[int, int]]) -> dict[str, float]:
    import numpy as np

    wins = np.array([0.5 * (1 + np.sign(a - b)) for a, b in faults])
    means = wins[np.random.default_rng(0).integers(len(wins), size=(RESAMPLES, len(wins)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(wins.mean()), "low": float(low), "high": float(high)}


def as_text(found: dict[str, Any]) -> str:
    """For a terminal."""
    first, second = found["names"]
    _, headline, rests = conclude(found)
    shown = [
        (row["path"], json.dumps(row["a"], ensure_ascii=False), json.dumps(row["b"], ensure_ascii=False))
        for row in found["values"]
    ]
    parts = [
        ("recipe", shown),
        ("run", [(row["label"], row["a"], row["b"]) for row in found["runs"]]),
        ("PPO’s policy", [(row["label"], row["a"], row["b"]) for row in found["models"]]),
    ]
    width = max((len(cells[0]) for _, rows in parts for cells in rows), default=0)
    middle = max((len(cells[1]) for _, rows in parts for cells in rows), default=0)
    middle = max(min(middle, 48), len(first))
    lines = [f"{headline} {rests}", "", f"{'':{width}}  {first:{middle}}  {second}"]
    for title, rows in parts:
        lines += [title, *(f"{label:{width}}  {a:{middle}}  {b}" for label, a, b in rows)] if rows else []
    return "\n".join(lines).replace(MINUS, "-")
