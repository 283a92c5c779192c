"""The files of a run that each section's numbers come from, relative to the recipe's folder."""

from __future__ import annotations

from pipeline.engine.plan import RunSummary, StageRun
from pipeline.engine.rounds import by_round
from ranking.judged import judged_file
from stages import artifacts
from stages.criteria import criteria_of
from stages.eval import artifact as evaluation
from stages.ppo import artifact as ppo
from stages.reward import artifact as reward

METRICS, MANIFEST = "metrics.jsonl", "manifest.json"


def out(file: str) -> str:
    """A file of an artifact, relative to the stage's folder."""
    return f"out/{file}"


FILES: dict[str, list[tuple[str, str]]] = {
    "models": [("eval", out(evaluation.FILE))],
    "lineage": [(stage, MANIFEST) for stage in ("collect", "rank", "reward", "ppo")],
    "along": [("ppo", METRICS), ("ppo", out(ppo.POINTS)), ("eval", out(evaluation.FILE))],
    "monitors": [("ppo", out(ppo.ALERTS)), ("ppo", out(ppo.POINTS)), ("ppo", MANIFEST)],
    "samples": [("eval", out(evaluation.SAMPLES))],
    "rankings": [
        ("rank", out(artifacts.AGREEMENT)),
        ("data", out(artifacts.DROPPED)),
        ("rank", MANIFEST),
        ("reward", MANIFEST),
    ],
    "reward": [("reward", out(reward.FILE)), ("rank", MANIFEST)],
    "curves": [(stage, METRICS) for stage in ("base", "sft", "reward", "ppo")],
    "pipeline": [("", MANIFEST)],
    "against": [("eval", out(evaluation.JUDGED))],
}
"""Section -> (stage, file). A stage stands for all of its rounds, the empty name for every stage."""


def read(run: RunSummary) -> dict[str, list[str]]:
    """Section -> the files that exist."""
    sections = {
        section: [path for entry in entries for path in of(run, *entry)] for section, entries in FILES.items()
    }
    if "eval" in run.stages:
        judged = judged_file(run.folder, run.stages["eval"].manifest.fingerprint)
        sections["models"] += [judged.name] if judged.is_file() else []
    return {section: paths for section, paths in sections.items() if paths}


def of(run: RunSummary, stage: str, file: str) -> list[str]:
    """A stage's file in each of its rounds, as `stage/key/file`; with several criteria, that of each."""
    stage_runs: list[StageRun] = list((by_round(run.stages, stage) if stage else run.stages).values())
    paths = [stage_run.folder / file for stage_run in stage_runs]
    inside = file.removeprefix(out(""))
    if inside != file:
        folders = [stage_run.folder / out("") for stage_run in stage_runs]
        paths += [folder / name / inside for folder in folders for name in criteria_of(folder)]
    return [path.relative_to(run.folder).as_posix() for path in paths if path.is_file()]
