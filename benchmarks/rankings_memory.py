"""Peak memory of the `data` and `rank` stages by number of rankings. It must stop growing for large tables.

    python benchmarks/rankings_memory.py [--format wide long] [--sizes 1000 100000 1000000]

Generates tables with K = 3 answers per ranking, four rankings per prompt and 40 annotators. Runs each stage in a
separate process and prints its peak resident set (ru_maxrss), the ratio to the smallest table, and its time. A
million rankings need about 3 GB in $TMPDIR.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

K, PER_PROMPT, ANNOTATORS = 3, 4, 40
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "house",
    "tree",
    "river",
    "sees",
    "finds",
    "small",
    "large",
    "green",
    "near",
    "far",
]


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def write_table(path: Path, format: str, rankings: int) -> None:
    """In a wide table the rows of a prompt are adjacent. In a long table the rows of a ranking are far apart."""
    header = {
        "wide": ["prompt", *(f"{c}{i}" for c in "cr" for i in range(K)), "annotator"],
        "long": ["prompt", "annotator", "completion", "rating"],
    }[format]
    with path.open("w", encoding="utf-8") as out:
        out.write(",".join(header) + "\n")
        for turn in range(1 if format == "wide" else K):
            for i in range(rankings):
                rng = random.Random(i // PER_PROMPT)
                prompt = f"{i // PER_PROMPT} {text(rng, 8)}"
                texts = [f"{j} {text(rng, 12)}" for j in range(K)]
                rater = random.Random(f"{i}")
                ratings = [str(rater.randrange(5)) for _ in range(K)]
                who = f"w{(i * 7) % ANNOTATORS}"
                if format == "wide":
                    out.write(",".join([prompt, *texts, *ratings, who]) + "\n")
                else:
                    out.write(",".join([prompt, who, texts[turn], ratings[turn]]) + "\n")


def run_stage(stage: str, format: str, folder: Path) -> None:
    """Runs a stage and prints its peak memory in MB, its time in seconds and its metrics as JSON."""
    from pipeline.config.data import DataConfig, RankingTableConfig, TableConfig
    from pipeline.config.rank import RankConfig
    from pipeline.engine.stage import Artifact, RunContext

    class Silent:
        def advance(self, steps: int = 1, **numbers: float) -> None: ...

    @contextmanager
    def progress(*_: Any, **__: Any) -> Iterator[Silent]:
        yield Silent()

    nothing: Any = None
    context = RunContext(
        seed=0,
        device="cpu",
        state_dir=folder,
        metrics=nothing,
        progress=progress,
        say=lambda line: None,
        recipe_dir=folder,
    )
    columns: dict[str, Any] = {
        "wide": {
            "completions": [f"c{i}" for i in range(K)],
            "ratings": [f"r{i}" for i in range(K)],
        },
        "long": {},
    }[format]
    out = folder / stage
    out.mkdir()
    started = time.monotonic()
    if stage == "data":
        from stages import data

        metrics = data.run(
            DataConfig(
                demonstrations=TableConfig(path=str(folder / "demonstrations.jsonl")),
                rankings=RankingTableConfig(path=str(folder / "table.csv"), format=format, columns=columns),
            ),
            {},
            out,
            context,
        )
    else:
        from stages import rank

        metrics = rank.run(RankConfig(), {"data": Artifact("data", folder / "data", "0" * 64)}, out, context)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(json.dumps({"mb": peak, "seconds": time.monotonic() - started, "metrics": metrics}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", nargs="+", default=["wide", "long"], choices=["wide", "long"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 100_000, 1_000_000])
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.stage[0], arguments.format[0], Path(arguments.stage[1]))
        return
    for format in arguments.format:
        first: dict[str, float] = {}
        for size in arguments.sizes:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                rows = ({"prompt": f"demonstration {i}", "completion": "x"} for i in range(100))
                (folder / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                write_table(folder / "table.csv", format, size)
                for stage in ("data", "rank"):
                    command = [sys.executable, __file__, "--format", format, "--stage", stage, name]
                    done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    assert sum(done["metrics"].get(f"rankings_{s}", 0) for s in ("train", "eval")) in (0, size)
                    base = first.setdefault(stage, done["mb"])
                    print(
                        f"{format:5} {size:>9,} rankings  {stage:5} {done['mb']:7.1f} MB  "
                        f"{done['mb'] / base:5.2f} x  {done['seconds']:7.1f} s",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
