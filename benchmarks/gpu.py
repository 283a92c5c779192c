#!/usr/bin/env python
"""Checks the claims about GPUs on a real GPU and prints the table of docs/gpu.md, in at most eight minutes.

    python benchmarks/gpu.py [--out FOLDER] [--seconds 480] [--only pipeline decoding ...]

The most valuable steps come first. Each step runs in a separate process with a time limit, so that a step that
fails or hangs loses only its rows. The next step's process imports its libraries in the meantime. Rows are written
to FOLDER/gpu.md as they come. Without CUDA every step runs on the CPU with tiny shapes, which tests the script but
measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support"), str(ROOT / "benchmarks")]

from pipeline.engine import environment

environment.prepare()

import torch
from gpu_models import CUDA, DEVICE, EIGHT, HALF, ONE, ONE_AND_A_HALF, bank, in_nf4, model, step_floor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
from transformers.utils import logging as transformers_logging

from stages.export.checkpoints import save_nf4
from stages.models.actor import Actor
from stages.models.bank import ActorBank
from stages.models.loading import load_causal_lm
from stages.models.microbatch import MicroBatch
from stages.models.quantization import grids
from stages.ppo.cost import attainable
from stages.ppo.losses import policy_loss
from stages.sampling import episodes as trajectory
from stages.sampling import slots
from stages.sampling.decoding import Record, generate
from stages.sampling.episodes import Episodes
from stages.training.optimizers import adamw

Rows = Iterator[tuple[str, str]]
"""(check, result)."""

STEPS: dict[str, tuple[Callable[[], Rows], float]] = {}
"""Name -> the step and its time limit in seconds, which includes its imports."""


def step(limit: float) -> Callable[[Callable[[], Rows]], Callable[[], Rows]]:
    def register(function: Callable[[], Rows]) -> Callable[[], Rows]:
        STEPS[function.__name__] = (function, limit)
        return function

    return register


# --- Shared by the steps ------------------------------------------------------------------------------------------


def texts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    return [torch.randint(3, vocabulary, (length - i % 7,)).tolist() for i in range(count)]


def episodes(count: int, prompt: int, response: int, vocabulary: int) -> Episodes:
    prompts, answers = texts(count, prompt, vocabulary), texts(count, response, vocabulary)
    return Episodes.build(prompts, answers, {1}, 0, DEVICE)


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], times: int) -> float:
    """Mean seconds of a call, after a first call that is not counted."""
    work()
    wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - start) / times


def fresh() -> None:
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> str:
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if CUDA else "not measured"


@contextlib.contextmanager
def synchronisations() -> Iterator[list[str]]:
    """Collects the source lines where the host waits for the device, from PyTorch's warnings."""
    places: list[str] = []
    if not CUDA:
        yield places
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places += [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def counted(places: Sequence[str]) -> str:
    if not CUDA:
        return "not counted"
    common = {place: places.count(place) for place in sorted(set(places), key=places.count, reverse=True)[:3]}
    return f"{len(places)} ({', '.join(f'{place} x{n}' for place, n in common.items())})" if places else "0"


# --- The steps ----------------------------------------------------------------------------------------------------

RECIPE = """\
extends: [{root}/recipes/quickstart.yaml]
name: gpu
base:
  pretrain: {{corpus: {{size: 400}}, num_hidden_layers: 2, hidden_size: 64, intermediate_size: 128,
             trainer: {{num_train_epochs: 1}}}}
data: {{demonstrations: {{size: 400}}}}
sft: {{trainer: {{max_steps: 8}}}}
collect: {{num_prompts: 60, eval_prompts: 20}}
reward: {{trainer: {{max_steps: 8}}, gate: null}}
ppo: {{total_episodes: 128, batch_size: 64, eval_prompts: 8, eval_updates: 1,
       kl: {{num_prompts: 4, num_generations: 8, target: 0.5}}}}
eval: {{num_prompts: 16}}
export: {{num_prompts: 8, formats: [safetensors, nf4, gguf_q4_0]}}
dpo: {{enabled: true, trainer: {{max_steps: 3}}}}
raft: {{enabled: true, best_of_n: 4, num_prompts: 16, trainer: {{max_steps: 3}}}}
"""

VARIANTS = {
    "float32, base to export": ("export", "base.dtype=float32"),
    "bfloat16, base to export": ("export", "base.dtype=bfloat16"),
    "bfloat16, value adapter, ptx, checkpointing, micro-batches of 8": (
        "ppo", "base.dtype=bfloat16 ppo.value=adapter ppo.ptx_coef=0.1 ppo.gradient_checkpointing=true "
        "ppo.micro_batch_size=8",
    ),
    "bfloat16, full fine-tuning": ("dpo", "base.dtype=bfloat16 sft.lora=null reward.lora=null"),
    "NF4": ("export", "base.dtype=bfloat16 base.quantization=nf4 export.formats=null export.dtype=float32"),
    "int8": ("ppo", "base.dtype=bfloat16 base.quantization=int8 export.formats=null"),
    "QAT to Q4_0": ("export", "base.dtype=float32 base.quantization={qat: q4_0} export.formats=[gguf_q4_0]"),
    "bfloat16, ensemble of two, two rounds": ("ppo-2", "base.dtype=bfloat16 reward.ensemble=2 rounds=2"),
}  # fmt: skip
"""Name -> (last stage, recipe values) of a run of the command line. Every run checks that the ratio is one at each
update's first step, that KL is zero at the start, that stored scores and log-probs are reproduced, and that frozen
roles do not change."""


@step(240)
def pipeline() -> Rows:
    """Runs a tiny recipe through the command line in several configurations in parallel."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "gpu.yaml"
        recipe.write_text(RECIPE.format(root=ROOT))
        running = {}
        for number, (name, (until, values)) in enumerate(VARIANTS.items()):
            if not CUDA and number > 1:
                break
            log = (Path(folder) / f"{number}.log").open("w+")
            command = [sys.executable, "-P", "-m", "stages", "run", until, "--recipe", str(recipe), "--runs",
                       f"{folder}/{number}", "--set", values]  # fmt: skip
            environ = os.environ | {
                "OMP_NUM_THREADS": "2",
                "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
            }
            process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=subprocess.STDOUT)
            running[name] = (process, log, time.perf_counter())
        for name, (process, log, start) in running.items():
            try:
                code = process.wait(timeout=max(1.0, 230 - (time.perf_counter() - start)))
            except subprocess.TimeoutExpired:
                process.kill()
                code = -9
            log.seek(0)
            lines = [line for line in log.read().splitlines() if line.strip()]
            last = next((line for line in reversed(lines) if "ppo" in line and "kl" in line), "")
            outcome = f"finishes; {last[9:]}" if code == 0 else f"**exit {code}**: {' / '.join(lines[-6:])}"
            yield f"pipeline: {name}", outcome


@step(60)
def passes() -> Rows:
    """Whether the fast forward pass is used in bfloat16, and its distance from the model's forward pass."""
    for name, kind in (("Llama 1B", LlamaConfig), ("Qwen3 1B", Qwen3Config)):
        lm = model(ONE, kind)
        actor = Actor(lm)
        ids = torch.randint(3, lm.config.vocab_size, (2, 64), device=DEVICE)
        with torch.no_grad():
            expected = lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float()
            actual = actor.hidden(ids).float()
        difference = float((actual - expected).norm() / expected.norm())
        yield (
            f"forward pass of {name}, bfloat16",
            f"{'fast' if actor._plain else 'library'}, rms {100 * difference:.2f} %",
        )
        del lm, actor
        fresh()


DECODED: tuple[tuple[str, Callable[[], Any], int], ...] = (
    ("0.5B bfloat16", lambda: model(HALF), 64),
    ("1.5B bfloat16", lambda: model(ONE_AND_A_HALF), 64),
    ("8B NF4", lambda: in_nf4(model(EIGHT)), 64),
    ("1B bfloat16", lambda: model(ONE), 32),
    ("8B bfloat16", lambda: model(EIGHT), 64),
)
"""What is decoded: its name, the model, and the number of rows. The last two are those of earlier sessions."""


@step(90)
def decoding() -> Rows:
    """Speed, memory and host synchronisations of the rollout loop, and whether its step can be captured."""
    roles = bank(model(ONE | {"num_hidden_layers": 2, "vocab_size": 1024}, dtype=torch.float32))
    prompts, uniform = texts(24, 24, 500), torch.rand(24, 40)
    responses, captures = [], 0
    for warm_up in (slots.WARM_UP, 10**9):
        captured = mock.patch.object(torch.cuda, "CUDAGraph", wraps=torch.cuda.CUDAGraph)
        with roles.active("policy", decode=True) as actor, captured as graph:
            with mock.patch.object(slots, "WARM_UP", warm_up):
                responses.append(
                    generate(
                        actor, prompts, uniform, temperature=1.0, stop_ids={*range(1, 40)}, pad_id=0, batch_size=16
                    )
                )
            captures += graph.call_count
    same = sum(one == other for one, other in zip(*responses, strict=True))
    yield "decoding as a captured graph, float32", f"{same} of 24 responses as without, {captures} captures"
    del roles, actor
    fresh()
    for name, make, rows in DECODED:
        lm = make()
        vocabulary, tokens, rows = lm.config.vocab_size, (48 if CUDA else 6), (rows if CUDA else 3)
        prompt = 128 if CUDA else 9
        floor = step_floor(lm, rows, prompt + tokens / 2)
        roles = bank(lm)
        prompts, uniform = texts(rows, prompt, vocabulary), torch.rand(rows, tokens)
        with roles.active("policy", decode=True) as actor:

            def sample(actor: Actor = actor, prompts: Any = prompts, uniform: Any = uniform) -> None:
                generate(actor, prompts, uniform, temperature=1.0, stop_ids={1}, pad_id=0)

            took = seconds(sample, 1)
            with synchronisations() as places:
                sample()
        yield (
            f"decoding {name}, LoRA, batch {rows}, {prompt} + {tokens} tokens",
            f"{rows * tokens / took:,.0f} tokens/s, {1e3 * took / tokens:.1f} ms per step, "
            f"{took / tokens / floor:.1f} times the bandwidth floor, peak {peak()}, "
            f"synchronisations {counted(places)}",
        )
        del roles, lm, actor, sample
        fresh()


@step(60)
def training() -> Rows:
    """Time, utilisation, memory and host synchronisations of a policy step."""
    for checkpointing in (False, True):
        roles = bank(model(ONE))
        if checkpointing:
            from stages.models.bank import checkpoint_activations

            checkpoint_activations(roles)
        count = 16 if CUDA else 2
        batch = episodes(count, 256 if CUDA else 12, 128 if CUDA else 8, roles.model.config.vocab_size)
        tokens = int(batch.lengths_B.sum())
        weights = sum(p.numel() for p in roles.model.parameters() if p.dtype == torch.bfloat16)

        def work(roles: ActorBank = roles, batch: Episodes = batch) -> None:
            with roles.active("policy", train=True) as actor:
                for _, part in batch.micro_batches(torch.arange(len(batch)), None):
                    hidden = actor.hidden(part.ids_BL)
                    logp, _ = trajectory.logprobs(
                        actor, part, hidden, temperature=1.0, chunk_size=None, entropy=False
                    )
                    loss = policy_loss(
                        logp, logp.detach(), torch.ones_like(logp), part.mask_BT, count=100.0, cliprange=0.2
                    )
                    loss.loss.backward()

        fresh()
        took = seconds(work, 3)
        rate = 4 * weights * tokens / took  # LoRA: a frozen weight takes part in two products, not three
        with synchronisations() as places:
            work()
        yield (
            f"policy step, 1B, {tokens} tokens{', checkpointing' if checkpointing else ''}",
            f"{1e3 * took:.0f} ms, {rate / 1e12:.0f} TFLOP/s, "
            f"MFU {100 * rate / attainable(DEVICE, torch.bfloat16):.0f} %, peak {peak()}, "
            f"synchronisations {counted(places)}",
        )
        del roles, batch, work
        fresh()


@step(40)
def attention() -> Rows:
    """Time and memory of the fast pass without cuDNN's attention, as on consumer cards."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for dtype in (torch.bfloat16, torch.float32):
        roles = bank(model(ONE | {"num_hidden_layers": 2, "vocab_size": 1024}, dtype=dtype))
        rows, length = (32, 384) if CUDA else (2, 12)
        ids = torch.randint(3, 500, (rows, length), device=DEVICE)

        def full(roles: ActorBank = roles, ids: Any = ids) -> None:
            with roles.active("policy", train=True) as actor:
                actor.hidden(ids).float().sum().backward()

        def sample(roles: ActorBank = roles, rows: int = rows, length: int = length) -> None:
            with roles.active("policy", decode=True) as actor:
                prompts = texts(rows, length, 500)
                generate(actor, prompts, torch.rand(rows, 4), temperature=1.0, stop_ids={1}, pad_id=0)

        for name, work in (("training", full), ("decoding", sample)):
            for kernels in ("PyTorch's choice", "without cuDNN"):
                chosen = contextlib.nullcontext()
                if kernels != "PyTorch's choice":
                    chosen = sdpa_kernel(
                        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
                    )
                fresh()
                with chosen:
                    took = seconds(work, 3)
                yield (
                    f"two layers of 1B, {rows} x {length}, {str(dtype)[6:]}, {name}, {kernels}",
                    f"{1e3 * took:.1f} ms, peak {peak()}",
                )
        del roles, full, sample
        fresh()


@step(60)
def mismatch() -> Rows:
    """Sampling log-probs against log-probs of a pass over the finished sequences, and of other micro-batches."""
    lm = model(ONE)
    vocabulary = lm.config.vocab_size
    roles = bank(lm)
    rows, tokens = (16, 32) if CUDA else (3, 5)
    prompts, uniform = texts(rows, 64, vocabulary), torch.rand(rows, tokens)
    with roles.active("policy", decode=True) as actor:
        record = Record.empty((rows, tokens), DEVICE)
        answers = generate(actor, prompts, uniform, temperature=1.0, stop_ids={1}, pad_id=0, record=record)
    batch = Episodes.build(prompts, answers, {1}, 0, DEVICE)
    logps_by_size = []
    with roles.active("policy") as actor:
        for size in (rows, 2):
            logps = torch.zeros(batch.mask_BT.shape, device=DEVICE)
            for part_rows, part in batch.micro_batches(torch.arange(rows), size):
                logps[part_rows] = trajectory.logprobs(
                    actor, part, actor.hidden(part.ids_BL), temperature=1.0, chunk_size=None, entropy=False
                )[0]
            logps_by_size.append(logps)
    difference = (logps_by_size[0] - record.logp_BT[:, : logps_by_size[0].shape[1]])[batch.mask_BT]
    parts = (logps_by_size[0] - logps_by_size[1])[batch.mask_BT]
    yield (
        "rollout against recomputed log-probs, 1B bfloat16",
        f"std {float(difference.std()):.4f} nats, k3 {float((difference.exp() - 1 - difference).mean()):.5f}",
    )
    yield (
        "recomputed log-probs, micro-batches of 2 against 16",
        f"std {float(parts.std()):.4f} nats, largest {float(parts.abs().max()):.3f}",
    )


@step(60)
def quantisation() -> Rows:
    """NF4 and int8 layers, the grids of quantisation-aware training, and exported files."""
    import tiny

    weight = torch.randn(256, 256) * 0.02
    for name in grids.GRIDS:
        here, there = grids.onto(name, weight.to(DEVICE)).cpu(), grids.onto(name, weight)
        differ, difference = int((here != there).sum()), float((here - there).abs().max() / there.abs().max())
        yield (
            f"grid {name} on the card against the CPU",
            f"{differ} of {weight.numel()} weights differ, by at most {difference:.1e} of the largest",
        )
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight.to(DEVICE), blocksize=64, quant_type="nf4", compress_statistics=True)
    there, here = dequantize_4bit(packed, state).float(), grids.onto("nf4", weight.to(DEVICE))
    yield (
        "grid nf4 against bitsandbytes' kernels, both on the card",
        f"{int((here != there).sum())} of {weight.numel()} weights differ, by at most "
        f"{float((here - there).abs().max() / here.abs().max()):.1e} of the largest",
    )
    with tempfile.TemporaryDirectory() as folder:
        values = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
        tiny.lm(**values).save_pretrained(f"{folder}/full")
        save_nf4(Path(folder) / "full", Path(folder) / "nf4", "float32")
        read = AutoModelForCausalLM.from_pretrained(f"{folder}/nf4", device_map={"": DEVICE})
        full = AutoModelForCausalLM.from_pretrained(f"{folder}/full")
        differ, total = 0, 0
        dequantised = dict(read.dequantize().named_parameters())
        for name, parameter in full.named_parameters():
            if "proj" in name:
                differ += int(
                    (dequantised[name].detach().float().cpu() != grids.onto("nf4", parameter.detach())).sum()
                )
                total += parameter.numel()
        yield (
            "NF4 file read on the card against QAT's NF4 grid",
            f"{differ} of {total} weights differ",
        )
        for kind in ("nf4", "int8"):
            lm = load_causal_lm(f"{folder}/full", DEVICE, dtype="bfloat16", quantization=kind)
            roles = bank(lm)
            ids = torch.randint(5, 40, (2, 16), device=DEVICE)
            with roles.active("policy", train=True) as actor:
                actor.hidden(ids).float().pow(2).mean().backward()
            norms = [float(p.grad.norm()) for p in roles.parameters_of("policy") if p.grad is not None]
            yield f"{kind} layers with LoRA", f"{sum(n > 0 for n in norms)} of {len(norms)} gradients are not zero"


@step(30)
def memory() -> Rows:
    """Recovery when memory runs out."""
    if CUDA:
        torch.cuda.set_per_process_memory_fraction(0.02)
    messages: list[str] = []
    done: list[int] = []

    def work(rows: Any) -> None:
        if CUDA:
            torch.empty(len(rows) * 2**28, device=DEVICE).sum().item()
        elif len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        done.extend(rows)

    MicroBatch(64, "the pass", messages.append).each(list(range(64)), work)
    yield "64 rows of 1 GiB under a limit of 2 % of the card", f"{len(done)} rows done; {'; '.join(messages)}"


@step(40)
def optimizers() -> Rows:
    """Saving and loading between two steps does not change the result."""
    for kind in ("adamw", "adamw_8bit", *(("paged_adamw_8bit",) if CUDA else ())):
        ends = []
        for reloads in (False, True):
            torch.manual_seed(0)
            parameter = torch.nn.Parameter(torch.randn(128, 128, device=DEVICE))
            values = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
            optimizer = adamw(kind, [parameter], DEVICE, **values)
            for number in range(2):
                parameter.grad = torch.randn(128, 128, device=DEVICE, generator=_seeded(number))
                optimizer.step()
                if reloads and number == 0:
                    with tempfile.NamedTemporaryFile() as file:
                        torch.save(optimizer.state_dict(), file.name)
                        state = torch.load(file.name, map_location="cpu", weights_only=True)
                    optimizer = adamw(kind, [parameter], DEVICE, **values)
                    optimizer.load_state_dict(state)
            ends.append(parameter.detach().clone())
        yield (
            f"{kind}: saved and loaded between two steps",
            f"largest difference {float((ends[0] - ends[1]).abs().max()):.1e}",
        )


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator(device=DEVICE).manual_seed(seed)


@step(60)
def resume() -> Rows:
    """An update resumed from a checkpoint against the same update without interruption."""
    import copy

    import ppo_case
    import tiny

    def make() -> Any:
        tiny_bank = tiny.lora_bank(value="trunk", seed=2).to(DEVICE)
        return ppo_case.make(bank=tiny_bank, value="trunk", device=DEVICE)

    trainer = make()
    trainer.step()
    state = copy.deepcopy(trainer.state_dict())
    trainer.step()
    again = make()
    again.load_state_dict(state)
    again.step()
    differences = [
        float((a - b).abs().max())
        for a, b in zip(
            trainer.bank.state_of("policy").values(), again.bank.state_of("policy").values(), strict=True
        )
    ]
    yield (
        "PPO update resumed from a checkpoint against uninterrupted",
        f"largest difference of a weight {max(differences):.1e}",
    )


@step(30)
def group() -> Rows:
    """A process group like the pipeline's, with a single process."""
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if CUDA else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1)
        here, there = torch.ones(3), torch.ones(3, device=DEVICE)
        dist.all_reduce(here)
        dist.all_reduce(there)
        dist.barrier()
        dist.destroy_process_group()
    yield f"process group, {backend}", f"sums {here.tolist()} and {there.tolist()}"


