"""Compares reward-model training variants by held-out accuracy and time, over seeds that also draw the split.

    python benchmarks/reward_losses.py --recipe recipes/e2e-human.yaml --seeds 5 \
        --variant "k-way=reward.objective=bradley_terry" --variant "pairs=reward.objective=bradley_terry_pairs"

The stages that the reward stage needs run once, as with `tutelage run`. Then the reward stage runs once per variant
and seed, in a separate folder. A variant is a name and `--set` values. Each seed draws a new split of the
ranked prompts into training and held-out prompts, which all variants share. The language model must not have been
trained on these prompts (in `e2e-human` it is trained on others). With `--inside-training` the recipe's held-out
prompts are excluded, so that variants can be chosen without using them.

Each result is appended to `--out` as one line of JSON. Results that are already there are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.schema import write_jsonl
from data.splits import group_of, split_of
from pipeline.config.load import load_recipe
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Artifact, RunContext
from stages import registry as registry  # registers the stages
from stages.reward import stage

SHOWN = ("accuracy", "brier", "ece", "ended_preferred", "length_correlation", "above_length")
T_975 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""n -> the 97.5 % quantile of Student's t with n - 1 degrees of freedom."""


class Quiet:
    """A metrics log and progress display that only records the accuracy curve."""

    def __init__(self) -> None:
        self.curve: list[float] = []

    def log(self, step: int, **values: Any) -> None:
        self.curve += [value for name, value in values.items() if name.endswith("eval_accuracy")]

    def truncate(self, step: int) -> None: ...

    def advance(self, steps: int = 1, **numbers: float) -> None: ...

    @contextlib.contextmanager
    def progress(self, name: str, total: int | None = None, done: int = 0) -> Iterator[Quiet]:
        yield self


def resplit(
    inputs: dict[str, Artifact], seed: int, held_out: float, inside: bool, folder: Path
) -> dict[str, Artifact]:
    """The rankings and prompts with a split drawn from `seed`."""

    def drawn(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"split": split_of(f"{seed} {group_of(row['prompt'])}", held_out)}

    split_inputs = dict(inputs)
    for name, file in (("rank", "rankings.jsonl"), ("data", "prompts.jsonl")):
        target = shutil.copytree(inputs[name].path, folder / name)
        rows = inputs[name].jsonl(file)
        write_jsonl(target / file, (drawn(row) for row in rows if row["split"] == "train" or not inside))
        split_inputs[name] = Artifact(name, target, f"{name} split by seed {seed}")
    return split_inputs


def measure(arguments: argparse.Namespace, sets: list[str], seed: int) -> dict[str, Any]:
    loaded = load_recipe(arguments.recipe, [*arguments.set, *sets])
    runner = Runner(loaded, arguments.runs)
    for spec, _ in runner.planner.stages("reward")[:-1]:
        runner.run(spec.name)
    inputs = {step.spec.name: step.finished.artifact for step in runner.planner.plan("reward") if step.finished}
    with tempfile.TemporaryDirectory() as temporary:
        folder, quiet = Path(temporary), Quiet()
        held_out = loaded.recipe.data.eval_fraction
        inputs = resplit(inputs, seed, held_out, arguments.inside_training, folder)
        for name in ("state", "out"):
            (folder / name).mkdir()
        ctx = RunContext(
            seed=seed,
            device=arguments.device,
            state_dir=folder / "state",
            recipe_dir=folder,
            metrics=quiet,
            progress=quiet.progress,
            say=lambda line: None,
        )
        config = replace(loaded.recipe.reward, eval_points=arguments.eval_points)
        started, cpu = time.perf_counter(), time.process_time()
        metrics = stage.run(config, inputs, folder / "out", ctx)
        spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    flat = {k.removeprefix("eval_"): v for k, v in metrics.items() if not isinstance(v, dict)}
    return flat | spent | {"curve": quiet.curve}


def interval(values: list[float]) -> str:
    """Mean and the half width of its 95 % interval over seeds."""
    mean, n = statistics.mean(values), len(values)
    if n < 2:
        return f"{mean:.3f}"
    return f"{mean:.3f} +-{T_975.get(n, 2.0) * statistics.stdev(values) / math.sqrt(n):.3f}"


def report(rows: list[dict[str, Any]]) -> None:
    print(f"{'variant':28s} {'n':>2s} " + " ".join(f"{name:>18s}" for name in (*SHOWN, "cpu_seconds")))
    for name in dict.fromkeys(row["variant"] for row in rows):
        of_variant = [row for row in rows if row["variant"] == name]
        cells = [interval([float(row[metric]) for row in of_variant]) for metric in SHOWN]
        cells.append(f"{statistics.mean(row['cpu_seconds'] for row in of_variant):.0f}")
        print(f"{name:28s} {len(of_variant):2d} " + " ".join(f"{cell:>18s}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/e2e-human.yaml"))
    parser.add_argument("--set", action="append", default=[], help="override a recipe value for all variants")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=SETS")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--inside-training", action="store_true")
    parser.add_argument("--eval-points", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("reward_losses.jsonl"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for variant in arguments.variant:
            name, _, sets = variant.partition("=")
            key = {"variant": name, "seed": seed, "inside": arguments.inside_training}
            if any(key.items() <= row.items() for row in rows):
                continue
            row = key | {"sets": sets} | measure(arguments, [sets] if sets else [], seed)
            rows.append(row)
            with arguments.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            print(f"{name} seed {seed}: accuracy {row['accuracy']:.4f} in {row['cpu_seconds']:.0f} s", flush=True)
    report([row for row in rows if row["inside"] == arguments.inside_training])


if __name__ == "__main__":
    main()
