"""Memory and time of PPO updates with sharded models, against whole models and the memory plan.

    python benchmarks/sharding.py [--processes 2] [--updates 3] [--device cuda] [--only full lora]

Runs PPO with a separate value role on a Llama of 18.9M random weights, in processes on this machine: on the CPU
over gloo, or on one GPU each over NCCL. Prints for one process, in MB: what the plan counts between updates
(weights, adapters and optimizer moments), what the tensors hold, what the process (without the imported libraries)
or the GPU's allocator holds between updates and at the peak of an update, and what an update receives from others.
Then the median seconds per update, and the largest difference of the policy's weights from those of whole models
after the first update. (Later, rounding may turn a sampled token into its neighbour, and the runs part.)
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

import ppo_case
import processes
import torch
import torch.distributed as dist
from memory_plan import SHAPES
from peft import LoraConfig, get_peft_model
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline import machine
from pipeline.config.sft import LoRAConfig
from pipeline.memory.architecture import Architecture
from pipeline.memory.components import PlannedModel
from stages.models.bank import ActorBank, Bank, FullBank, checkpoint_activations
from stages.models.distributed import World
from stages.models.heads import ScalarHead
from stages.models.sharding import gathered, mesh_of
from stages.sampling.prompts import EncodedPrompt

SHAPE = SHAPES["h384"] | {"tie_word_embeddings": True}
ROLES = ("reference", "policy", "reward", "value")
LEARNERS = ("policy", "value")
RANK = 8
VALUES: dict[str, Any] = {
    "total_episodes": 320,
    "batch_size": 16,
    "num_mini_batches": 2,
    "num_ppo_epochs": 1,
    "micro_batch_size": 4,
    "response_length": 32,
    "temperature": 0.9,
}
CASES = {
    "full, none": ("full", False, False),
    "full, full": ("full", True, False),
    "full, full, gradient_checkpointing": ("full", True, True),
    "lora, none": ("lora", False, False),
    "lora, full": ("lora", True, False),
}


def lm(seed: int) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, pad_token_id=0, bos_token_id=None, eos_token_id=1))


def bank_of(kind: str) -> Bank:
    """Four roles; two start as a copy of two others."""
    torch.manual_seed(2)
    heads = {role: ScalarHead(SHAPE["hidden_size"]) for role in ("reward", "value")}
    if kind == "full":
        return FullBank({role: lm(0 if role in ("reference", "policy") else 1) for role in ROLES}, heads, LEARNERS)
    config = LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(lm(0), config, adapter_name=ROLES[0])
    for role in ROLES[1:]:
        model.add_adapter(role, config)
    return ActorBank(model, heads, LEARNERS)


def planned(kind: str, sharded: bool, count: int) -> float:
    """Bytes between updates."""
    lora = LoRAConfig(r=RANK) if kind == "lora" else None
    model = PlannedModel(Architecture.from_config(SHAPE), "cpu", 4, "none", lora)
    if sharded:
        model = replace(model, share=1 / count)
    held = model.weights + len(ROLES) * model.adapter if lora else len(ROLES) * model.weights
    return held + len(LEARNERS) * 2 * model.learning


def held(trainer: Any) -> int:
    """Bytes of parameters and moments on this process."""
    optimizers = [o.optimizer for o in trainer.optimisation.optimizers.values()]
    moments = [v for o in optimizers for state in o.state.values() for name, v in state.items() if name != "step"]
    tensors = [*trainer.bank.parameters(), *moments]
    return sum((t.to_local() if isinstance(t, DTensor) else t).untyped_storage().nbytes() for t in tensors)


def resident(device: str, peak: bool = False) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


class Wire:
    """Counts the bytes that FSDP2's collectives receive, and the share of them that comes from other processes."""

    def __init__(self) -> None:
        self.bytes = 0.0
        for name in ("all_gather_single", "reduce_scatter_single"):
            setattr(dist, name, self._counting(getattr(dist, name)))

    def _counting(self, collective: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            tensors = [t for t in (*arguments, *named.values()) if isinstance(t, torch.Tensor)]
            self.bytes += max(t.nbytes for t in tensors) * (1 - 1 / World().size)
            return collective(*arguments, **named)

        return call


def difference_from_whole(bank: Bank, file: Path) -> float:
    """The largest difference of the policy's weights from those in the file, which the first process of the first
    case writes; 0 on other processes."""
    policy = {name: gathered(tensor).cpu() for name, tensor in bank.state_of("policy").items()}
    if World().rank > 0:
        return 0.0
    if not file.exists():
        torch.save(policy, file)
    expected = torch.load(file)
    return max(float((tensor - expected[name]).abs().max()) for name, tensor in policy.items())


def measure(case: str, updates: int, device: str, folder: Path) -> None:
    kind, sharded, checkpointing = CASES[case]
    machine.return_memory()
    torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
    wire, before = Wire(), resident(device)
    bank = bank_of(kind)
    if sharded:
        bank.shard(mesh_of(device))
    if checkpointing:
        checkpoint_activations(bank)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, SHAPE["vocab_size"], (64,), generator=generator).tolist() for _ in range(32)]
    ppo_case.PROMPTS[:] = [EncodedPrompt([], row, "train") for row in rows]
    if not sharded:
        bank.to(device)
    trainer = ppo_case.make(kind, bank=bank, value="adapter", device=device, **VALUES)
    trainer.start()
    trainer.step()
    difference = difference_from_whole(bank, folder / f"{kind}.pt")
    machine.trim_memory()
    rest = resident(device) - before
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    seconds, wire.bytes = [], 0.0
    for _ in range(updates):
        start = time.perf_counter()
        trainer.step()
        seconds.append(time.perf_counter() - start)
    peak, received = resident(device, peak=True) - before, wire.bytes / updates
    if World().rank == 0:
        numbers = [planned(kind, sharded, World().size), held(trainer), rest, peak, received]
        text = "".join(f"{number / 1e6:10.0f}" for number in numbers)
        print(f"{case:36}{text}{statistics.median(seconds):10.2f}{difference:12.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="*", default=list(CASES), metavar="CASE")
    arguments = parser.parse_args()
    columns = "".join(f"{name:>10}" for name in ("plan", "tensors", "at rest", "peak", "wire", "s/update"))
    print(f"{'training, sharding':36}{columns}{'difference':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if any(case.startswith(wanted) for wanted in arguments.only):
                work = (measure, case, arguments.updates, arguments.device, Path(folder))
                processes.spawn(arguments.processes, *work, device=arguments.device)


if __name__ == "__main__":
    main()
