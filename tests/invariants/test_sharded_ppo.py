"""PPO with sharded roles trains the same model as a single process, each process holds one part, and a run resumes
on another number of processes."""

from types import SimpleNamespace

import ppo_case
import processes
import pytest
import tiny
import torch
from torch.distributed.tensor import DTensor

from stages.models import checkpoint
from stages.models.bank import checkpoint_activations
from stages.models.distributed import World
from stages.models.sharding import gathered, mesh_of
from stages.scoring.reward_model import RewardEnsemble
from stages.scoring.scorer import TokenScorer

# Nine episodes in minibatches of three, one row per pass: unequal shares and numbers of passes on two processes,
# and on four processes one without a share.
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


def make(kind, value, *, sharded, checkpointing=False, offload=False):
    bank = tiny.BANKS[kind](value=value, seed=2)
    if sharded:
        bank.shard(mesh_of("cpu"), offload=offload)
    if checkpointing:
        checkpoint_activations(bank)
    scorer = TokenScorer(RewardEnsemble(bank, ["reward"]), CODEC, "cpu", batch_size=2)
    return ppo_case.make(kind, bank=bank, scorer=scorer, value=value, **VALUES)


def result(trainer, metrics):
    return {
        "weights": {name: gathered(tensor) for name, tensor in ppo_case.weights(trainer).items()},
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


def train(kind, value, folder, offload):
    """Trains, with a checkpoint after the first update; then again from the checkpoint, recomputing activations."""
    rank, path = World().rank, folder / "checkpoint.pt"
    trainer = make(kind, value, sharded=True, offload=offload)
    trainer.start()
    metrics = []
    for step in range(STEPS):
        metrics.append(trainer.step())
        if step == 0:
            checkpoint.save(path, trainer.state_dict())
    outcome = result(trainer, metrics) | {"resident": resident(trainer)}
    trainer.frozen.check()
    outcome["again"] = resumed(make(kind, value, sharded=True, checkpointing=True), path)
    torch.save(outcome, folder / f"{rank} of {World().size}.pt")


def resume(kind, value, path):
    outcome = resumed(make(kind, value, sharded=True), path)
    if World().rank == 0:
        torch.save(outcome, path.with_suffix(".resumed"))


def resumed(trainer, path):
    torch.rand(13)
    trainer.load_state_dict(checkpoint.load(path, trainer.bank.mesh))
    return result(trainer, [trainer.step() for _ in range(1, STEPS)])


def single(kind, value, folder):
    """Trains in this process, with a checkpoint after the first update."""
    trainer = make(kind, value, sharded=False)
    trainer.start()
    before, metrics = ppo_case.weights(trainer), [trainer.step()]
    checkpoint.save(folder / "single.pt", trainer.state_dict())
    outcome = result(trainer, metrics + [trainer.step() for _ in range(1, STEPS)])
    moved = max(float((outcome["weights"][name] - before[name]).abs().max()) for name in before)
    assert moved > 1e-2, "the updates must move the weights"
    return outcome, resident(trainer)[0]


def assert_same_training(actual, expected):
    ppo_case.assert_close(actual["weights"], expected["weights"], tolerance=2e-5)
    assert actual["kl"] == pytest.approx(expected["kl"], rel=1e-5)
    assert actual["scores"] == pytest.approx(expected["scores"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_sharded_processes_match_a_single_process(tmp_path, kind, value):
    expected, total = single(kind, value, tmp_path)
    processes.spawn(2, train, kind, value, tmp_path, value == "trunk")
    first, second = (torch.load(tmp_path / f"{rank} of 2.pt", weights_only=True) for rank in (0, 1))
    assert_same_training(first, expected)
    assert first["sums"] == second["sums"]
    for one, other, numbers in zip(first["metrics"], second["metrics"], expected["metrics"], strict=True):
        for name, number in numbers.items():
            if "second" not in name and name != "mfu" and not name.startswith("time/"):
                assert one[name] == pytest.approx(number, rel=1e-3, abs=1e-5), name
                assert one[name] == other[name], name
    # Between steps each process holds about half of the weights and of the optimizer state. (A rank-2 adapter and a
    # head of one row cannot be halved exactly.)
    for held, is_sharded in (first["resident"], second["resident"]):
        assert is_sharded
        assert 0.45 * total < held < 0.6 * total
    # Resumed from the first update's checkpoint, recomputing activations: identical to the bit.
    assert first["again"]["sums"] == first["sums"]
    assert first["again"]["kl"] == first["kl"]
    # A single process resumes from it too.
    assert_same_training(resumed(make(kind, value, sharded=False), tmp_path / "checkpoint.pt"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "before"), [("full", 1), ("lora", 2)])
def test_a_run_resumes_on_four_processes(tmp_path, kind, before):
    expected, _ = single(kind, "adapter", tmp_path)
    saved = tmp_path / "single.pt"
    if before > 1:
        processes.spawn(before, train, kind, "adapter", tmp_path, False)
        saved = tmp_path / "checkpoint.pt"
    processes.spawn(4, resume, kind, "adapter", saved)
    assert_same_training(torch.load(saved.with_suffix(".resumed"), weights_only=True), expected)
