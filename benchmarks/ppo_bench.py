#!/usr/bin/env python
"""PPO's speed and memory: against the hardware's floor, against the last TRL with a PPO trainer, and by size.

    python benchmarks/ppo_bench.py floor --model tiny              # per phase: FLOPs, time, utilisation
    python benchmarks/ppo_bench.py peer --model tiny --peer "PEER_PYTHON PEER_SCRIPT"
    python benchmarks/ppo_bench.py growth

`tiny` is a Llama with about a million random weights; other values are folders with a model and its tokenizer. The
peer's script takes --model, --episodes, --response-length, --ppo-epochs, --mini-batches, --threads, --steps,
--warmup and --lora, and prints a last line of JSON with samples_per_s and peak_rss_MB. It runs in a separate
environment (trl 1.12.0). Rounds alternate between the contenders, so that other load on the machine affects all of
them; with --out the rounds can be spread over a day. Figures are medians over rounds, and ratios are medians of the
ratios within a round. A contender's memory is its peak minus what the same interpreter takes to import the same
libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PROMPT = 16
PEER_IMPORTS = (
    "import torch, transformers, trl, peft, datasets; from trl.experimental.ppo import PPOTrainer, PPOConfig;"
    "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
)


def resident_bytes(bank: Any) -> dict[str, int]:
    """Bytes that are always needed: weights, and gradients and Adam's moments of the trainable weights."""
    weights = {p.data_ptr(): p.nbytes for p in bank.parameters()}
    trainable = {p.data_ptr(): p.nbytes for p in bank.parameters() if p.requires_grad}
    adapters = sum(p.nbytes for n, p in bank.named_parameters() if "lora_" in n)
    backbone = sum(weights.values()) - adapters
    return {
        "backbones" if hasattr(bank, "models") else "backbone": backbone,
        "adapters": adapters,
        "gradients": sum(trainable.values()),
        "optimizer": 2 * sum(trainable.values()),
    }


