"""PPO against its baselines, and who says so: best-of-n at the same KL, DPO, and every judge's win rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.wording import fixed, percent, span

NAMES = {"base": "Base", "sft": "SFT", "dpo": "DPO", "best_of_n": "Best of n", "ppo": "PPO"}
"""Models in the report's order."""


@dataclass(frozen=True)
class Contest:
    """A judge's win rate of one model against another; `tone` says whether the interval leaves one half out."""

    judge: str
    ours: str
    theirs: str
    rate: str
    interval: str
    ties: str
    note: str
    tone: str


def names(evaluation: dict[str, Any] | None) -> dict[str, str]:
    """What each evaluated model is called, in order."""
    models = evaluation["models"] if evaluation else {}
    found = {name: label for name, label in NAMES.items() if name in models or name in ("base", "sft", "ppo")}
    if "best_of_n" in found:
        found["best_of_n"] = f"Best of {models['best_of_n']['n']}"
    return found


def contests(evaluation: dict[str, Any] | None) -> list[Contest]:
    """A row a judge and pair of models."""
    called = names(evaluation)
    rows = evaluation.get("wins", []) if evaluation else []
    return [
        Contest(
            row["judge"],
            called[row["ours"]],
            called[row["theirs"]],
            percent(row["value"]),
            span(row["low"], row["high"]),
            percent(row["ties"]),
            _note(row),
            {1: "good", -1: "bad", 0: ""}[sign(row)],
        )
        for row in rows
    ]


def _note(row: dict[str, Any]) -> str:
    said = f"{row['prompts']:,} prompts"
    if "disagreed" in row:
        said += f"; another verdict in the other order: {percent(row['disagreed'])} of pairs"
    if row.get("unreadable"):
        said += f"; {row['unreadable']} replies without a verdict"
    return said


def against_sft(evaluation: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """By model, the first judge's win rate against SFT."""
    found: dict[str, dict[str, Any]] = {}
    for row in evaluation.get("wins", []) if evaluation else []:
        if row["theirs"] == "sft":
            found.setdefault(row["ours"], row)
    return found


def other_judges(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """What judges besides the rubric say of PPO against SFT."""
    return [
        row
        for row in evaluation.get("wins", [])
        if (row["ours"], row["theirs"]) == ("ppo", "sft") and row["judge"] != evaluation["judge"]
    ]


def evidence(rows: list[dict[str, Any]]) -> str:
    """Of judges besides the rubric, in words."""
    return " ".join(
        f"{row['judge'][:1].upper()}{row['judge'][1:]} prefers PPO’s answer to SFT’s on {percent(row['value'])} of "
        f"{row['prompts']:,} held-out prompts (95 % interval {span(row['low'], row['high'])}; ties count half)."
        for row in rows
    )


def sign(row: dict[str, Any]) -> int:
    """1 when the interval of a win rate lies above one half, -1 below, else 0."""
    return int(row["low"] > 0.5) - int(row["high"] < 0.5)


def caveats(evaluation: dict[str, Any]) -> list[str]:
    """Baselines that PPO does not beat."""
    called, models, said = names(evaluation), evaluation["models"], []
    seen = set()
    for row in evaluation.get("wins", []):
        theirs = row["theirs"]
        if row["ours"] != "ppo" or theirs not in ("best_of_n", "dpo") or theirs in seen:
            continue
        seen.add(theirs)
        if sign(row) < 0:
            kl = models[theirs]["kl"]
            at = f"at most {fixed(kl)}" if theirs == "best_of_n" else fixed(kl)
            said.append(
                f"{called[theirs]} does better than PPO: PPO’s answer beats its on {percent(row['value'])} of "
                f"prompts ({span(row['low'], row['high'])}), at a KL of {fixed(models['ppo']['kl'])} nats against "
                f"{at}."
            )
    return said


def reach(evaluation: dict[str, Any]) -> str:
    """How near best-of-n comes to PPO's KL."""
    best = evaluation.get("best_of_n")
    if not best:
        return ""
    kl = evaluation["models"]["ppo"]["kl"]
    said = (
        f"Best of n takes the answer that the reward model likes best among n of SFT’s; n = {best['n']} is the one "
        f"whose KL, log n - (n-1)/n, an upper bound (Beirami et al. 2024), is nearest PPO’s {fixed(kl)} nats. "
        f"It is averaged over all choices of n among {best['samples']} samples a prompt."
    )
    if kl > best["reaches"]:
        said += f" With {best['samples']} samples it reaches {fixed(best['reaches'])} nats and no more."
    return said
