"""PPO whose roles are divided among processes makes the model that one makes, and each holds a part of it."""

import socket
from types import SimpleNamespace

import ppo_case
import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from stages.models.bank import checkpoint_activations
from stages.scoring.reward_model import RewardEnsemble
from stages.scoring.scorer import TokenScorer

# Nine episodes in minibatches of three, row by row, among two processes: shares and numbers of passes are unequal.
VALUES = ppo_case.EVERYTHING | {
    "total_episodes": 36,
    "batch_size": 9,
    "num_mini_batches": 3,
    "micro_batch_size": 1,
    "rollout_batch_size": 3,
    "weight_decay": 0.01,
    "target_kl": 0.5,
}
STEPS = 3
CODEC = SimpleNamespace(ended_as_trained=list)


def make(value, *, sharded, checkpointing=False):
    bank = tiny.full_bank(value=value, seed=2)
    if sharded:
        bank.shard("cpu")
    if checkpointing:
        checkpoint_activations(bank)
    scorer = TokenScorer(RewardEnsemble(bank, ["reward"]), CODEC, "cpu", batch_size=2)
    return ppo_case.make("full", bank=bank, scorer=scorer, value=value, **VALUES)


def result(trainer, metrics):
    return {
        "weights": ppo_case.weights(trainer),
        "metrics": metrics,
        "kl": trainer.kl.value,
        "scores": trainer.normalizer.state_dict(),
        "sums": {role: trainer.bank.checksum(role) for role in trainer.bank.roles},
    }


def resident(trainer):
    """Bytes that this process holds of parameters and moments, and whether each is a part."""
    kept, divided = 0, True
    moments = [
        v
        for o in trainer.optimisation.optimizers.values()
        for s in o.state.values()
        for k, v in s.items()
        if k != "step"
    ]
    for tensor in [*trainer.bank.parameters(), *moments]:
        divided &= isinstance(tensor, DTensor)
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        kept += local.untyped_storage().nbytes()
    return kept, divided


def worker(rank, port, value, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    trainer = make(value, sharded=True)
    trainer.start()
    metrics = []
    for step in range(STEPS):
        metrics.append(trainer.step())
        if step == 0:
            state = trainer.state_dict()
            if rank == 0:
                torch.save(state, folder / "checkpoint.pt")
    found = result(trainer, metrics) | {"resident": resident(trainer)}
    trainer.check_frozen()
    dist.barrier()
    again = make(value, sharded=True, checkpointing=True)
    torch.rand(13)
    again.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True, mmap=True))
    found["again"] = result(again, [again.step() for _ in range(1, STEPS)])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_two_processes_with_a_part_each_are_one(tmp_path, value):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, value, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    trainer = make(value, sharded=False)
    trainer.start()
    before = ppo_case.weights(trainer)
    alone = result(trainer, [trainer.step() for _ in range(STEPS)])
    moved = max(float((alone["weights"][name] - before[name]).abs().max()) for name in before)
    assert moved > 1e-2, "the updates must move the weights"
    ppo_case.assert_close(first["weights"], alone["weights"], tolerance=2e-5)
    assert not second["weights"], "whole weights are gathered for rank 0"
    assert first["sums"] == second["sums"]
    assert first["kl"] == pytest.approx(alone["kl"], rel=1e-5)
    assert first["scores"] == pytest.approx(alone["scores"], rel=1e-5)
    for ours, others, theirs in zip(first["metrics"], second["metrics"], alone["metrics"], strict=True):
        for name, number in theirs.items():
            if "second" not in name and name != "mfu" and not name.startswith("time/"):
                assert ours[name] == pytest.approx(number, rel=1e-3, abs=1e-5), name
                assert ours[name] == others[name], name
    # Each holds about a half, at rest, of weights and moments alike.
    whole, _ = resident(trainer)
    for kept, divided in (first["resident"], second["resident"]):
        assert divided
        assert 0.4 * whole < kept < 0.6 * whole
    # Killed after the first update and resumed, here with layers recomputed: the same to the bit.
    assert first["again"]["sums"] == first["sums"]
    assert first["again"]["kl"] == first["kl"]
    # Its checkpoint is anybody's.
    trainer = make(value, sharded=False)
    trainer.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    for _ in range(1, STEPS):
        trainer.step()
    ppo_case.assert_close(ppo_case.weights(trainer), first["weights"], tolerance=2e-5)
