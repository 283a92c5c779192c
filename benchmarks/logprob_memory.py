#!/usr/bin/env python
"""Peak memory of log-probs over a large vocabulary: `log_softmax` of all logits against the chunked log-prob.

    python benchmarks/logprob_memory.py [--vocabulary 152064] [--positions 512 1024] [--hidden 896] [--device cpu]

Each figure is measured in a separate process. MB are above what the weights and the hidden states take, with a
frozen head. "Backward" is a forward and a backward pass to the hidden states, as in training with LoRA. Ratios are
to the plain log-softmax; seconds are those of a second call.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WAYS = ("plain", "ours")
PASSES = ("forward", "backward")


def measured(way: str, name: str, entropy: bool, dtype: str, positions: int, sizes: argparse.Namespace) -> None:
    """Prints the peak in bytes and the seconds of one way."""
    import torch

    from pipeline.machine import PeakMemory
    from pipeline.memory.limits import positions_at_once
    from stages.models.fast.wide import logits_of
    from stages.models.logprobs import token_logprobs

    torch.manual_seed(0)
    device, kind = sizes.device, getattr(torch, dtype)
    head = torch.nn.Linear(sizes.hidden, sizes.vocabulary, bias=False, dtype=kind, device=device)
    head.requires_grad_(False)
    hidden = torch.randn(positions, sizes.hidden, device=device).to(kind).requires_grad_(name == "backward")
    targets = torch.randint(sizes.vocabulary, (positions,), device=device)
    chunk = positions_at_once(sizes.vocabulary, torch.device(device).type)

    def plain(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logps = head(hidden).float().log_softmax(-1)
        chosen = logps.gather(1, targets[:, None])[:, 0].sum()
        return chosen - (logps.exp() * logps).sum() if entropy else chosen

    def ours(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logps, entropies = token_logprobs(
            hidden, targets, lambda x: logits_of(head, x), chunk_size=chunk, entropy=entropy
        )
        return logps.sum() + entropies.sum()

    work: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = plain if way == "plain" else ours

    def run(hidden: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.set_grad_enabled(name == "backward"):
            total = work(hidden, targets)
            if name == "backward":
                total.backward()
                hidden.grad = None
        if device == "cuda":
            torch.cuda.synchronize()

    run(
        hidden[:2].detach().requires_grad_(name == "backward"), targets[:2]
    )  # libraries allocate at their first use
    before = torch.cuda.memory_allocated() if device == "cuda" else _resident()
    with PeakMemory() as peak:
        run(hidden, targets)
    start = time.perf_counter()
    run(hidden, targets)
    report = peak.report()
    print(report["peak_gpu_bytes" if device == "cuda" else "peak_bytes"] - before, time.perf_counter() - start)


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=152064, help="default: that of Qwen2.5")
    parser.add_argument("--positions", type=int, nargs="+", default=[512, 1024], help="response tokens")
    parser.add_argument("--hidden", type=int, default=896, help="default: that of Qwen2.5-0.5B")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    sizes = parser.parse_args()
    if sizes.one:
        way, name, entropy, dtype, positions = sizes.one
        measured(way, name, entropy == "True", dtype, int(positions), sizes)
        return
    print("| positions | dtype | pass | entropies | plain, MB | ours, MB | ratio | plain, s | ours, s |")
    print("| ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    rows = itertools.product(sizes.positions, sizes.dtypes, PASSES, (False, True))
    for positions, dtype, name, entropy in rows:
        found = {}
        for way in WAYS:
            arguments = [way, name, str(entropy), dtype, str(positions)]
            shape = ["--vocabulary", str(sizes.vocabulary), "--hidden", str(sizes.hidden), "--device", sizes.device]
            command = [sys.executable, __file__, *shape, "--one", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[way] = tuple(float(number) for number in done.stdout.split())
        (plain, plain_s), (ours, ours_s) = found["plain"], found["ours"]
        print(
            f"| {positions} | {dtype} | {name} | {'yes' if entropy else 'no'} | {plain / 1e6:,.0f} | "
            f"{ours / 1e6:,.0f} | {ours / plain:.2f} | {plain_s:.2f} | {ours_s:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
