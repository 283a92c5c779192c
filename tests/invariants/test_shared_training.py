"""Micro-batches and the number of processes do not change the model that SFT, reward training, DPO and
RAFT make."""

import os
import socket
from types import SimpleNamespace

import pytest
import tiny
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from pipeline.config.dpo import DPOConfig
from pipeline.config.ppo import AggregateConfig
from pipeline.config.raft import RAFTStageConfig
from pipeline.config.reward import GateConfig, RewardConfig
from pipeline.config.sft import SFTConfig
from pipeline.config.terms import ScoreConfig
from pipeline.engine.processes import Processes
from pipeline.engine.stage import RunContext, Silent
from stages import dpo, raft, sft
from stages.models.distributed import World
from stages.reward import stage as reward
from stages.training import batches

# 16 demonstrations in steps of five, and 8 prompts in steps of three: the last step of an epoch is short, and a
# second process has no share of it.
TRAINER = {
    "learning_rate": 1e-2,
    "num_train_epochs": 2,
    "logging_steps": 3,
    "adam_epsilon": 1e-3,  # rounding errors of tiny gradients stay tiny
}
GATE = GateConfig(min_accuracy=0.0, max_length_correlation=1.0)


def run(stage, folder, out, lora, micro=None, sharded=False, state=None, **trainer):
    """The tensors that a stage writes, its metrics log and its metrics."""
    out.mkdir()
    log = []
    notes = SimpleNamespace(log=lambda step, **values: log.append((step, values)), truncate=lambda step: None)
    state = state or out / "state"
    state.mkdir(exist_ok=True)
    ctx = RunContext(
        seed=3,
        device="cpu",
        state_dir=state,
        metrics=notes,
        progress=Silent.progress,
        say=lambda text: None,
        recipe_dir=out,
        sharded=sharded,
    )
    base, data = (tiny.Artifact(name, folder / name, name) for name in ("base", "data"))
    if stage == "sft":
        config = SFTConfig(
            lora=lora, max_length=40, packing=False, micro_batch_size=micro, trainer=TRAINER | trainer
        )
        metrics = sft.run(config, {"base": base, "data": data}, out, ctx)
    elif stage == "dpo":
        config = DPOConfig(max_length=40, micro_batch_size=micro, trainer=TRAINER | trainer)
        start = tiny.Artifact("sft", folder / ("sft" if lora else "full"), "sft")
        ranked = tiny.Artifact("rank", folder / "rank", "rank")
        metrics = dpo.run(config, {"base": base, "data": data, "sft": start, "rank": ranked}, out, ctx)
    elif stage == "raft":
        config = RAFTStageConfig(
            best_of_n=3, max_prompt_length=30, response_length=8, micro_batch_size=micro, trainer=TRAINER | trainer,
            reward=AggregateConfig(), score=ScoreConfig(), missing_eos_penalty=0.5, reward_model=None,
            reward_model_revision=None,
        )  # fmt: skip
        start = tiny.Artifact("sft", folder / ("sft" if lora else "full"), "sft")
        scoring = tiny.Artifact("reward", folder / "reward", "reward")
        base = tiny.Artifact("base", folder / "base", "base of seed 0")  # that of the reward model
        metrics = raft.run(config, {"base": base, "data": data, "sft": start, "reward": scoring}, out, ctx)
    else:
        config = RewardConfig(
            lora=lora, max_length=40, gate=GATE, center_rewards_coefficient=0.1, micro_batch_size=micro,
            trainer=TRAINER | trainer,
        )  # fmt: skip
        start = tiny.Artifact("sft", folder / ("sft" if lora else "full"), "sft")
        ranked = tiny.Artifact("rank", folder / "rank", "rank")
        metrics = reward.run(config, {"base": base, "data": data, "sft": start, "rank": ranked}, out, ctx)
    tensors = {}
    for file in sorted(out.rglob("*.safetensors")):
        if "state" not in file.relative_to(out).parts:
            tensors |= {f"{file.stem} {name}": tensor for name, tensor in load_file(file).items()}
    return tensors, log, metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    base = tiny.base_artifact(folder / "base")
    tiny.data_artifact(folder / "data", train=16)
    tiny.rank_artifact(folder / "rank")
    tiny.policy_artifact(folder / "sft", base)
    tiny.reward_artifact(folder / "reward", base)
    tiny.policy_artifact(folder / "full", base, lora=False)
    return folder


