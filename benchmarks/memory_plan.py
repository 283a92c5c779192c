"""The memory plan's predicted peaks against measured peaks.

    python benchmarks/memory_plan.py [--only sft ppo-lora ...] [--smol FOLDER]

Runs each stage for a few steps in a separate process, on Llamas with random weights and with rows of the recipe's
maximum length. Prints the predicted peak, the measured peak and their ratio. On a CPU the measured peak is the
highest resident size (VmHWM) minus the resident size after importing the stage, with the allocator settings of a
run with `hardware.memory` (`pipeline.machine.return_memory`). On a GPU it is `torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

SHAPES: dict[str, dict[str, int]] = {
    "h16": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": 256},
    "h256": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8,
             "num_key_value_heads": 4, "vocab_size": 4096},
    "h384": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
             "num_key_value_heads": 2, "vocab_size": 16384},
    "h576": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 10, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152},
}  # fmt: skip
"""Shapes of the random models."""

PPO = (
    "ppo.max_prompt_length=64 ppo.batch_size=32 ppo.total_episodes=64 ppo.num_ppo_epochs=1 ppo.num_mini_batches=2 "
    "ppo.eval_updates=0 "
)
SFT = "sft.packing=false sft.trainer.max_steps=3 sft.max_length=256 sft.trainer.per_device_train_batch_size=8 "
REWARD = (
    "reward.trainer.max_steps=3 reward.trainer.per_device_train_batch_size=4 reward.max_length=192 "
    "reward.gate=null "
    "collect.max_prompt_length=128 collect.response_length=64 reward.eval_batch_size=16 "
)
DPO = (
    "dpo.enabled=true dpo.max_length=192 dpo.trainer.max_steps=3 dpo.trainer.per_device_train_batch_size=4 "
    "dpo.precompute_ref_batch_size=32 "
)
RAFT = (
    "raft.enabled=true raft.num_prompts=8 raft.best_of_n=8 raft.batch_size=64 raft.max_prompt_length=128 "
    "raft.response_length=64 raft.trainer.max_steps=3 raft.trainer.per_device_train_batch_size=8 "
)
FULL = "sft.lora=null reward.lora=null "
CASES: dict[str, tuple[str, str, str]] = {
    "sft-lora": ("sft", "h384", SFT),
    "sft-lora-checkpointed": ("sft", "h384", SFT + "sft.trainer.gradient_checkpointing=true"),
    "sft-lora-bf16": ("sft", "h384", SFT + "base.dtype=bfloat16"),
    "sft-lora-micro-2": ("sft", "h384", SFT + "sft.micro_batch_size=2"),
    "sft-lora-micro-1": ("sft", "h384", SFT + "sft.micro_batch_size=1"),
    "sft-full": ("sft", "h384", SFT + FULL),
    "sft-full-49k": ("sft", "h576", SFT + FULL + "sft.max_length=128 sft.trainer.per_device_train_batch_size=4"),
    "sft-nf4": ("sft", "h576", SFT + "base.quantization=nf4 sft.trainer.per_device_train_batch_size=4"),
    "reward-lora": ("reward", "h384", REWARD),
    "reward-full": ("reward", "h384", REWARD + FULL),
    "reward-rows": ("reward", "h384", REWARD + "reward.pack_tokens=0"),
    "collect": ("collect", "h384", "collect.num_prompts=16 collect.eval_prompts=1 collect.batch_size=64 "
                "collect.max_prompt_length=128 collect.response_length=64"),
    "collect-49k": ("collect", "h576", "collect.num_prompts=16 collect.eval_prompts=1 collect.batch_size=64 "
                    "collect.max_prompt_length=64 collect.response_length=32"),
    "ppo-lora-trunk": ("ppo", "h384", PPO + "ppo.response_length=64"),
    "ppo-lora-adapter": ("ppo", "h384", PPO + "ppo.response_length=64 ppo.value=adapter"),
    "ppo-lora-long": ("ppo", "h256", PPO + "ppo.response_length=192"),
    "ppo-lora-checkpointed": ("ppo", "h384", PPO + "ppo.response_length=128 ppo.gradient_checkpointing=true"),
    "ppo-lora-micro-4": ("ppo", "h576", PPO + "ppo.response_length=64 ppo.micro_batch_size=4"),
    "ppo-lora-micro-2": ("ppo", "h384", PPO + "ppo.response_length=64 ppo.micro_batch_size=2"),
    "ppo-lora-bf16": ("ppo", "h384", PPO + "ppo.response_length=128 base.dtype=bfloat16"),
    "ppo-lora-ptx": ("ppo", "h384", PPO + "ppo.response_length=64 ppo.ptx_coef=0.1 ppo.micro_batch_size=8 "
                     "sft.max_length=128"),
    "ppo-full-trunk": ("ppo", "h384", PPO + FULL + "ppo.response_length=64"),
    "ppo-full-adapter": ("ppo", "h256", PPO + FULL + "ppo.response_length=128 ppo.value=adapter"),
    "dpo-lora": ("dpo", "h384", DPO),
    "dpo-full": ("dpo", "h384", DPO + FULL),
    "raft-lora": ("raft", "h384", RAFT),
    "raft-full": ("raft", "h384", RAFT + FULL),
    "ppo-nf4": ("ppo", "h576", PPO + "ppo.response_length=64 base.quantization=nf4 ppo.micro_batch_size=8"),
}  # fmt: skip
"""Name -> stage, shape, values over the recipe's."""
SMALL = (
    "ppo.response_length=8 ppo.max_prompt_length=16 ppo.batch_size=8 ppo.total_episodes=16 ppo.num_ppo_epochs=1 "
)
NOTHING: dict[str, tuple[str, str, str]] = {
    "nothing-sft": ("sft", "h16", "sft.packing=false sft.trainer.max_steps=2 sft.max_length=16 "
                    "sft.trainer.per_device_train_batch_size=2"),
    "nothing-reward": ("reward", "h16", "reward.trainer.max_steps=2 reward.trainer.per_device_train_batch_size=2 "
                       "reward.max_length=24 reward.gate=null collect.max_prompt_length=16 "
                       "collect.response_length=8"),
    "nothing-collect": ("collect", "h16", "collect.num_prompts=2 collect.eval_prompts=1 collect.response_length=8 "
                        "collect.max_prompt_length=16"),
    "nothing-ppo": ("ppo", "h16", SMALL + "ppo.num_mini_batches=1 ppo.eval_updates=0"),
}  # fmt: skip
"""Minimal models, to measure what the libraries take at first use: `pipeline.memory.plan.FIRST_USE`."""
SMOL = {
    "smol-sft-nf4": ("sft", "smol", SFT + "base.quantization=nf4 sft.trainer.per_device_train_batch_size=2"),
    "smol-ppo-lora": ("ppo", "smol", PPO + "ppo.response_length=64 ppo.micro_batch_size=4 ppo.batch_size=16 "
                      "ppo.total_episodes=16"),
}  # fmt: skip

