"""Runs a recipe with several seeds of PPO, on one SFT and one reward model, and prints one table.

    python benchmarks/seeds.py smollm2-135m --seeds 0 1 2 [--set "base.dtype=bfloat16"]

The recipe's own seed needs no other PPO run than `make run` makes. Stages that are up to date are not run again, so
the script can be stopped at any time. Intervals of a seed are over prompts (bootstrap), and `+-` is over seeds
(Student's t distribution).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimisers import of_prompts
from reward_losses import interval

from pipeline.config.load import load_recipe
from pipeline.engine.runner import Runner
from pipeline.files import readable_bytes, readable_seconds
from stages import registry as registry  # registers the stages
from stages.eval.artifact import Contest, Evaluation


@dataclass(frozen=True)
class Run:
    """One seed's evaluation and, by stage, seconds and the largest memory in bytes."""

    seed: int
    evaluation: Evaluation
    seconds: Mapping[str, float]
    peak: Mapping[str, float]


def run(recipe: str, sets: Sequence[str], seed: int, runs: Path) -> Run:
    loaded = load_recipe(recipe, list(sets))
    if seed != loaded.recipe.seed:
        loaded = load_recipe(recipe, [*sets, f"ppo.seed={seed}"])
    runner = Runner(loaded, runs)
    runner.run("eval")
    summary = runner.planner.summary()
    manifests = {name: run.manifest for name, run in summary.stages.items()}
    memory = {name: m.peak_memory or 0 for name, m in manifests.items()}
    evaluation = Evaluation.read(summary.need("eval").artifact)
    return Run(seed, evaluation, {name: m.seconds for name, m in manifests.items()}, memory)


def contests(evaluation: Evaluation) -> dict[str, Contest]:
    """The rubric's contests of PPO, by whom it competes with."""
    return {c.theirs: c for c in evaluation.wins if c.ours == "ppo" and c.judge == evaluation.judge}


def table(found: Sequence[Run]) -> str:
    lines = [f"judge {found[0].evaluation.judge}, {found[0].evaluation.prompts} held-out prompts"]
    for model in found[0].evaluation.models:
        results = {run.seed: run.evaluation.models[model] for run in found}
        every = [result.slot_error_rate for result in results.values() if result.slot_error_rate is not None]
        lines += ["", f"{model}: fact errors {interval(every) if every else '-'}"]
        for seed, result in results.items():
            errors = of_prompts([result.slot_error_rate, result.slot_error_low, result.slot_error_high])
            kl = of_prompts([result.kl, result.kl_low, result.kl_high])
            more = "" if result.n is None else f", n = {result.n}"
            lines.append(f"  seed {seed}: {errors}, KL {kl}, score {result.score or 0:.3f}{more}")
    reductions = [run.evaluation.reduction for run in found if run.evaluation.reduction is not None]
    if reductions:
        lines += [
            "",
            f"change of fact errors, PPO against the reference: {interval([r.value or 0 for r in reductions])}",
        ]
        lines += [f"  {of_prompts([r.value, r.low, r.high])}" for r in reductions]
    for other in contests(found[0].evaluation):
        those = {run.seed: contests(run.evaluation)[other] for run in found}
        lines += ["", f"PPO wins against {other}: {interval([c.value for c in those.values()])}"]
        lines += [f"  seed {seed}: {of_prompts([c.value, c.low, c.high])}" for seed, c in those.items()]
    lines.append("")
    for stage in found[0].seconds:
        times = ", ".join(readable_seconds(run.seconds[stage]) for run in found)
        lines.append(f"{stage}: {times}; at most {readable_bytes(max(run.peak[stage] for run in found))}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of PPO")
    parser.add_argument("--set", action="append", default=[], help="override a recipe value")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args(argv)
    print(table([run(arguments.recipe, arguments.set, seed, arguments.runs) for seed in arguments.seeds]))


if __name__ == "__main__":
    main()
