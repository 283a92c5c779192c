"""What a run found, read from its manifests and artifacts: the report's material, and `report.json`.

Plain JSON values throughout. Sections of stages that are not finished are None.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline.engine import registry
from pipeline.engine.plan import KEY_DIGITS, RunSummary, StageRun
from pipeline.engine.registry import StageSpec
from pipeline.files import jsonable, readable_bytes
from stages.report import exported, guarding, human, lineage, rankings, sources

Findings = dict[str, Any]

MADE = {
    "base": "{parameters:,} parameters",
    "data": "{demonstrations_train:,} demonstrations, {prompts_train:,} prompts",
    "sft": "trained on {demonstrations:,} demonstrations",
    "collect": "{answers:,} answers to {prompts:,} prompts",
    "rank": "{rankings:,} rankings by {annotators} {who}",
    "reward": "trained on {rankings:,} rankings of {completions:,} answers",
    "ppo": "{updates:,} updates, {episodes:,} episodes",
    "dpo": "trained on {pairs:,} pairs of answers to {prompts:,} prompts",
    "eval": "{prompts:,} held-out prompts, judge: {judge}",
    "export": "{formats}: {size}",
}
"""Stage -> what it made, in terms of its metrics."""


def collect(run: RunSummary) -> Findings:
    recipe, manifests = run.loaded.recipe, [made.manifest for made in run.stages.values()]
    ranking, reward, ppo, evaluated = (run.newest(name) for name in ("rank", "reward", "ppo", "eval"))
    evaluation = evaluated.artifact.json("eval.json") if evaluated else None
    found = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "arguments": run.loaded.arguments,
        "finished": max((manifest.finished for manifest in manifests), default=None),
        "seconds": sum(manifest.seconds for manifest in manifests),
        "annotators": annotators(run),
        "stages": [_stage(spec, run) for spec in registry.steps(recipe).values()],
        "ranking": ranking and ranking.manifest.metrics,
        "rankings": rankings.measured(ranking),
        "dropped": rankings.dropped(run.stages.get("data"), reward),
        "reward": reward and _reward(reward),
        "ppo": ppo and _ppo(ppo),
        "guards": ppo and guarding.read(ppo),
        "lineage": lineage.rows(run, evaluation) if recipe.rounds > 1 else [],
        "evaluation": evaluation,
        "human": human.read(run),
        "judged": _judged(evaluated),
        "export": exported.read(run),
        "samples": list(evaluated.artifact.jsonl("samples.jsonl")) if evaluated else [],
        "environment": _environment(run.stages),
        "values": [
            {"path": path, "value": value, "origin": run.loaded.describe(path)}
            for path, value in run.loaded.values().items()
        ],
        "sources": sources.read(run),
    }
    return dict(jsonable(found))


def annotators(run: RunSummary) -> str:
    """Who made the rankings: `simulated`, `human`, or `unknown`."""
    rank = run.newest("rank")
    if rank is None:
        return "simulated" if run.loaded.recipe.rank.source == "simulated" else "unknown"
    if rank.manifest.simulated:
        return "simulated"
    return "human" if rank.manifest.metrics.get("human") is True else "unknown"


def _stage(spec: StageSpec, run: RunSummary) -> Findings:
    name = spec.name
    if name not in run.stages:
        return {"name": name, "key": None}
    manifest = run.stages[name].manifest
    return {
        "name": name,
        "key": manifest.key[:KEY_DIGITS],
        "fingerprint": manifest.fingerprint,
        "made": _made(spec, run),
        "inputs": {
            need: {"key": record.key[:KEY_DIGITS], "fingerprint": record.fingerprint}
            for need, record in manifest.inputs.items()
        },
        "started": manifest.started,
        "seconds": manifest.seconds,
        "resumed": manifest.resumed,
        "forced": manifest.forced,
        "device": manifest.device,
        "simulated": manifest.simulated,
        "peak_bytes": manifest.memory.get("peak_bytes"),
        "peak_gpu_bytes": manifest.memory.get("peak_gpu_bytes"),
        "predicted_bytes": manifest.predicted.get("peak_bytes"),
        "predicted_gpu_bytes": manifest.predicted.get("allocated_bytes"),
        "metrics": manifest.metrics,
    }


def _made(spec: StageSpec, run: RunSummary) -> str:
    metrics = run.stages[spec.name].manifest.metrics
    size = readable_bytes(metrics.get("bytes", 0))
    who = {"simulated": "simulated annotators", "human": "people"}.get(annotators(run), "annotators")
    try:
        return MADE[spec.section].format_map({**metrics, "who": who, "size": size})
    except KeyError:
        return ""


def _reward(reward: StageRun) -> Findings:
    quality = reward.artifact.json("quality.json")
    measured = {
        name.removeprefix("eval_"): value for name, value in quality["metrics"].items() if name.startswith("eval_")
    }
    tables = {name: quality.get(name, []) for name in ("reliability", "by_annotator", "by_prompt", "scores")}
    return {"held_out": measured, **tables, "unfit": quality["unfit"], "warnings": quality.get("warnings", [])}


def _ppo(ppo: StageRun) -> Findings:
    config = ppo.manifest.config
    return {
        "kl_target": config["kl"]["target"] if config["kl"]["kind"] == "adaptive" else None,
        "reward_model": config["reward_model"],
        "forced_past_gate": ppo.manifest.metrics.get("forced_past_gate", []),
        "looks": [
            {name: look[name] for name in ("update", "kl", "score", "length")}
            for look in ppo.artifact.jsonl("looks.jsonl")
        ],
        "look_prompts": config["eval_prompts"],
        "stopped": "stopped_at" in ppo.manifest.metrics,
    }


def _judged(evaluated: StageRun | None) -> list[Findings]:
    """By prompt, which a hash stands for: what another run on the same prompts can be compared with."""
    if evaluated is None or not (evaluated.artifact.path / "judged.jsonl").is_file():
        return []
    return [
        {"prompt": hashlib.sha256(row["prompt"].encode()).hexdigest()[:KEY_DIGITS], "given": row["given"]}
        | {kind: row[kind] for kind in ("errors", "faults") if kind in row}
        for row in evaluated.artifact.jsonl("judged.jsonl")
    ]


def _environment(stages: Mapping[str, StageRun]) -> dict[str, dict[str, list[str]]]:
    """Section -> name -> the stages' values; more than one where stages ran in different environments."""
    found: dict[str, dict[str, list[str]]] = {"code": {}, "hardware": {}, "packages": {}}
    for run in stages.values():
        manifest = run.manifest
        commit = manifest.code.get("commit")
        dirty = " with uncommitted changes" if manifest.code.get("dirty") else ""
        machine = {name: str(value) for name, value in manifest.hardware.items() if value is not None}
        if memory := manifest.hardware.get("memory_bytes"):
            machine["memory_bytes"] = readable_bytes(memory)
        seen = {
            "code": {"commit": f"{commit[:KEY_DIGITS]}{dirty}" if commit else "not a git checkout"},
            "hardware": {"device": manifest.device, **machine},
            "packages": manifest.packages,
        }
        for section, values in seen.items():
            for name, value in values.items():
                known = found[section].setdefault(name.removesuffix("_bytes"), [])
                if value not in known:
                    known.append(value)
    return found