K = 4
RECIPE = """\
name: memory-plan
device: {device}
base: {{model: {model}, dtype: float32}}
data: {{demonstrations: {{task: venues, size: 10}}}}
rank: {{source: simulated, annotators_per_prompt: 1, annotators: [{{name: ann}}]}}
collect: {{num_completions: 4}}
sft: {{lora: {{r: 8}}}}
reward: {{lora: {{r: 8}}}}
"""


# --- The run, in a separate process -------------------------------------------------------------------------------


def resident(name: str) -> int:
    """VmRSS or VmHWM, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this bench reads /proc/self/status: Linux only")


class Nothing:
    def log(self, step: int, **values: Any) -> None: ...
    def truncate(self, step: int) -> None: ...
    def advance(self, steps: int = 1, **numbers: float) -> None: ...


@contextmanager
def progress(*_: Any, **__: Any) -> Iterator[Nothing]:
    yield Nothing()


def work(stage: str, folder: Path, device: str, values: str) -> dict[str, float]:
    """Runs a stage on the artifacts in a folder. Returns the bytes held after imports and the peak above them."""
    import torch

    import stages.registry  # noqa: F401  registers the stages
    from pipeline import machine
    from pipeline.config.load import load_recipe
    from pipeline.engine import registry
    from pipeline.engine.stage import Artifact, RunContext

    spec = registry.STAGES[stage]
    run = spec.load()
    import bitsandbytes  # noqa: F401  imported late by transformers; counts as an import
    import trl  # noqa: F401

    machine.return_memory()
    bare = resident("VmRSS")
    nothing: Any = Nothing()
    out, state = folder / "out", folder / "state"
    out.mkdir()
    state.mkdir()
    ctx = RunContext(seed=0, device=device, state_dir=state, metrics=nothing, progress=progress,
                     say=lambda text: None, recipe_dir=folder)  # fmt: skip
    inputs = {need: Artifact(need, folder / need, need) for need in spec.needs if (folder / need).is_dir()}
    run(spec.config(load_recipe(folder / "recipe.yaml", [values]).recipe), inputs, out, ctx)
    outcome = {"bare": bare, "measured": resident("VmHWM") - bare}
    if device == "cuda":
        outcome["measured"] = torch.cuda.max_memory_allocated()
    return outcome


# --- Inputs -------------------------------------------------------------------------------------------------------


def prepare(folder: Path, source: Path, recipe: Any) -> None:
    """Writes the artifacts of the earlier stages, with texts of the recipe's maximum length."""
    import random

    import tiny
    import torch
    from transformers import AutoTokenizer

    from data.schema import Ranking, write_jsonl
    from pipeline.engine.stage import Artifact
    from stages.models.adapters import new_adapter, save_adapter
    from stages.models.heads import ScalarHead
    from stages.models.loading import load_causal_lm
    from stages.models.text import Codec, chat_template

    base = Artifact("base", folder / "base", "base")
    base.path.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = chat_template("plain", tokenizer)
    tokenizer.save_pretrained(base.path / "tokenizer")
    spec = {"model": str(source), "revision": None, "dtype": recipe.base.dtype,
            "quantization": recipe.base.quantization}  # fmt: skip
    (base.path / "base.json").write_text(json.dumps(spec))
    codec, rng = Codec(tokenizer), random.Random(0)

    def text(length: Any, wanted: int) -> str:
        letters = "".join(rng.choices("abcdefgh", k=2 * wanted))
        low, high = 1, len(letters)  # the longest prefix that fits: more characters never make fewer tokens
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if length(letters[:middle]) <= wanted else (low, middle - 1)
        return letters[:low]

    def prompt(wanted: int) -> str:
        return text(lambda candidate: len(codec.prompt(tiny.user(candidate))), wanted)

    def completion(wanted: int) -> str:
        return text(lambda candidate: len(codec.completion(candidate)), wanted)

    data = folder / "data"
    data.mkdir()
    half, longest = recipe.sft.max_length // 2, recipe.sft.max_length
    write_jsonl(
        data / "demonstrations.jsonl",
        (
            {
                "prompt": tiny.user(prompt(half)),
                "completion": completion(longest - half - 3 * (i % 2)),
                "split": "train" if i < 24 else "eval",
            }
            for i in range(32)
        ),
    )
    prompt_length = min(recipe.ppo.max_prompt_length, recipe.collect.max_prompt_length)
    prompts = [tiny.user(prompt(prompt_length)) for _ in range(32)]
    write_jsonl(data / "prompts.jsonl", ({"prompt": p, "split": "train"} for p in prompts))
    rank = folder / "rank"
    rank.mkdir()
    write_jsonl(
        rank / "rankings.jsonl",
        (
            Ranking(prompt=tiny.user(prompt(recipe.collect.max_prompt_length)),
                    completions=[completion(recipe.collect.response_length) for _ in range(K)],
                    ranks=[1, 2, 3, 4], annotator="ann", human=False, split="train" if i < 16 else "eval")
            for i in range(24)
        ),
    )  # fmt: skip
    (rank / "agreement.json").write_text("{}")

    for name, role in (("sft", "default"), ("reward", "reward")):
        (folder / name).mkdir()
        model: Any = load_causal_lm(str(source), "cpu", dtype="float32")
        head = ScalarHead(model.config.get_text_config().hidden_size)
        if recipe.sft.lora is None:
            model.save_pretrained(folder / name / "model")
        else:
            torch.manual_seed(1)
            save_adapter(new_adapter(model, recipe.sft.lora, role), role, folder / name)
        if name == "reward":
            head.save(folder / name / "head.safetensors")
            spec = {"base": "base", "vocabulary": len(tokenizer), "fingerprints": []}
            (folder / name / "reward.json").write_text(json.dumps(spec))
            (folder / name / "quality.json").write_text(json.dumps({"unfit": []}))