@step(240)
def sharding() -> Rows:
    """Models sharded over two GPUs, through NCCL: memory, time, and the difference from whole models."""
    if torch.cuda.device_count() < 2:
        yield "sharding over two GPUs", f"not run: there are {torch.cuda.device_count()}"
        return
    command = [sys.executable, str(ROOT / "benchmarks/sharding.py"), "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names, *rows = (re.split(r"  +", line.strip()) for line in done.stdout.splitlines())
    for row in rows:
        yield f"sharding over two GPUs: {row[0]}", ", ".join(map(" ".join, zip(names[1:], row[1:], strict=True)))


@step(110)
def peers() -> Rows:
    """Transformers' `generate` on the models of the step `decoding`, without LoRA."""
    for cache in ("dynamic", "static"):
        for name, make, rows in DECODED[:3]:
            lm = make()
            rows, tokens = (rows, 48) if CUDA else (2, 5)
            ids = torch.randint(3, lm.config.vocab_size, (rows, 128 if CUDA else 9), device=DEVICE)
            values: dict[str, Any] = {"cache_implementation": "static"} if cache == "static" else {}

            def sample(lm: Any = lm, ids: Any = ids, tokens: int = tokens, values: Any = values) -> None:
                lm.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=True, min_new_tokens=tokens,
                    max_new_tokens=tokens, pad_token_id=0, **values,
                )  # fmt: skip

            took = seconds(sample, 1)
            compiled = ", compiled" if cache == "static" and CUDA else ""
            yield (
                f"transformers generate, {name}, {cache} cache{compiled}, batch {rows}",
                f"{rows * tokens / took:,.0f} tokens/s, {1e3 * took / tokens:.1f} ms per step",
            )
            del lm, sample
            fresh()


