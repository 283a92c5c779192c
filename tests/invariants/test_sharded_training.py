"""Sharded SFT, reward training and DPO train the same model as a single process, interrupted or not, and resume on
another number of processes."""

import os
import shutil

import processes
import pytest
import test_shared_training as shared
import tiny
import torch
import torch.multiprocessing as mp
from test_shared_training import folder  # noqa: F401 (a fixture)
from torch.distributed.tensor import DTensor

from pipeline.engine.processes import Processes
from stages.models.distributed import World
from stages.training import batches

BATCH = {"sft": 5, "reward": 3, "dpo": 5}
# Steps of five (three) on two processes, two rows per pass: unequal passes. One process has no share of an epoch's
# last step.
VALUES = {"micro": 2, "save_steps": 2, "weight_decay": 0.01, "max_grad_norm": 0.5}
INTERRUPTED = 4
LORA = {"lora": tiny.LORA, "full": None}


class Killed(Exception):
    pass


def recording_step(killed_at=None):
    """A training step that records the bytes of weights and optimizer state on this process, and those records.

    The step number `killed_at` raises Killed."""
    steps, resident = [], []
    step = batches.GlobalBatchTrainer.training_step

    def training_step(trainer, *args):
        steps.append(1)
        if len(steps) == killed_at:
            raise Killed
        states = trainer.optimizer.state.values()
        tensors = [*trainer.model.parameters(), *(v for s in states for name, v in s.items() if name != "step")]
        locals_ = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
        resident.append(sum(t.untyped_storage().nbytes() for t in locals_))
        loss = step(trainer, *args)
        for parameter in trainer.model.parameters():
            if parameter.grad is not None:
                assert isinstance(parameter.grad, DTensor) == isinstance(parameter, DTensor)
        return loss

    return training_step, resident


def spawn(count, work, *arguments):
    mp.spawn(_join, args=(count, processes.free_port(), work, arguments), nprocs=count)


def _join(rank, count, port, work, arguments):
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    joined = Processes.join(count)
    with joined.together("stage", "cpu"):
        work(*arguments)
    joined.finish() if rank == 0 else list(joined.tasks())


def run(stage, kind, inputs, out, **values):
    batch = {"per_device_train_batch_size": BATCH[stage]}
    return shared.run(stage, inputs, out, LORA[kind], **VALUES, **batch, **values)


def train(stage, kind, inputs, out):
    """Trains; then again, killed and resumed."""
    rank, values = World().rank, {"sharded": True, "gradient_checkpointing": True}
    training_step, resident = recording_step()
    patch = pytest.MonkeyPatch()
    with patch.context() as during:
        during.setattr(batches.GlobalBatchTrainer, "training_step", training_step)
        undisturbed = run(stage, kind, inputs, out / f"whole {rank}", state=out / "whole", **values)
    training_step, _ = recording_step(INTERRUPTED)
    with patch.context() as during:
        during.setattr(batches.GlobalBatchTrainer, "training_step", training_step)
        with pytest.raises(Killed):
            run(stage, kind, inputs, out / f"first {rank}", state=out / "killed", **values)
    if rank == 0:
        shutil.copytree(out / "killed", out / "copy")
    World().wait()
    resumed = run(stage, kind, inputs, out / f"second {rank}", state=out / "killed", **values)
    torch.save({"undisturbed": undisturbed, "resumed": resumed, "resident": resident}, out / f"{rank}.pt")


def resume(stage, kind, inputs, state, out):
    tensors, log, _ = run(stage, kind, inputs, out / f"of {World().rank}", sharded=True, state=state)
    if World().rank == 0:
        torch.save({"tensors": tensors, "steps": [step for step, values in log if "loss" in values]}, out / "0.pt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_two_sharded_processes_match_a_single_process(folder, tmp_path, monkeypatch, stage, kind):  # noqa: F811
    spawn(2, train, stage, kind, folder, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    training_step, single_resident = recording_step()
    monkeypatch.setattr(batches.GlobalBatchTrainer, "training_step", training_step)
    tensors, log, _ = run(stage, kind, folder, tmp_path / "alone")
    shared.close(first["undisturbed"][0], tensors)
    shared.close(first["resumed"][0], first["undisturbed"][0], tolerance=0)
    for (step, actual), (_, expected) in zip(first["undisturbed"][1], log, strict=True):
        for name in {"loss", "grad_norm", "learning_rate", "num_tokens", "eval_accuracy"} & expected.keys():
            assert actual[name] == pytest.approx(expected[name], rel=1e-4), (step, name)
    assert not second["undisturbed"][0], "only rank 0 writes"
    # A single process resumes from the sharded run's checkpoint.
    steps = len(single_resident)
    from_checkpoint, _, _ = run(stage, kind, folder, tmp_path / "after", state=tmp_path / "copy")
    shared.close(from_checkpoint, tensors)
    assert 0 < len(single_resident) - steps < steps
    for resident in (first["resident"], second["resident"]):
        assert 0.4 * single_resident[-1] < resident[-1] < 0.6 * single_resident[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "kind"), [("sft", "lora"), ("dpo", "lora")])
def test_a_single_process_s_run_resumes_on_four(folder, tmp_path, monkeypatch, stage, kind):  # noqa: F811
    training_step, _ = recording_step(INTERRUPTED)
    with monkeypatch.context() as during:
        during.setattr(batches.GlobalBatchTrainer, "training_step", training_step)
        with pytest.raises(Killed):
            run(stage, kind, folder, tmp_path / "first", state=tmp_path / "state")
    expected, log, _ = run(stage, kind, folder, tmp_path / "alone")
    spawn(4, resume, stage, kind, folder, tmp_path / "state", tmp_path)
    actual = torch.load(tmp_path / "0.pt")
    shared.close(actual["tensors"], expected)
    assert actual["steps"] == [step for step, values in log if "loss" in values and step > 2]