def random_model(folder: Path, shape: str) -> Path:
    """A Llama with random weights and one token per character."""
    import tiny

    values: dict[str, Any] = {**SHAPES[shape], "max_position_embeddings": 1024, "tie_word_embeddings": True}
    tiny.lm(initializer_range=0.02, **values).save_pretrained(folder)
    tiny.tokenizer("plain").save_pretrained(folder)
    return folder


def measure(stage: str, source: Path, values: str, device: str) -> tuple[Any, dict[str, float]]:
    """The plan's prediction for a stage, and the measured bytes."""
    from pipeline.config.load import load_recipe
    from pipeline.memory.plan import predict

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(RECIPE.format(device=device, model=source))
        loaded = load_recipe(folder / "recipe.yaml", [values])
        prepare(folder, source, loaded.recipe)
        command = [sys.executable, __file__, "--run", stage, str(folder), device, values]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"{stage} {values}:\n{done.stderr[-3000:]}")
        return predict(loaded.recipe).stages[stage], json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help="run the configurations whose names contain one of these")
    parser.add_argument("--smol", type=Path, help="folder with SmolLM2-135M, adds its configurations")
    parser.add_argument(
        "--nothing", action="store_true", help="use minimal models, to measure what the libraries take"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--components", action="store_true", help="also print the prediction by component")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.run:
        stage, folder, device, values = a.run
        print(json.dumps(work(stage, Path(folder), device, values)))
        return
    cases = NOTHING if a.nothing else CASES | (SMOL if a.smol else {})
    print("| configuration | stage | model | peak in | predicted MB | measured MB | ratio |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        for case, (stage, shape, values) in cases.items():
            if a.only and not any(part in case for part in a.only):
                continue
            source = a.smol.resolve() if shape == "smol" else Path(name) / shape
            if not source.exists():
                random_model(source, shape)
            planned, outcome = measure(stage, source, values, a.device)
            predicted, measured = planned.allocated / 1e6, outcome["measured"] / 1e6
            numbers = f"{predicted:.0f} | {measured:.0f} | {predicted / measured:.2f}"
            print(f"| {case} | {stage} | {shape} | {planned.phase} | {numbers} |", flush=True)
            if a.components:
                print(f"    imports alone {outcome['bare'] / 1e6:.0f} MB;", planned.describe(), flush=True)


if __name__ == "__main__":
    main()
