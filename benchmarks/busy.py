#!/usr/bin/env python
"""Training speed on a busy machine, by OpenMP wait policy.

    python benchmarks/busy.py [--rounds 5] [--others 0 2]

Each round trains a Llama of the quickstart's size for a few seconds under each setting in turn, while `--others`
other processes each keep one core busy. Prints the median rate, and the median ratio to the default setting of the
same round.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}

WORK = """
import sys, time, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=512, hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
                                     num_key_value_heads=4, intermediate_size=256, max_position_embeddings=128))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
ids = torch.randint(3, 512, (32, 96))
def step():
    model(ids, labels=ids).loss.backward(); optimizer.step(); optimizer.zero_grad()
step()
start, steps = time.perf_counter(), 0
while time.perf_counter() - start < float(sys.argv[1]):
    step(); steps += 1
print(steps / (time.perf_counter() - start))
"""


@contextlib.contextmanager
def others(count: int) -> Iterator[None]:
    """Runs `count` processes that each keep one core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def rate(setting: dict[str, str], seconds: float) -> float:
    """Steps per second."""
    known = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in known}
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(seconds)],
        env=environment | setting, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--others", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    print(f"| setting | {' | '.join(f'{n} other processes: steps/s | ratio' for n in arguments.others)} |")
    rates: dict[tuple[str, int], list[float]] = {}
    for count in arguments.others:
        with others(count):
            for _ in range(arguments.rounds):
                for name, setting in SETTINGS.items():
                    rates.setdefault((name, count), []).append(rate(setting, arguments.seconds))
    print("| --- |" + " ---: | ---: |" * len(arguments.others))
    for name in SETTINGS:
        cells = []
        for count in arguments.others:
            with_setting, default = rates[name, count], rates["default", count]
            ratio = statistics.median(a / b for a, b in zip(with_setting, default, strict=True))
            cells += [f"{statistics.median(with_setting):.2f}", f"{ratio:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