def peak_mb() -> float:
    """Peak memory of this process. (getrusage starts at the peak of the parent process.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024


def tiny_model(folder: Path, vocabulary: int = 1024) -> Path:
    """A Llama of 0.9 million weights with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    backend.train_from_iterator(
        ["one two"],
        trainers.BpeTrainer(special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


# --- A run in a separate process ----------------------------------------------------------------------------------


def work(a: argparse.Namespace) -> dict[str, Any]:
    """Runs updates of our trainer on random prompts, without stop tokens, like the peer's script."""
    import torch

    torch.set_num_threads(a.threads)
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from pipeline.config.ppo import PPOConfig, ScoreConfig
    from stages.models.bank import ActorBank, FullBank, disable_dropout
    from stages.models.heads import ScalarHead
    from stages.ppo.cost import attainable, shape_of, update_flops
    from stages.ppo.rewards import RewardSignal
    from stages.ppo.trainer import PPOTrainer
    from stages.sampling.prompts import EncodedPrompt
    from stages.scoring.reward_model import RewardEnsemble
    from stages.scoring.scorer import TokenScorer

    bare = peak_mb()
    torch.manual_seed(0)

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)

    value_role = "value" if a.value == "adapter" else "policy"
    roles = ["reference", "policy", "reward", *(["value"] if a.value == "adapter" else [])]
    learn = sorted({"policy", value_role})
    first = load()
    heads = {role: ScalarHead(first.config.hidden_size) for role in ("reward", value_role)}
    if a.lora:
        config = LoraConfig(r=a.lora, lora_alpha=2 * a.lora, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(first, config, adapter_name=roles[0])
        for role in roles[1:]:
            model.add_adapter(role, config)
        bank: Any = ActorBank(model, heads, learn)  # type: ignore[arg-type]
    else:
        bank = FullBank({r: first if r == roles[0] else load() for r in roles}, heads, learn)
    disable_dropout(bank)
    generator = torch.Generator().manual_seed(0)
    vocabulary = first.config.vocab_size
    rows = torch.randint(3, vocabulary, (4 * a.episodes, PROMPT), generator=generator).tolist()
    prompts = [EncodedPrompt([], ids, "train") for ids in rows]
    ppo = PPOConfig(
        total_episodes=a.episodes * a.steps,
        batch_size=a.episodes,
        response_length=a.response_length,
        num_ppo_epochs=a.ppo_epochs,
        num_mini_batches=a.mini_batches,
        micro_batch_size=a.micro_batch,
        value=a.value,
        score=ScoreConfig(normalization="none"),
    )
    codec: Any = SimpleNamespace(stop_ids={-1}, pad_id=0, ended_as_trained=list)
    batch = a.micro_batch or a.episodes // a.mini_batches
    scorer = TokenScorer(RewardEnsemble(bank, ["reward"]), codec, "cpu", batch_size=batch)
    trainer = PPOTrainer(bank, ppo, codec, prompts, RewardSignal(scorer, ppo.reward), seed=0)
    laps = []
    for _ in range(a.steps):
        began = time.perf_counter()
        metrics = trainer.step()
        laps.append({"update": time.perf_counter() - began} | {k: v for k, v in metrics.items() if "time/" in k})
    laps = laps[a.warmup :]
    seconds = {name.removeprefix("time/"): statistics.mean(lap[name] for lap in laps) for name in laps[0]}
    figures = {
        "samples_per_s": a.episodes / seconds["update"],
        "seconds": seconds,
        "bare_MB": bare,
        "peak_MB": peak_mb(),
    }
    if a.floor:
        flops = update_flops(
            shape_of(first),
            [(PROMPT, a.response_length)] * a.episodes,
            epochs=a.ppo_epochs,
            adapter_value=a.value == "adapter",
            full=not a.lora,
        )
        figures |= {"flops": flops, "attainable": attainable("cpu", torch.float32)}
        figures |= {"resident": resident_bytes(bank)}
    return figures


def ours(values: dict[str, Any]) -> dict[str, Any]:
    return _json([sys.executable, __file__, "work", *_flags(values)])


def peer(command: str, values: dict[str, Any]) -> dict[str, Any]:
    words = shlex.split(command)
    known = {name: value for name, value in values.items() if name not in ("value", "micro_batch", "floor")}
    figures = _json([*words, *_flags(known)])
    bare = subprocess.run([words[0], "-c", PEER_IMPORTS], capture_output=True, text=True, check=True).stdout
    return figures | {"bare_MB": float(bare.split()[-1]), "peak_MB": figures["peak_rss_MB"]}


def _flags(values: dict[str, Any]) -> list[str]:
    words = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [] if value is None or value is False else [flag, str(value)]
    return words


def _json(command: list[str]) -> dict[str, Any]:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


# --- Tables -------------------------------------------------------------------------------------------------------


def compare(a: argparse.Namespace, base: dict[str, Any]) -> None:
    """Runs alternating rounds and prints medians and ratios to the peer."""
    contenders = {
        "ours, LoRA, value on the trunk": lambda: ours(base | {"lora": 8, "value": "trunk"}),
        "ours, LoRA, value adapter": lambda: ours(base | {"lora": 8, "value": "adapter"}),
        "ours, full, value on the trunk": lambda: ours(base | {"lora": 0, "value": "trunk"}),
        "ours, full, value model": lambda: ours(base | {"lora": 0, "value": "adapter"}),
        "peer, LoRA": lambda: peer(a.peer, base | {"lora": 8}),
        "peer, full": lambda: peer(a.peer, base | {"lora": 0}),
    }
    chosen = {name: run for name, run in contenders.items() if not a.only or any(o in name for o in a.only)}
    work = {name: value for name, value in base.items() if name != "model"} | {"model": a.model}
    known = [json.loads(line) for line in a.out.read_text().splitlines()] if a.out and a.out.exists() else []
    runs = {name: [row["found"] for row in known if row["of"] == [name, work]] for name in chosen}
    for turn in range(a.rounds):
        for name, run in chosen.items():
            if len(runs[name]) > turn:
                continue
            last = run()
            runs[name].append(last)
            if a.out:
                with a.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps({"of": [name, work], "found": last}) + "\n")
            print(
                f"round {turn + 1} of {a.rounds}: {name}: {last['samples_per_s']:.2f} episodes/s, "
                f"{last['peak_MB'] - last['bare_MB']:.0f} MB",
                flush=True,
            )
    speed = {name: [r["samples_per_s"] for r in rows] for name, rows in runs.items()}
    memory = {name: [r["peak_MB"] - r["bare_MB"] for r in rows] for name, rows in runs.items()}
    peers = [name for name in runs if name.startswith("peer")]
    print("\n| | episodes/s | MB | " + " | ".join(f"speed, memory against {p}" for p in peers) + " |")
    print("| --- | ---: | ---: |" + " ---: |" * len(peers))
    for name in runs:
        ratios = [f"{_ratio(speed[name], speed[p]):.2f}x, {_ratio(memory[name], memory[p]):.2f}x" for p in peers]
        middle, used = statistics.median(speed[name]), statistics.median(memory[name])
        print(f"| {name} | {middle:.2f} | {used:.0f} | " + " | ".join(ratios) + " |")


def _ratio(values: list[float], peers: list[float]) -> float:
    """The median of the ratios within a round, where both meet the same load."""
    return statistics.median(a / b for a, b in zip(values, peers, strict=True))


def floor(base: dict[str, Any]) -> None:
    """Prints FLOPs, time and utilisation by phase. Utilisation is relative to a single large matrix product."""
    for lora, value in ((8, "trunk"), (8, "adapter"), (0, "trunk")):
        figures = ours(base | {"lora": lora, "value": value, "floor": True})
        rate = figures["attainable"] / 1e9
        print(f"\n{'LoRA' if lora else 'full'}, value {value}; {rate:.0f} GFLOP/s attainable\n")
        print("| phase | GFLOP | s | GFLOP/s | utilisation |\n| --- | ---: | ---: | ---: | ---: |")
        phases = figures["flops"] | {"update": sum(figures["flops"].values())}
        for phase, flops in phases.items():
            rate = flops / figures["seconds"][phase]
            print(
                f"| {phase} | {flops / 1e9:.2f} | {figures['seconds'][phase]:.3f} | {rate / 1e9:.0f} "
                f"| {rate / figures['attainable']:.0%} |"
            )
        resident = {name: size / 2**20 for name, size in figures["resident"].items()}
        print(
            f"\nresident, MB: {', '.join(f'{n} {s:.1f}' for n, s in resident.items())}; together "
            f"{sum(resident.values()):.0f}, measured {figures['peak_MB'] - figures['bare_MB']:.0f}"
        )


def growth(base: dict[str, Any], folder: Path) -> None:
    """Varies response length, batch size and vocabulary, one at a time."""
    print("| response | batch | vocabulary | s per update | MB | unchunked logits, MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    models = {v: str(tiny_model(folder / str(v), v)) for v in (1024, 4096, 49152, 152064)}
    cases = [(t, 64, 1024) for t in (32, 128, 512)]
    cases += [(32, b, 1024) for b in (16, 256)]
    cases += [(32, 64, v) for v in (4096, 49152, 152064)]
    for response, batch, vocabulary in cases:
        values = {"model": models[vocabulary], "episodes": batch, "response_length": response}
        figures = ours(base | values | {"lora": 8, "value": "trunk", "micro_batch": 4})
        unchunked = batch * response * vocabulary * 4 / 2**20
        used = figures["peak_MB"] - figures["bare_MB"]
        seconds = figures["seconds"]["update"]
        print(f"| {response} | {batch} | {vocabulary} | {seconds:.2f} | {used:.0f} | {unchunked:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["floor", "peer", "growth", "work"])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--response-length", type=int, default=32)
    parser.add_argument("--ppo-epochs", type=int, default=4)
    parser.add_argument("--mini-batches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="updates in a run")
    parser.add_argument("--warmup", type=int, default=1, help="updates at the start that the rates exclude")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender (peer)")
    parser.add_argument("--peer", help="the peer's interpreter and script, in one string")
    parser.add_argument("--only", nargs="*", help="contenders whose names contain one of these (peer)")
    parser.add_argument(
        "--out", type=Path, help="file of each run's figures; runs already in it are not repeated (peer)"
    )
    parser.add_argument("--lora", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--value", default="trunk", help=argparse.SUPPRESS)
    parser.add_argument("--micro-batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--floor", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.what == "work":
        print(json.dumps(work(a)))
        return
    if a.what == "peer" and not a.peer:
        parser.error("peer needs --peer")
    shared = ("model", "episodes", "response_length", "ppo_epochs", "mini_batches", "threads", "steps", "warmup")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = {name: getattr(a, name) for name in shared}
        if a.model == "tiny":
            base["model"] = str(tiny_model(folder / "tiny"))
        if a.what == "peer":
            compare(a, base)
        elif a.what == "floor":
            floor(base)
        else:
            growth(base, folder)


if __name__ == "__main__":
    main()
