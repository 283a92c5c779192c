"""PPO converges to the exact optimum of its objective, on a problem whose responses can be enumerated."""

import enumerable
import pytest
import torch

from pipeline.config.ppo import KLConfig
from stages.ppo import experience

UPDATES = 60


@pytest.mark.parametrize(
    ("kind", "values", "gap"),
    [
        ("full", {}, 0.08),
        ("full", {"value": "adapter"}, 0.05),
        ("full", {"num_ppo_epochs": 1, "num_mini_batches": 1}, 0.09),
        ("lora", {}, 0.09),
    ],
    ids=["full with a trunk", "full with a value adapter", "full in one epoch", "LoRA with a trunk"],
)
def test_the_policy_converges_to_the_optimum_of_the_objective(kind, values, gap):
    """A KL of the policy from the optimum of 0.7 at the start; the mean KL from the reference is the optimum's."""
    beta = 0.5
    trainer = enumerable.make(kind, beta=beta, total_episodes=UPDATES * 256, **values)
    before = enumerable.distance(trainer.bank, beta)
    for _ in range(trainer.updates):
        trainer.step()
    after = enumerable.distance(trainer.bank, beta)
    assert before["gap"] > 0.6
    assert after["gap"] < gap, (before, after)
    assert after["kl"] == pytest.approx(after["optimal_kl"], rel=0.2)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_mean_kl_penalty_is_the_enumerated_kl(temperature):
    trainer = enumerable.make(
        beta=0.5, total_episodes=8192, batch_size=8192, temperature=temperature, distinct=True
    )
    exact = enumerable.distance(trainer.bank, 0.5, temperature)["kl"]
    assert exact > 0.1
    assert data_of(trainer).metrics["objective/kl"] == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_first_gradient_is_that_of_the_enumerated_objective(kind):
    """With lambda 1 and a critic of zero, advantages are rewards-to-go less a constant, which is unbiased."""
    beta = 0.3
    trainer = enumerable.make(kind, beta=beta, total_episodes=16384, batch_size=16384, lam=1.0, vf_coef=0.0)
    data = data_of(trainer)
    parameters = trainer.bank.parameters_of("policy")
    with trainer.bank.active("policy", train=True) as actor:
        rows = torch.arange(len(data.episodes))
        count = float(data.episodes.mask_BT.sum())
        trainer.optimisation.policy_gradients(actor, data, rows, count, None, trainer.generator)
    sampled = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    enumerable.gradients(trainer.bank, beta)
    pairs = [(g, p.grad) for g, p in zip(sampled, parameters, strict=True) if p.grad is not None]
    sampled, exact = (torch.cat([tensor.flatten() for tensor in side]) for side in zip(*pairs, strict=True))
    assert float(torch.cosine_similarity(sampled, exact, dim=0)) > 0.99


def test_the_solved_coefficient_is_that_of_the_enumerated_optimum():
    target = 0.5
    kl = KLConfig(kind="solved", target=target, num_generations=64, num_prompts=3)
    estimates = []
    for seed in range(5):
        trainer = enumerable.make(beta=0.5, total_episodes=256, kl=kl, seed=seed)
        trainer.start()
        estimates.append(enumerable.distance(trainer.bank, trainer.kl.value)["optimal_kl"])
    assert sum(estimates) / len(estimates) == pytest.approx(target, rel=0.1), estimates


def data_of(trainer):
    prompts = trainer.next_prompts()
    episodes = trainer.sample(prompts, record=True)
    scores = trainer.reward(prompts, episodes.responses)
    return experience.build(trainer.bank, episodes, scores, scores, trainer.config, trainer.kl.value, trainer.world)
