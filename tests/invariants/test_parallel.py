"""Micro-batches and the number of processes do not change the result."""

import socket

import ppo_case
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.config.ppo import KLConfig, ScoreConfig

KINDS = [("lora", "adapter"), ("lora", "trunk"), ("full", "adapter")]


@pytest.mark.parametrize(("kind", "value"), KINDS)
def test_micro_batches_do_not_change_an_update(kind, value):
    lengths = []

    def scorer(prompts, responses):
        lengths.extend(map(len, responses))
        return ppo_case.varied(prompts, responses)

    results = {}
    for size in (None, 1, 2, 4):
        trainer = ppo_case.make(kind, value=value, micro_batch_size=size, scorer=scorer, **ppo_case.EVERYTHING)
        before = ppo_case.weights(trainer)
        results[size] = (trainer.step(), ppo_case.weights(trainer))
    assert len(set(lengths)) > 2, f"responses must be of unequal lengths: {lengths}"
    metrics, expected = results[None]
    moved = max(float((expected[name] - before[name]).abs().max()) for name in expected)
    assert moved > 1e-3, "the update must move the weights"
    for size in (1, 2, 4):
        ppo_case.assert_close(results[size][1], expected, tolerance=1e-3 * moved)
        for name, number in metrics.items():
            if "second" not in name and name != "mfu" and not name.startswith("time/"):
                assert results[size][0][name] == pytest.approx(number, rel=1e-3, abs=1e-5), (size, name)


@pytest.mark.parametrize("rollout_batch_size", [1, 3])
def test_rollout_batches_do_not_change_an_update(rollout_batch_size):
    full, parts = ppo_case.make(), ppo_case.make(rollout_batch_size=rollout_batch_size)
    full.step()
    parts.step()
    ppo_case.assert_close(ppo_case.weights(parts), ppo_case.weights(full), tolerance=1e-5)


# Minibatches of two on two processes: sometimes one process has no share.
SHARED = ppo_case.EVERYTHING | {"num_mini_batches": 4, "target_kl": 0.5}
WHOLE = {"value": "trunk", "gamma": 1.0, "whiten_rewards": False, "cliprange_high": 0.3}


def coarse(prompts, responses):
    """Equal for most responses."""
    return torch.tensor([float(sum(response) % 3 == 0) for response in responses])


CASES = {
    "adapter": {"value": "adapter"},
    "trunk": {"value": "trunk"},
    "no-critic": {"value": "trunk", "advantage_estimator": "reinforce", "num_generations": 2},
    "no-critic-alone": {"value": "trunk", "advantage_estimator": "reinforce"},
    "terms": {"reward": ppo_case.TERMS, "scorer": ppo_case.TERM_SCORES},
    "running": {
        "value": "trunk",
        "advantage_estimator": "reinforce",
        "baseline": "running",
        "normalize_advantages": False,
        "loss_type": "dapo",
    },
    "rloo": WHOLE | {"advantage_estimator": "rloo", "num_generations": 2},
    # A single prompt, on both processes.
    "grpo": WHOLE | {"advantage_estimator": "grpo", "num_generations": 8},
    # Few distinct rewards: some prompts of each batch are replaced.
    "resampled": WHOLE
    | {
        "advantage_estimator": "grpo",
        "num_generations": 2,
        "max_resamples": 2,
        "scorer": coarse,
        "score": ScoreConfig(normalization="none"),
        "missing_eos_penalty": None,
    },
    "solved": {"kl": KLConfig(kind="solved", target=0.2, num_prompts=7, num_generations=9), "score": ScoreConfig()},
}
STEPS = 2


def run_steps(case):
    trainer = ppo_case.make(**SHARED | CASES[case])
    if case == "solved":
        trainer.start()
    metrics = [trainer.step() for _ in range(STEPS)]
    if case == "resampled":
        assert all(numbers["objective/resampled"] > 0 for numbers in metrics)
    return {
        "weights": ppo_case.weights(trainer),
        "metrics": metrics,
        "kl": trainer.kl.value,
        "scores": trainer.normalizer.state_dict(),
    }


def worker(rank, port, case, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(run_steps(case), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_match_a_single_process(tmp_path, case):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, case, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    single_process = run_steps(case)
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name]), f"the processes differ in {name}"
    ppo_case.assert_close(first["weights"], single_process["weights"], tolerance=2e-5)
    assert first["kl"] == pytest.approx(single_process["kl"], rel=1e-5)
    if case == "terms":
        for name, statistics in single_process["scores"].items():
            assert first["scores"][name] == pytest.approx(statistics, rel=1e-5), name
    else:
        assert first["scores"] == pytest.approx(single_process["scores"], rel=1e-5)
    for actual, expected in zip(first["metrics"], single_process["metrics"], strict=True):
        for name, number in expected.items():
            if "second" not in name and name != "mfu" and not name.startswith("time/"):
                assert actual[name] == pytest.approx(number, rel=1e-3, abs=1e-5), name
