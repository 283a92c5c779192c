"""Sharded SFT, reward training and DPO train the same model as a single process, interrupted or not."""

import os
import shutil
import socket

import pytest
import test_shared_training as shared
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


def worker(rank, port, stage, inputs, out):
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = Processes.join(2)
    values = VALUES | {"sharded": True, "per_device_train_batch_size": BATCH[stage], "gradient_checkpointing": True}
    patch = pytest.MonkeyPatch()
    with processes.together(stage, "cpu"):
        training_step, resident = recording_step()
        with patch.context() as during:
            during.setattr(batches.GlobalBatchTrainer, "training_step", training_step)
            undisturbed = shared.run(stage, inputs, out / f"whole {rank}", None, state=out / "whole", **values)
        training_step, _ = recording_step(INTERRUPTED)
        with patch.context() as during:
            during.setattr(batches.GlobalBatchTrainer, "training_step", training_step)
            with pytest.raises(Killed):
                shared.run(stage, inputs, out / f"first {rank}", None, state=out / "killed", **values)
        if rank == 0:
            shutil.copytree(out / "killed", out / "copy")
        World().wait()
        resumed = shared.run(stage, inputs, out / f"second {rank}", None, state=out / "killed", **values)
    torch.save({"undisturbed": undisturbed, "resumed": resumed, "resident": resident}, out / f"{rank}.pt")
    processes.finish() if rank == 0 else list(processes.tasks())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_two_sharded_processes_match_a_single_process(folder, tmp_path, monkeypatch, stage):  # noqa: F811
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, stage, folder, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    training_step, single_resident = recording_step()
    monkeypatch.setattr(batches.GlobalBatchTrainer, "training_step", training_step)
    batch = BATCH[stage]
    tensors, log, _ = shared.run(
        stage, folder, tmp_path / "alone", None, per_device_train_batch_size=batch, **VALUES
    )
    shared.close(first["undisturbed"][0], tensors)
    shared.close(first["resumed"][0], first["undisturbed"][0], tolerance=0)
    for (step, actual), (_, expected) in zip(first["undisturbed"][1], log, strict=True):
        for name in {"loss", "grad_norm", "learning_rate", "num_tokens", "eval_accuracy"} & expected.keys():
            assert actual[name] == pytest.approx(expected[name], rel=1e-4), (step, name)
    assert not second["undisturbed"][0], "only rank 0 writes"
    # A single process can resume from the sharded run's checkpoint.
    steps = len(single_resident)
    from_checkpoint, _, _ = shared.run(
        stage,
        folder,
        tmp_path / "after",
        None,
        state=tmp_path / "copy",
        per_device_train_batch_size=batch,
        **VALUES,
    )
    shared.close(from_checkpoint, tensors)
    assert 0 < len(single_resident) - steps < steps
    for resident in (first["resident"], second["resident"]):
        assert 0.4 * single_resident[-1] < resident[-1] < 0.6 * single_resident[-1]
