"""The quality cost of quantisation: full precision, NF4, quantisation-aware training (QAT), post-training rounding.

    python benchmarks/quantization.py --seeds 5 --modes fp32 nf4 q4_0 int3-g32 --ptq q4_0 nf4 int3-g32
    python benchmarks/quantization.py --seeds 5 --modes fp32 q4_0 int3-g32 --until sft     # cheap: no PPO

Runs the recipe once per mode and seed, as `tutelage run` does, in a separate process. Stages finished in `--runs`
are not run again. The modes of a seed share one pretrained base. Each policy is exported, reloaded from its file
and measured:

- fp32: safetensors, and for each grid of `--ptq` that grid's format (post-training quantisation, PTQ);
- nf4: the adapter on the 4-bit base, and `nf4 merged`: the adapter merged and the result rounded to NF4;
- a grid: quantisation-aware training to that grid (`base.quantization: {qat: ...}`; `qat-nf4` for NF4), exported
  in its format.

Measures fact errors by the recipe's judge, perplexity of held-out demonstrations, KL from the trained policy, the
score of the reward model of the seed's fp32 run, bytes of the weights on disk, and the time and peak memory of
training. Each measurement is appended to `--out` as a line of JSON and is not repeated. Prints means with 95 %
intervals over seeds, and QAT's loss as a share of PTQ's loss.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from pipeline.config.load import LoadedRecipe, load_recipe
from pipeline.engine.plan import Planner, StageRun
from pipeline.engine.progress import Display
from pipeline.engine.stage import Artifact
from stages import registry as registry  # registers the stages
from stages.export import formats
from stages.export.measure import ReferenceMetrics
from stages.models.actor import Actor
from stages.models.adapters import causal_lm, load_actor
from stages.models.text import load_codec
from stages.sampling.prompts import load_prompts
from stages.sampling.sampler import SamplingParams
from stages.scoring.load import load_scorer
from stages.scoring.slots import SlotScorer
from stages.training.demonstrations import encode_demonstrations

ROOT = Path(__file__).resolve().parents[1]

FORMATS = {grid: name for name, grid in formats.GRIDS.items()}
T_975 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""n -> the 97.5 % quantile of Student's t with n - 1 degrees of freedom."""


