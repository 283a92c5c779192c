"""PPO learns: a rewarded token becomes frequent, unless the KL penalty prevents it."""

import ppo_case
import pytest
import torch

from pipeline.config.ppo import KLConfig

TOKEN = 20
REWARDED_TOKEN = {
    "scorer": ppo_case.count_of(TOKEN),
    "bank_seed": 1,
    "batch_size": 64,
    "total_episodes": 12 * 64,
    "num_ppo_epochs": 3,
    "learning_rate": 2e-2,
    "value_learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "adam_epsilon": 1e-8,
}


def learn(kind="lora", **values):
    trainer = ppo_case.make(kind, **(REWARDED_TOKEN | values))
    return trainer, [trainer.step() for _ in range(trainer.updates)]


@pytest.mark.parametrize(("kind", "value"), [("lora", "adapter"), ("lora", "trunk"), ("full", "adapter")])
def test_a_rewarded_token_becomes_frequent(kind, value):
    _, metrics = learn(kind, value=value, kl=KLConfig(kind="fixed", init=0.02))
    scores = [m["objective/scores"] for m in metrics]
    assert scores[0] < 0.5, "the token must be rare at the start"
    assert scores[-1] > scores[0] + 2.0, scores
    assert metrics[-1]["objective/kl"] > 3.0, "a higher reward costs KL"


@pytest.mark.parametrize("num_generations", [1, 4])
def test_a_rewarded_token_becomes_frequent_without_a_critic(num_generations):
    trainer, metrics = learn(
        value="trunk",
        value_learning_rate=None,
        advantage_estimator="reinforce",
        num_generations=num_generations,
        kl=KLConfig(kind="fixed", init=0.02),
    )
    scores = [m["objective/scores"] for m in metrics]
    assert scores[-1] > scores[0] + 1.5, scores
    assert list(trainer.optimisation.optimizers) == ["policy"]
    assert not any(name.startswith("val/") and name != "val/ratio" for name in metrics[-1])
    assert "loss/value_avg" not in metrics[-1]


def test_a_huge_kl_coefficient_keeps_the_policy_at_its_reference():
    gentle = {"learning_rate": 3e-3, "lr_scheduler_type": "linear"}
    _, free = learn(kl=KLConfig(kind="fixed", init=0.0), **gentle)
    _, penalised = learn(kl=KLConfig(kind="fixed", init=100.0), **gentle)
    assert free[-1]["objective/kl_k3"] > 1.0
    assert penalised[-1]["objective/kl_k3"] < 0.2
    assert free[-1]["objective/scores"] > free[0]["objective/scores"] + 0.7
    assert abs(penalised[-1]["objective/scores"] - penalised[0]["objective/scores"]) < 0.3


def test_the_adaptive_controller_steers_towards_its_target():
    """The KL coefficient rises when it starts far too low and falls when it starts far too high."""
    short = {"total_episodes": 6 * 64}
    _, low = learn(kl=KLConfig(kind="adaptive", init=1e-3, target=0.05, horizon=200), **short)
    _, high = learn(kl=KLConfig(kind="adaptive", init=10.0, target=5.0, horizon=200), **short)
    assert low[-1]["objective/kl_coef"] > 1.1e-3
    assert high[-1]["objective/kl_coef"] < 10 / 1.2


def test_the_value_role_learns_to_predict_returns():
    _, metrics = learn(
        scorer=lambda prompts, _: torch.tensor([3.0 if len(prompt.ids) > 4 else -3.0 for prompt in prompts]),
        value_learning_rate=2e-2,
        learning_rate=1e-6,
        cliprange_value=10.0,
    )
    explained = [m["val/explained_variance"] for m in metrics]
    assert explained[-1] > 0.6 > explained[0], explained
