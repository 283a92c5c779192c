"""What PPO's guards noted, and which policy was handed on."""

from __future__ import annotations

from typing import Any

from pipeline.engine.plan import StageRun
from pipeline.wording import fixed


def read(ppo: StageRun) -> dict[str, Any]:
    """Of the last round. Runs from before there were guards have none of it."""
    metrics, config = ppo.manifest.metrics, ppo.manifest.config
    file = ppo.artifact.path / "guards.jsonl"
    looks = list(ppo.artifact.jsonl("looks.jsonl"))
    return {
        "watched": file.is_file(),
        "judge": metrics.get("judge", "none"),
        "events": list(ppo.artifact.jsonl("guards.jsonl")) if file.is_file() else [],
        "checkpoint": config.get("checkpoint", "last"),
        "handed_on": metrics.get("handed_on", metrics.get("updates")),
        "updates": metrics.get("updates"),
        "planned_updates": metrics.get("planned_updates"),
        "stopped_at": metrics.get("stopped_at"),
        "looks": [
            {name: look.get(name) for name in ("update", "kl", "score", "judge", "length")} for look in looks
        ],
        "look_prompts": len(looks[0]["prompts"]) if looks else 0,
    }


def summary(found: dict[str, Any]) -> str:
    """Which policy was handed on, in a sentence; empty for a run without guards."""
    if not found["watched"]:
        return ""
    last, chosen = found["updates"], found["handed_on"]
    if found["judge"] == "none":
        return "No independent judge watched PPO, so the last policy was handed on."
    rated = f"by the judge {found['judge']}, on {found['look_prompts']} held-out prompts that are kept out of eval"
    if found["checkpoint"] == "last":
        return f"The last policy, of update {last}, was handed on, as ppo.checkpoint asks for."
    if chosen == last:
        return f"The last policy, of update {last}, was handed on: it is the best of the looks {rated}."
    which = "the policy that PPO started from" if chosen == 0 else f"the policy of update {chosen}"
    return f"Handed on was {which}, not the last one (of update {last}): it is the best of the looks {rated}."


def caveats(found: dict[str, Any]) -> list[str]:
    """What to know before believing the verdict."""
    said = []
    if found["stopped_at"]:
        falls = [event for event in found["events"] if event["rule"] == "stopped"]
        why = falls[0]["symptom"].removeprefix("stopped: ") if falls else "the judge fell while the score rose"
        said.append(
            f"The guard stopped PPO as over-optimised, at update {found['stopped_at']} of "
            f"{found['planned_updates']}: {why}."
        )
    if found["watched"] and found["handed_on"] != found["updates"]:
        said.append(summary(found))
    warned = [event for event in found["events"] if event["rule"] not in ("stopped", "judge-falls")]
    if warned:
        count = len(warned)
        said.append(f"The guards noted {count} symptom{'s' if count > 1 else ''} during PPO (see Guards).")
    return said


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """The looks as a table. A rubric's mark is a negative error rate."""
    return [
        {
            "update": str(look["update"]),
            "kl": fixed(look["kl"]),
            "score": fixed(look["score"]),
            "judge": fixed(look["judge"], 3),
            "length": fixed(look["length"], 1),
            "note": "handed on" if look["update"] == found["handed_on"] else "",
        }
        for look in found["looks"]
    ]