def finished(loaded: LoadedRecipe, runs: Path, until: str) -> dict[str, StageRun]:
    """Runs the unfinished stages up to `until` in another process, so that its peak memory is the run's."""
    flags = [word for text in loaded.sets for word in ("--set", text)]
    command = [
        sys.executable,
        "-P",
        "-m",
        "stages",
        "run",
        until,
        "--recipe",
        str(loaded.path),
        "--runs",
        str(runs),
    ]
    subprocess.run([*command, *flags], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return {step.spec.name: step.finished for step in Planner(loaded, runs).plan(until) if step.finished}


def shared_base(base: Artifact, folder: Path) -> Path:
    """A pretrained base as a folder that `base.model` can name."""
    if not folder.exists():
        temporary = folder.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(base.file("model"), temporary)
        shutil.copytree(base.file("tokenizer"), temporary, dirs_exist_ok=True)
        temporary.rename(folder)
    return folder


def unscored(prompts: Any, answers: Any) -> torch.Tensor:
    """Replaces a missing reward model; its scores are not printed."""
    return torch.full((1,), math.nan)


def reference_metrics(
    loaded: LoadedRecipe, data: Artifact, reward: tuple[Artifact, Artifact] | None, base: Artifact
) -> ReferenceMetrics:
    """Like the export stage's, on the prompts of `eval`. `reward` is a reward model and its base."""
    config, codec = loaded.recipe.eval, load_codec(base)
    prompts = load_prompts(data, codec, "eval", config.max_prompt_length)[0][: config.num_prompts]
    rows, _ = encode_demonstrations(data, codec, "eval", config.max_prompt_length + config.response_length)
    scorer: Any = load_scorer(reward[0], {"base": reward[1]}, codec, "cpu") if reward else unscored
    return ReferenceMetrics(
        prompts=prompts,
        demonstrations=rows,
        params=SamplingParams(
            max_new_tokens=config.response_length, stop_ids=codec.stop_ids, temperature=config.temperature
        ),
        bootstrap=2,
        judge=None if config.judge == "none" else SlotScorer(config.judge, codec),
        scorer=scorer,
        codec=codec,
        seed=loaded.recipe.seed,
        batch_size=config.batch_size,
    )


@torch.no_grad()
def measure(
    name: str, grid: str | None, base: Artifact, policy: Artifact, loaded: LoadedRecipe, by: ReferenceMetrics
) -> dict[str, float]:
    """Exports the policy in a format, reloads it and measures it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = formats.Files(
            folder / "export",
            folder / "scratch",
            by.codec,
            loaded.recipe.export.dtype,
            "cpu",
            by.params.temperature,
            "bench",
            Display(Console()).open,
        )
        files.folder.mkdir()
        for _ in files.write([name], base, policy, grid):
            pass
        trained, reloaded = load_actor(base, policy, "cpu"), Actor(causal_lm(files.reload(name, base)))
        sizes = files.sizes(name)
        measured = by.divergence(trained, reloaded, by.answers(trained)) | by.measure(
            reloaded, by.answers(reloaded)
        )
    measured |= {
        "nll": math.log(measured["perplexity"]),
        "bytes": sum(sizes[file] for file in sizes if is_weights(file)),
    }
    return {key: value for key, value in measured.items() if not math.isnan(value)}


def is_weights(file: str) -> bool:
    return file.endswith((".safetensors", ".gguf"))


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.runs, self.until = arguments, arguments.runs, arguments.until
        lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def seed(self, seed: int) -> None:
        """Runs and measures all modes of a seed."""
        sets = [*self.arguments.set, f"seed={seed}"]
        full = load_recipe(self.arguments.recipe, sets)
        plain = finished(full, self.runs, self.until)
        base = plain["base"].artifact
        reward = (plain["reward"].artifact, base) if "reward" in plain else None
        by = reference_metrics(full, plain["data"].artifact, reward, base)
        if full.recipe.base.pretrain is not None:
            folder = shared_base(base, self.runs / f"base-{plain['base'].manifest.key[:12]}")
            sets.append(f"base.model={folder}")
        for mode in self.arguments.modes:
            if mode == "fp32":
                names = {"fp32": "safetensors"} | {f"ptq {grid}": FORMATS[grid] for grid in self.arguments.ptq}
                self.policies(names, seed, None, plain, full, by)
            elif mode == "nf4":
                loaded = load_recipe(self.arguments.recipe, [*sets, "base.quantization=nf4"])
                stages = finished(loaded, self.runs, self.until)
                self.policies({"nf4": "adapter", "nf4 merged": "nf4"}, seed, None, stages, loaded, by)
            else:
                grid = mode.removeprefix("qat-")
                loaded = load_recipe(self.arguments.recipe, [*sets, f"base.quantization.qat={grid}"])
                stages = finished(loaded, self.runs, self.until)
                self.policies({f"qat {grid}": FORMATS[grid]}, seed, grid, stages, loaded, by)

    def policies(
        self,
        names: dict[str, str],
        seed: int,
        grid: str | None,
        stages: dict[str, StageRun],
        loaded: LoadedRecipe,
        by: ReferenceMetrics,
    ) -> None:
        """Measures the policies of a run in the formats of `names`."""
        for stage in ("sft", "ppo"):
            if stage not in stages:
                continue
            policy = stages[stage].artifact
            spent = [stages[name].manifest for name in ("sft", "reward", "ppo") if name in stages]
            spent = spent[: 1 if stage == "sft" else None]
            for label, name in names.items():
                key = {"mode": label, "seed": seed, "stage": stage, "policy": policy.fingerprint[:12]}
                key["until"] = self.until  # only with PPO is there a reward model for the score
                if any(key.items() <= row.items() for row in self.rows):
                    continue
                row = key | measure(name, grid, stages["base"].artifact, policy, loaded, by)
                row |= {
                    "seconds": sum(manifest.seconds for manifest in spent),
                    "peak_bytes": max(manifest.peak_memory or 0 for manifest in spent),
                    "sets": list(loaded.sets),
                }
                self.rows.append(row)
                with self.arguments.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
                shown = {name: round(row[name], 4) for name in MEASURES if name in row}
                print(f"seed {seed}, {label}, {stage}: {shown}", flush=True)


def interval(values: list[float], digits: int = 3) -> str:
    """Mean and the half width of its 95 % interval over seeds."""
    mean, n = statistics.mean(values), len(values)
    if n < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {T_975.get(n, 2.0) * statistics.stdev(values) / math.sqrt(n):.{digits}f}"


MEASURES = {"slot_error_rate": 1, "nll": 1, "score": -1}
"""Compared measures -> 1 if lower is better, else -1."""
COLUMNS = {
    "fact errors, %": ("slot_error_rate", lambda x: 100 * x, 1),
    "perplexity": ("perplexity", float, 4),
    "reward": ("score", float, 3),
    "KL from the policy": ("kl", float, 4),
    "MB": ("bytes", lambda x: x / 1e6, 2),
    "peak MB": ("peak_bytes", lambda x: x / 1e6, 0),
    "seconds": ("seconds", float, 0),
}


def report(rows: list[dict[str, Any]]) -> None:
    for stage in ("sft", "ppo"):
        of_stage = [row for row in rows if row["stage"] == stage]
        if not of_stage:
            continue
        print(f"\n| after {stage} | seeds | " + " | ".join(COLUMNS) + " |")
        print("| --- " * (2 + len(COLUMNS)) + "|")
        for mode in dict.fromkeys(row["mode"] for row in of_stage):
            group = [row for row in of_stage if row["mode"] == mode]
            cells = [
                interval([convert(row[name]) for row in group], digits) if all(name in row for row in group) else ""
                for name, convert, digits in COLUMNS.values()
            ]
            print(f"| {mode} | {len(group)} | " + " | ".join(cells) + " |")
        shares(of_stage, stage)


def shares(rows: list[dict[str, Any]], stage: str) -> None:
    """QAT's loss against fp32 as a share of PTQ's loss, with a bootstrap interval over seeds."""
    by = {(row["mode"], row["seed"]): row for row in rows}
    for grid in FORMATS:
        seeds = [s for m, s in by if m == f"qat {grid}" and (f"ptq {grid}", s) in by and ("fp32", s) in by]
        for name, sign in MEASURES.items():
            if not seeds or any(name not in by[m, s] for s in seeds for m in ("fp32", f"qat {grid}")):
                continue
            lost = {
                kind: np.array([sign * (by[f"{kind} {grid}", s][name] - by["fp32", s][name]) for s in seeds])
                for kind in ("qat", "ptq")
            }
            pick = np.random.default_rng(0).integers(len(seeds), size=(2000, len(seeds)))
            with np.errstate(divide="ignore", invalid="ignore"):
                draws = lost["qat"][pick].mean(1) / lost["ptq"][pick].mean(1)
                share = lost["qat"].mean() / lost["ptq"].mean()
            low, high = np.quantile(draws, [0.025, 0.975])
            print(
                f"{stage}, {grid}, {name}: PTQ loses {interval(lost['ptq'].tolist(), 4)}, QAT "
                f"{interval(lost['qat'].tolist(), 4)}: {share:.2f} of PTQ's ({low:.2f} to {high:.2f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], help="override a recipe value for all modes")
    parser.add_argument("--modes", nargs="+", default=["fp32", "nf4", "q4_0", "int3-g32"], choices=[
        "fp32", "nf4", "qat-nf4", *(grid for grid in FORMATS if grid != "nf4")
    ])  # fmt: skip
    parser.add_argument("--ptq", nargs="*", default=["q4_0", "nf4", "int3-g32"], choices=list(FORMATS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--until", choices=["sft", "ppo"], default="ppo")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("quantization.jsonl"))
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    arguments.runs = arguments.runs.resolve()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
        arguments.set.append(f"threads={arguments.threads}")
    bench = Bench(arguments)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        bench.seed(seed)
    report(bench.rows)


if __name__ == "__main__":
    main()
