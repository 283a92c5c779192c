"""What quantisation costs a run: full precision, NF4, quantisation-aware training, and plain rounding afterwards.

    python tests/bench/quantization.py --seeds 5 --modes fp32 nf4 q4_0 int3-g32 --ptq q4_0 nf4 int3-g32
    python tests/bench/quantization.py --seeds 5 --modes fp32 q4_0 int3-g32 --until sft     # cheap: no PPO

Runs the recipe once a mode and seed, as `tutelage run` would, in a process of its own: what is finished in `--runs`
is not run again. The modes of a seed share one pretrained base. Then measures each policy as it is deployed:

- fp32, and for each grid of `--ptq` the same policy, merged and rounded (post-training quantisation);
- nf4: the adapter beside the 4-bit base, and `nf4 merged`: merged and rounded after all;
- a grid: trained for it (`base.quantization: {qat: ...}`; `qat-nf4` for NF4's).

Fact errors by the recipe's judge, perplexity of held-out demonstrations, and the reward model of the same seed's
fp32 run, the same yardstick for all; bytes of the weights as deployed (the blocks' linear layers on the grid, the
rest in 16 bits); seconds and peak memory of the run. Each measurement is appended to `--out` as a line of JSON and
not made again. Prints means with 95 % intervals over seeds, and how much of what rounding loses QAT loses.
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

from data.slots import SlotLexicon, parse_mr, slot_error_rate
from pipeline.config.load import LoadedRecipe, load_recipe
from pipeline.plan import Planner, StageRun
from pipeline.stage import Artifact
from stages.models import qat
from stages.models.adapters import is_adapter, load_actor, load_policy
from stages.models.loading import load_tokenizer
from stages.models.text import IGNORED, Codec
from stages.ppo.rollout import generate
from stages.ppo.trajectory import response_logprobs
from stages.prompts import load_prompts
from stages.reward.classifier import response_scorer
from stages.sft import encode_demonstrations

ROOT = Path(__file__).resolve().parents[2]

BITS = {"q8_0": 8.5, "q4_0": 4.5, "nf4": 4.127, "int4-g32": 4.5, "int3-g32": 3.5, "int2-g32": 2.5}
"""A weight, its share of the scales included (torchao's scales in 16 bits)."""
T_975 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Of Student's t with n - 1 degrees of freedom, by n."""


def finished(loaded: LoadedRecipe, runs: Path, until: str) -> dict[str, StageRun]:
    """Runs what is not finished up to a stage, in another process, whose memory is then the run's own."""
    flags = [word for text in loaded.sets for word in ("--set", text)]
    command = [sys.executable, "-m", "pipeline", "run", until, "--recipe", str(loaded.path), "--runs", str(runs)]
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


def on_grid(base: Artifact, grid: str, folder: Path) -> Artifact:
    """The base, held in full, computing on a grid: with it a policy that never saw the grid is rounded to it."""
    folder.mkdir(parents=True)
    for path in base.path.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    (folder / "base.json").unlink()
    spec = base.json("base.json") | {"quantization": {"qat": grid, "activations": "none"}}
    (folder / "base.json").write_text(json.dumps(spec), encoding="utf-8")
    return Artifact("base", folder, base.fingerprint)


def deployed_bytes(base: Artifact, policy: Artifact, grid: str | None) -> int:
    """The blocks' linear layers at the grid's bits, the rest in 16; of NF4 with the adapter beside it, in 32."""
    spec = base.json("base.json") | {"quantization": "none"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in base.path.iterdir():
            if path.name != "base.json":
                (folder / path.name).symlink_to(path.resolve())
        (folder / "base.json").write_text(json.dumps(spec), encoding="utf-8")
        plain = load_policy(Artifact("base", folder, ""), None if is_adapter(policy) else policy, "cpu")
    linear = sum(layer.weight.numel() for layer in qat.linears(plain).values())
    rest = sum(p.numel() for p in plain.parameters()) - linear
    beside = 0
    if base.json("base.json")["quantization"] == "nf4":
        beside = sum(file.stat().st_size for file in policy.file("adapter").glob("*.safetensors"))
    return int(linear * (BITS[grid] if grid else 16) / 8 + 2 * rest + beside)


@torch.no_grad()
def measure(
    base: Artifact, policy: Artifact, data: Artifact, loaded: LoadedRecipe, reward: tuple[Artifact, Artifact] | None
) -> dict[str, float]:
    """A policy as `base` holds it or computes. `reward`: a reward model and the base it belongs to."""
    config = loaded.recipe.eval
    actor, codec = load_actor(base, policy, "cpu"), Codec(load_tokenizer(base))
    rows, _ = encode_demonstrations(data, codec, "eval", config.max_prompt_length + config.response_length)
    starts = [sum(label == IGNORED for label in row["labels"]) for row in rows]
    given = [row["input_ids"][:start] for row, start in zip(rows, starts, strict=True)]
    wanted = [row["input_ids"][start:] for row, start in zip(rows, starts, strict=True)]
    totals_B, _ = response_logprobs(
        actor, given, wanted, codec.stop_ids, codec.pad_id, temperature=1.0, batch_size=config.batch_size
    )
    measured = {"nll": -float(totals_B.double().sum()) / sum(map(len, wanted))}
    prompts = load_prompts(data, codec, "eval", config.max_prompt_length)[0][: config.num_prompts]
    uniform = torch.rand(
        (len(prompts), config.response_length), generator=torch.Generator().manual_seed(loaded.recipe.seed)
    )
    asked = [prompt.ids for prompt in prompts]
    answers = generate(
        actor,
        asked,
        uniform,
        temperature=config.temperature,
        stop_ids=codec.stop_ids,
        pad_id=codec.pad_id,
        batch_size=config.batch_size,
    )
    if config.judge != "none":
        judge = SlotLexicon.load(config.judge)
        texts = [codec.decode(row) for row in answers]
        checks = [
            judge.check(parse_mr(prompt.messages[-1]["content"]), text)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        measured["errors"] = slot_error_rate(checks)
    if reward is not None:
        measured["reward"] = float(response_scorer(*reward, codec, "cpu")(asked, answers).mean())
    return measured


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
        reward = (plain["reward"].artifact, plain["base"].artifact) if "reward" in plain else None
        if full.recipe.base.pretrain is not None:
            folder = shared_base(plain["base"].artifact, self.runs / f"base-{plain['base'].manifest.key[:12]}")
            sets.append(f"base.model={folder}")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for mode in self.arguments.modes:
                if mode == "fp32":
                    loaded, stages = full, plain
                else:
                    value = "base.quantization" if mode == "nf4" else "base.quantization.qat"
                    grid = "nf4" if mode == "qat-nf4" else mode
                    loaded = load_recipe(self.arguments.recipe, [*sets, f"{value}={grid}"])
                    stages = finished(loaded, self.runs, self.until)
                variants: list[tuple[str, str | None, Artifact]] = []
                base = stages["base"].artifact
                if mode == "fp32":
                    variants = [("fp32", None, base)]
                    variants += [(f"ptq {g}", g, on_grid(base, g, folder / f"ptq-{g}")) for g in self.arguments.ptq]
                elif mode == "nf4":
                    variants = [
                        ("nf4", "nf4", base),
                        ("nf4 merged", "nf4", on_grid(base, "nf4", folder / "merged")),
                    ]
                else:
                    variants = [(f"qat {grid}", grid, base)]
                for label, grid_name, held in variants:
                    self.policies(label, seed, grid_name, held, stages, loaded, reward)

    def policies(
        self,
        label: str,
        seed: int,
        grid: str | None,
        base: Artifact,
        stages: dict[str, StageRun],
        loaded: LoadedRecipe,
        reward: tuple[Artifact, Artifact] | None,
    ) -> None:
        for stage in ("sft", "ppo"):
            if stage not in stages:
                continue
            run = stages[stage]
            key = {"mode": label, "seed": seed, "stage": stage, "policy": run.artifact.fingerprint[:12]}
            key["yardstick"] = reward[0].fingerprint[:12] if reward else None
            if any(key.items() <= row.items() for row in self.rows):
                continue
            spent = [stages[name].manifest for name in ("sft", "reward", "ppo") if name in stages]
            spent = spent[: 1 if stage == "sft" else None]
            row = key | measure(base, run.artifact, stages["data"].artifact, loaded, reward)
            row |= {
                "bytes": deployed_bytes(base, run.artifact, grid),
                "seconds": sum(manifest.seconds for manifest in spent),
                "peak_bytes": max(peak(manifest) for manifest in spent),
                "sets": list(loaded.sets),
            }
            self.rows.append(row)
            with self.arguments.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            shown = {name: round(row[name], 4) for name in ("nll", "errors", "reward") if name in row}
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


COLUMNS = {
    "errors, %": ("errors", lambda x: 100 * x, 1),
    "perplexity": ("nll", math.exp, 3),
    "reward": ("reward", float, 3),
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
    for grid in BITS:
        seeds = [s for m, s in by if m == f"qat {grid}" and (f"ptq {grid}", s) in by and ("fp32", s) in by]
        for name, sign in (("nll", 1), ("errors", 1), ("reward", -1)):
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
        "fp32", "nf4", "qat-nf4", *(grid for grid in BITS if grid != "nf4")
    ])  # fmt: skip
    parser.add_argument("--ptq", nargs="*", default=["q4_0", "nf4", "int3-g32"], choices=list(BITS))
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