def close(actual, expected, tolerance=2e-5):
    assert actual.keys() == expected.keys()
    assert expected
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "raft"])
def test_accumulation_and_micro_batches_do_not_change_the_model(folder, tmp_path, stage):
    expected, log, _ = run(stage, folder, tmp_path / "whole", tiny.LORA, per_device_train_batch_size=6)
    ways = {
        "two of three": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
        "in fours": {"per_device_train_batch_size": 6, "micro": 4},
    }
    for name, values in ways.items():
        tensors, other_log, _ = run(stage, folder, tmp_path / name, tiny.LORA, **values)
        close(tensors, expected)
        assert [step for step, _ in other_log] == [step for step, _ in log]
        losses = [values["loss"] for _, values in log if "loss" in values]
        assert [v["loss"] for _, v in other_log if "loss" in v] == pytest.approx(losses, rel=1e-4)


def test_a_step_that_runs_out_of_memory_is_retried_with_smaller_micro_batches(folder, tmp_path, monkeypatch):
    """Memory runs out when part of the step's gradient is accumulated: the step restarts with smaller
    micro-batches. The result is bit-identical to a run that used these from the start."""
    expected, _, _ = run("reward", folder, tmp_path / "ones", tiny.LORA, 1, per_device_train_batch_size=6)
    passes = []
    backward = batches.ShardedTrainer.training_step

    def scarce(trainer, model, inputs, *args):
        passes.append(len(inputs["spans"]))
        loss = backward(trainer, model, inputs, *args)
        if passes in ([6], [6, 3, 3]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return loss

    monkeypatch.setattr(batches.ShardedTrainer, "training_step", scarce)
    tensors, _, metrics = run("reward", folder, tmp_path / "auto", tiny.LORA, "auto", per_device_train_batch_size=6)
    assert passes == [6, 3, 3] + 16 * [1], "two epochs of eight prompts"
    close(tensors, expected, tolerance=0)
    assert metrics["micro_batch_size"] == 1
    passes.clear()
    with pytest.raises(torch.OutOfMemoryError):
        run("reward", folder, tmp_path / "fixed", tiny.LORA, 6, per_device_train_batch_size=6)


def worker(rank, port, stage, folder, out, full):
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = Processes.join(2)
    batch = 3 if stage == "reward" else 5
    with processes.together(stage, "cpu"):
        assert World().size == 2
        # Each process has its own folder here; in a real run rank 0 alone writes, to a folder that both see.
        result = run(stage, folder, out / str(rank), None if full else tiny.LORA, per_device_train_batch_size=batch)
    assert "WORLD_SIZE" not in os.environ
    torch.save(result, out / f"{rank}.pt")
    processes.finish() if rank == 0 else list(processes.tasks())


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "raft"])
def test_two_processes_match_a_single_process(folder, tmp_path, stage, full):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, stage, folder, tmp_path, full), nprocs=2)
    (tensors, log, metrics), (nothing, other_log, _) = (torch.load(tmp_path / f"{i}.pt") for i in (0, 1))
    assert not nothing, "only rank 0 writes"
    batch = 3 if stage == "reward" else 5
    single = run(stage, folder, tmp_path / "alone", None if full else tiny.LORA, per_device_train_batch_size=batch)
    close(tensors, single[0])
    assert [step for step, _ in log] == [step for step, _ in single[1]]
    for (step, logged), (_, expected), (_, other) in zip(log, single[1], other_log, strict=True):
        for name, number in expected.items():
            if name in ("loss", "grad_norm", "learning_rate", "eval_loss", "num_tokens"):
                assert logged[name] == pytest.approx(number, rel=1e-4), (step, name)
                assert logged[name] == other[name]
    for name, number in single[2].items():
        if isinstance(number, float):
            assert metrics[name] == pytest.approx(number, rel=1e-3, abs=1e-4), name
