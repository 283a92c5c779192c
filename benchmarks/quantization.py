"""What quantisation costs a run: full precision, NF4, quantisation-aware training, and plain rounding afterwards.

    python benchmarks/quantization.py --seeds 5 --modes fp32 nf4 q4_0 int3-g32 --ptq q4_0 nf4 int3-g32
    python benchmarks/quantization.py --seeds 5 --modes fp32 q4_0 int3-g32 --until sft     # cheap: no PPO

Runs the recipe once a mode and seed, as `tutelage run` would, in a process of its own: what is finished in `--runs`
is not run again. The modes of a seed share one pretrained base. Each policy is exported; its file is read back and
measured:

- fp32: safetensors, and for each grid of `--ptq` that grid's format (post-training quantisation);
- nf4: the adapter beside the 4-bit base, and `nf4 merged`: merged and rounded after all;
- a grid: trained for it (`base.quantization: {qat: ...}`; `qat-nf4` for NF4's), that grid's format.

Fact errors by the recipe's judge, perplexity of held-out demonstrations, KL from the policy that was trained, and
the reward model of the same seed's fp32 run, the same for all; bytes of the weights on disk; seconds and peak
memory of the stages trained. Each measurement is appended to `--out` as a line of JSON and not made again.
Prints means with 95 % intervals over seeds, and how much of what rounding loses QAT loses.
"""

from __future__ import annotations

import argparse
import dataclasses
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
"""Of Student's t with n - 1 degrees of freedom, by n."""


def finished(loaded: LoadedRecipe, runs: Path, until: str) -> dict[str, StageRun]:
    """Runs what is not finished up to a stage, in another process, whose memory is then the run's own."""
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
    """In the place of a reward model: the scores are left out of the table."""
    return torch.full((1,), math.nan)


def reference_metrics(
    loaded: LoadedRecipe, data: Artifact, reward: tuple[Artifact, Artifact] | None, base: Artifact
) -> ReferenceMetrics:
    """As the export stage's, of eval's prompts. `reward`: a reward model and the base it belongs to."""
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
    """The policy's file in a format, written and read back."""
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
        trained, found = load_actor(base, policy, "cpu"), Actor(causal_lm(files.reload(name, base)))
        sizes = files.sizes(name)
        measured = by.divergence(trained, found, by.answers(trained)) | by.measure(found, by.answers(found))
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
        """Every mode of one seed."""
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
        """The policies of one run, each in the formats of `names`."""
        for stage in ("sft", "ppo"):
            if stage not in stages:
                continue
            policy = stages[stage].artifact
            spent = [stages[name].manifest for name in ("sft", "reward", "ppo") if name in stages]
            spent = spent[: 1 if stage == "sft" else None]
            for label, name in names.items():
                key = {"mode": label, "seed": seed, "stage": stage, "policy": policy.fingerprint[:12]}
                key["until"] = self.until  # with PPO there is a reward model to measure by
                if any(key.items() <= row.items() for row in self.rows):
                    continue
                row = key | measure(name, grid, stages["base"].artifact, policy, loaded, by)
                row |= {
                    "seconds": sum(manifest.seconds for manifest in spent),
                    "peak_bytes": max(peak(manifest) for manifest in spent),
                    "sets": list(loaded.sets),
                }
                self.rows.append(row)
                with self.arguments.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
                shown = {name: round(row[name], 4) for name in MEASURES if name in row}
                print(f"seed {seed}, {label}, {stage}: {shown}", flush=True)


def peak(manifest: Any) -> int:
    memory = manifest.memory if isinstance(manifest.memory, dict) else dataclasses.asdict(manifest.memory)
    return int(memory["peak_gpu_bytes"] or memory["peak_bytes"])


def interval(values: list[float], digits: int = 3) -> str:
    """Mean and the half width of its 95 % interval over seeds."""
    mean, n = statistics.mean(values), len(values)
    if n < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {T_975.get(n, 2.0) * statistics.stdev(values) / math.sqrt(n):.{digits}f}"


MEASURES = {"slot_error_rate": 1, "nll": 1, "score": -1}
"""What is compared, and the sign of a loss."""
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
        own = [row for row in rows if row["stage"] == stage]
        if not own:
            continue
        print(f"\n| after {stage} | seeds | " + " | ".join(COLUMNS) + " |")
        print("| --- " * (2 + len(COLUMNS)) + "|")
        for mode in dict.fromkeys(row["mode"] for row in own):
            found = [row for row in own if row["mode"] == mode]
            cells = [
                interval([shown(row[name]) for row in found], digits) if all(name in row for row in found) else ""
                for name, shown, digits in COLUMNS.values()
            ]
            print(f"| {mode} | {len(found)} | " + " | ".join(cells) + " |")
        shares(own, stage)


def shares(rows: list[dict[str, Any]], stage: str) -> None:
    """Of what plain rounding loses against fp32, how much QAT loses; the interval is a bootstrap over seeds."""
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
                f"{interval(lost['qat'].tolist(), 4)}: {share:.2f} of it ({low:.2f} to {high:.2f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], help="over the recipe's values, for all modes")
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
