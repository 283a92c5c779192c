"""Which files of a run the numbers of each section were read from, relative to the recipe's folder."""

from __future__ import annotations

from pipeline.engine.plan import RunSummary
from pipeline.engine.rounds import by_round
from ranking.judged import judged_file

FILES: dict[str, list[tuple[str, str]]] = {
    "models": [("eval", "out/eval.json")],
    "lineage": [(stage, "manifest.json") for stage in ("collect", "rank", "reward", "ppo")],
    "along": [("ppo", "metrics.jsonl"), ("ppo", "out/looks.jsonl"), ("eval", "out/eval.json")],
    "guards": [("ppo", "out/guards.jsonl"), ("ppo", "out/looks.jsonl"), ("ppo", "manifest.json")],
    "samples": [("eval", "out/samples.jsonl")],
    "rankings": [
        ("rank", "out/agreement.json"),
        ("data", "out/dropped.jsonl"),
        ("rank", "manifest.json"),
        ("reward", "manifest.json"),
    ],
    "reward": [("reward", "out/quality.json"), ("rank", "manifest.json")],
    "curves": [(stage, "metrics.jsonl") for stage in ("base", "sft", "reward", "ppo")],
    "pipeline": [("", "manifest.json")],
    "against": [("eval", "out/judged.jsonl")],
}
"""Section -> (stage, file); a stage's rounds each; the empty name is every stage."""


def read(run: RunSummary) -> dict[str, list[str]]:
    """Section -> the files that are there."""
    found = {section: [path for entry in entries for path in of(run, *entry)] for section, entries in FILES.items()}
    if "eval" in run.stages:
        judged = judged_file(run.folder, run.stages["eval"].manifest.fingerprint)
        found["models"] += [judged.name] if judged.is_file() else []
    return {section: paths for section, paths in found.items() if paths}


def of(run: RunSummary, stage: str, file: str) -> list[str]:
    """A stage's file in each of its rounds, as `stage/key/file`."""
    made = list(by_round(run.stages, stage).values()) if stage else list(run.stages.values())
    paths = [found.folder / file for found in made]
    return [path.relative_to(run.folder).as_posix() for path in paths if path.is_file()]
