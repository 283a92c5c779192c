"""A resumed run equals an uninterrupted run, bit for bit."""

import ppo_case
import pytest
import torch

from pipeline.config.ppo import AggregateConfig, KLConfig
from pipeline.config.terms import TermConfig
from pipeline.errors import StageError

KINDS = [("lora", "adapter"), ("lora", "trunk"), ("full", "adapter")]


def checksums(trainer):
    return {role: trainer.bank.checksum(role) for role in trainer.bank.roles}


@pytest.mark.parametrize(("kind", "value"), KINDS)
@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
def test_a_resumed_run_equals_an_uninterrupted_run(kind, value, scheduler, tmp_path):
    values = ppo_case.EVERYTHING | {
        "value": value,
        "lr_scheduler_type": scheduler,
        "warmup_updates": 1,
        "weight_decay": 0.01,
    }
    uninterrupted = ppo_case.make(kind, **values)
    uninterrupted.start()
    expected = [uninterrupted.step() for _ in range(4)]

    first = ppo_case.make(kind, **values)
    first.start()
    for _ in range(2):
        first.step()
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")

    second = ppo_case.make(kind, seed=99, **values)
    torch.rand(13)  # a new process has another state of the global generator
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    resumed = [second.step() for _ in range(2)]

    assert checksums(second) == checksums(uninterrupted)
    assert second.kl.value == uninterrupted.kl.value
    assert second.normalizer.state_dict() == uninterrupted.normalizer.state_dict()
    for actual, metrics in zip(resumed, expected[2:], strict=True):
        for name, number in metrics.items():
            if "second" not in name and name != "mfu" and not name.startswith("time/"):
                assert actual[name] == number, name


def test_the_running_statistics_of_every_term_are_resumed(tmp_path):
    values = ppo_case.EVERYTHING | {"reward": ppo_case.TERMS, "scorer": ppo_case.TERM_SCORES}
    uninterrupted = ppo_case.make(**values)
    expected = [uninterrupted.step() for _ in range(3)]
    first = ppo_case.make(**values)
    for _ in range(2):
        first.step()
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = ppo_case.make(seed=99, **values)
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    resumed = second.step()
    statistics = second.normalizer.state_dict()
    assert statistics == uninterrupted.normalizer.state_dict()
    assert {name for name, state in statistics.items() if state["count"]} == {"model", "scaled"}
    assert checksums(second) == checksums(uninterrupted)
    names = [name for name in resumed if name.startswith(("rewards/", "objective/"))]
    assert "rewards/scaled/applied" not in names  # a rigged scorer says that it always applies
    assert [resumed[name] for name in names] == [expected[2][name] for name in names]


def coarse(prompts, responses):
    """Few distinct scores, so that some prompts have responses with equal rewards."""
    return torch.tensor([float(sum(response) % 3 == 0) for response in responses])


COARSE_TERMS = AggregateConfig(
    terms=[TermConfig(name="trained", pattern="x"), TermConfig(name="shown", pattern="x", held_out=True)]
)


@pytest.mark.parametrize(
    "values",
    [
        {"advantage_estimator": "rloo", "num_generations": 2},
        {"advantage_estimator": "grpo", "num_generations": 4, "max_resamples": 2},
        {
            "advantage_estimator": "grpo",
            "num_generations": 4,
            "max_resamples": 2,
            "reward": COARSE_TERMS,
            "scorer": [coarse, ppo_case.varied],
        },
        {
            "advantage_estimator": "reinforce",
            "baseline": "running",
            "normalize_advantages": False,
            "kl": KLConfig(kind="adaptive", target=0.5, placement="loss"),
        },
    ],
    ids=["rloo", "grpo with resampling", "grpo with resampling and terms", "reinforce with a running baseline"],
)
def test_a_resumed_run_without_a_critic_equals_an_uninterrupted_run(values, tmp_path):
    values = {"value": "trunk", "scorer": coarse, "kl": ppo_case.EVERYTHING["kl"]} | values
    uninterrupted, first = ppo_case.make(**values), ppo_case.make(**values)
    expected = [uninterrupted.step() for _ in range(3)]
    first.step()
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = ppo_case.make(seed=99, **values)
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    for metrics in expected[1:]:
        for name, number in second.step().items():
            if "second" not in name and name != "mfu" and not name.startswith("time/"):
                assert metrics[name] == number, name
    assert checksums(second) == checksums(uninterrupted)
    assert second.kl.value == uninterrupted.kl.value
    assert "value" not in " ".join(second.state_dict()["roles"]), "no critic in the checkpoint"
    if values.get("max_resamples"):
        assert sum(metrics["objective/resampled"] for metrics in expected) > 0


def test_8_bit_optimizer_state_is_resumed(tmp_path):
    values = {"value": "trunk", "optimizer": "adamw_8bit"}

    def make(seed=0):
        trainer = ppo_case.make(seed=seed, **values)
        trainer.optimisation.optimizers["policy"].optimizer.args.min_8bit_size = 16  # these adapters are tiny
        return trainer

    uninterrupted, first = make(), make()
    for trainer, steps in ((uninterrupted, 3), (first, 2)):
        for _ in range(steps):
            trainer.step()
    moments = [state["state1"].dtype for state in first.optimisation.optimizers["policy"].optimizer.state.values()]
    assert torch.uint8 in moments
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = make(seed=99)
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    second.step()
    assert checksums(second) == checksums(uninterrupted)


def test_a_checkpoint_holds_all_state_that_an_update_changes(tmp_path):
    """Without any one of its entries, the resumed run differs."""
    values = ppo_case.EVERYTHING
    first = ppo_case.make(**values)
    first.step()
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    first.step()
    expected = checksums(first)
    same = []
    for left_out in ("nothing", "roles", "optimizers", "kl", "scores", "order", "cursor", "generator"):
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        second = ppo_case.make(seed=99, **values)
        if left_out != "nothing":
            state[left_out] = second.state_dict()[left_out]
        if left_out == "order":
            state["order"] = state["order"].flip(0)[: len(ppo_case.PROMPTS)]
            state["order"] = torch.arange(len(ppo_case.PROMPTS))
        second.load_state_dict(state)
        second.step()
        if checksums(second) == expected:
            same.append(left_out)
    assert same == ["nothing"]


def test_a_checkpoint_of_another_model_is_refused():
    state = ppo_case.make("full").state_dict()
    with pytest.raises(StageError, match="other parameters"):
        ppo_case.make("lora").load_state_dict(state)
