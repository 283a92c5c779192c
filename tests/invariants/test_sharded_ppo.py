"""PPO with sharded roles trains the same model as a single process, and each process holds one shard."""

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

# Nine episodes in minibatches of three, one row per pass, on two processes: unequal shares and numbers of passes.
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
    """Bytes of parameters and optimizer state on this process, and whether all tensors are sharded."""
    held, sharded = 0, True
    moments = [
        v
        for o in trainer.optimisation.optimizers.values()
        for s in o.optimizer.state.values()
        for k, v in s.items()
        if k != "step"
    ]
    for tensor in [*trainer.bank.parameters(), *moments]:
        sharded &= isinstance(tensor, DTensor)
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        held += local.untyped_storage().nbytes()
    return held, sharded


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
    outcome = result(trainer, metrics) | {"resident": resident(trainer)}
    trainer.frozen.check()
    dist.barrier()
    again = make(value, sharded=True, checkpointing=True)
    torch.rand(13)
    again.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True, mmap=True))
    outcome["again"] = result(again, [again.step() for _ in range(1, STEPS)])
    torch.save(outcome, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_two_sharded_processes_match_a_single_process(tmp_path, value):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, value, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    trainer = make(value, sharded=False)
    trainer.start()
    before = ppo_case.weights(trainer)
    single = result(trainer, [trainer.step() for _ in range(STEPS)])
    moved = max(float((single["weights"][name] - before[name]).abs().max()) for name in before)
    assert moved > 1e-2, "the updates must move the weights"
    ppo_case.assert_close(first["weights"], single["weights"], tolerance=2e-5)
    assert not second["weights"], "full weights are gathered on rank 0 only"
    assert first["sums"] == second["sums"]
    assert first["kl"] == pytest.approx(single["kl"], rel=1e-5)
    assert first["scores"] == pytest.approx(single["scores"], rel=1e-5)
    for metrics, other_metrics, expected in zip(
        first["metrics"], second["metrics"], single["metrics"], strict=True
    ):
        for name, number in expected.items():
            if "second" not in name and name != "mfu" and not name.startswith("time/"):
                assert metrics[name] == pytest.approx(number, rel=1e-3, abs=1e-5), name
                assert metrics[name] == other_metrics[name], name
    # Between steps each process holds about half of the weights and of the optimizer state.
    total, _ = resident(trainer)
    for held, is_sharded in (first["resident"], second["resident"]):
        assert is_sharded
        assert 0.4 * total < held < 0.6 * total
    # Resumed from the first update's checkpoint, with activation checkpointing: identical to the bit.
    assert first["again"]["sums"] == first["sums"]
    assert first["again"]["kl"] == first["kl"]
    # A single process can resume from the sharded run's checkpoint.
    trainer = make(value, sharded=False)
    trainer.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    for _ in range(1, STEPS):
        trainer.step()
    ppo_case.assert_close(ppo_case.weights(trainer), first["weights"], tolerance=2e-5)
