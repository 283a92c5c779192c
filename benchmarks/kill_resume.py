"""Kills a run repeatedly with SIGKILL, resumes it, and compares its artifacts with those of an uninterrupted run.

    python benchmarks/kill_resume.py --recipe recipes/quickstart.yaml --kills 20 --set "ppo.total_episodes=512"

Both runs use the CPU and the same number of threads. Every file of every artifact must have the same hash, and
metrics.jsonl the same steps and numbers, except for durations. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.config.load import load_recipe  # noqa: E402
from pipeline.engine import manifest  # noqa: E402
from pipeline.engine.plan import Planner, RunSummary  # noqa: E402
from stages import registry as registry  # noqa: E402  registers the stages

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def command(recipe: Path, sets: Sequence[str], runs: Path, nproc: int) -> list[str]:
    flags = [part for text in ["device=cpu", *sets] for part in ("--set", text)]
    share = ["--nproc", str(nproc)] if nproc > 1 else []
    return [
        sys.executable,
        "-P",
        "-m",
        "stages",
        "run",
        "-r",
        str(recipe),
        "--runs",
        str(runs),
        "--wait",
        *share,
        *flags,
    ]


def run(arguments: list[str], log: Path, seconds: float | None = None) -> bool:
    """Returns True if the command finished, False if it was killed after `seconds`."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=ENVIRONMENT, stdout=out, stderr=out, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
    if code:
        sys.exit(f"the run ended with {code}:\n" + log.read_text(encoding="utf-8")[-3000:])
    return True


def kill_and_resume(
    recipe: Path, sets: Sequence[str], folder: Path, kills: int, seed: int, nproc: int = 1
) -> tuple[int, list[str]]:
    """The number of kills, and the differences from an uninterrupted run."""
    recipe = recipe.resolve()
    uninterrupted, killed = folder / "whole", folder / "killed"
    started = time.monotonic()
    run(command(recipe, sets, uninterrupted, nproc), folder / "whole.log")
    seconds = time.monotonic() - started
    print(f"uninterrupted: {seconds:.0f} s", flush=True)

    moments, count = random.Random(seed), 0
    while count < kills:
        # The first seconds of a process are start-up; the rest spreads the kills over the run.
        life = moments.uniform(1, 8 + 2 * seconds / kills)
        if run(command(recipe, sets, killed, nproc), folder / "killed.log", life):
            break
        count += 1
        print(f"kill {count} after {life:.1f} s, at: {last_line(folder / 'killed.log')}", flush=True)
    else:
        run(command(recipe, sets, killed, nproc), folder / "killed.log")
    return count, differences(*(summary(recipe, sets, runs) for runs in (uninterrupted, killed)))


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8").splitlines()
    return lines[-1][:100] if lines else "the start"


def summary(recipe: Path, sets: Sequence[str], runs: Path) -> RunSummary:
    os.chdir(ROOT)
    return Planner(load_recipe(recipe, ["device=cpu", *sets]), runs).summary()


def differences(uninterrupted: RunSummary, killed: RunSummary) -> list[str]:
    differing = []
    if list(uninterrupted.stages) != list(killed.stages):
        return [f"stages {list(uninterrupted.stages)} and {list(killed.stages)}"]
    for stage, expected in uninterrupted.stages.items():
        resumed = killed.stages[stage]
        for stage_run in (expected, resumed):
            manifest.verify(stage_run.folder, stage_run.manifest, "", contents=True)
        files, others = expected.manifest.files, resumed.manifest.files
        differing += [
            f"{stage}: {name}" for name in sorted({*files, *others}) if files.get(name) != others.get(name)
        ]
        rows, other_rows = (metrics(stage_run.folder / "metrics.jsonl") for stage_run in (expected, resumed))
        if rows != other_rows:
            at = next((a for a, b in zip(rows, other_rows, strict=False) if a != b), None)
            differing.append(f"{stage}: metrics.jsonl, {len(rows)} and {len(other_rows)} lines, first at {at}")
        numbers = [without_seconds(stage_run.manifest.metrics) for stage_run in (expected, resumed)]
        if numbers[0] != numbers[1]:
            names = [name for name in numbers[0] if numbers[0][name] != numbers[1].get(name)]
            differing.append(f"{stage}: the manifest's metrics {names}")
    return differing


def metrics(path: Path) -> list[dict[str, Any]]:
    return [without_seconds(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def without_seconds(numbers: dict[str, Any]) -> dict[str, Any]:
    timed = ("second", "runtime", "time/", "mfu")
    return {name: value for name, value in numbers.items() if name != "time" and not any(t in name for t in timed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/quickstart.yaml")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of the kills")
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="working folder (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        count, differing = kill_and_resume(
            arguments.recipe, arguments.sets, folder.resolve(), arguments.kills, arguments.seed, arguments.nproc
        )
    print("\n".join(differing) or f"{count} kills: all artifacts and metrics are bit-identical")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