@step(150)
def updates() -> Rows:
    """Peak memory of PPO updates against the plan, for twelve configurations, and their speed."""
    from gpu_ppo import rows

    yield from rows()


ORDER = [
    "decoding", "updates", "pipeline", "training", "peers", "quantisation", "mismatch", "memory", "optimizers",
    "resume", "passes", "attention", "group", "sharding",
]  # fmt: skip
"""The steps, those first whose result is needed most."""
assert sorted(ORDER) == sorted(STEPS)

# --- Running the steps --------------------------------------------------------------------------------------------


def _card() -> str:
    """A line with the GPU, the driver and the package versions."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        card = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        card = "no GPU: all steps on the CPU with tiny shapes"
    from importlib.metadata import version

    packages = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "trl", "bitsandbytes"))
    return f"{card}; torch {torch.__version__}, {packages}, Python {sys.version.split()[0]}"


def _run(name: str, queue: Any, turn: Any) -> None:
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    turn.wait()
    try:
        for row in STEPS[name][0]():
            queue.put(row)
    except BaseException as error:
        traceback.print_exc()
        queue.put((name, f"**failed**: {type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER)
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    # Spawn: importing a library may initialise CUDA, which a forked process cannot use.
    spawn = multiprocessing.get_context("spawn")

    def prepared(name: str) -> tuple[Any, Any, Any]:
        queue, turn = spawn.Queue(), spawn.Event()
        process = spawn.Process(target=_run, args=(name, queue, turn), daemon=True)
        process.start()
        return process, queue, turn

    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "gpu.md").open("w", encoding="utf-8") as page:

        def write(line: str) -> None:
            print(line, flush=True)
            print(line, file=page, flush=True)

        write(f"{_card()}\n\n| check | result |\n| --- | --- |")
        following = prepared(arguments.only[0])
        for name, after in zip(arguments.only, [*arguments.only[1:], None], strict=True):
            process, queue, turn = following
            if after is not None:
                following = prepared(after)
            limit = min(STEPS[name][1], end - time.monotonic())
            if limit < 5:
                write(f"| {name} | not run: no time left |")
                process.kill()
                continue
            turn.set()
            stop = time.monotonic() + limit
            while process.is_alive() or not queue.empty():
                with contextlib.suppress(Empty):
                    what, result = queue.get(timeout=0.2)
                    write(f"| {what} | {result.replace('|', '/')} |")
                if time.monotonic() > stop and process.is_alive():
                    process.kill()
                    process.join()
                    write(f"| {name} | **stopped** after {limit:.0f} s |")
            if process.exitcode not in (0, -9):
                write(f"| {name} | **ended with {process.exitcode}** |")


if __name__ == "__main__":
    main()
