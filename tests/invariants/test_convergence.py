"""The policy converges to the exact optimum of its objective, on a problem whose responses can be enumerated."""

import enumerable
import pytest
import torch

from pipeline.config.ppo import KLConfig
from stages.ppo import experience
from stages.ppo.losses import kl_loss, policy_loss

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


ESTIMATORS = {
    "reinforce, batch": {"advantage_estimator": "reinforce"},
    "reinforce, running": {
        "advantage_estimator": "reinforce",
        "baseline": "running",
        "normalize_advantages": False,
    },
    "rloo": {"advantage_estimator": "rloo", "num_generations": 4},
    "grpo": {"advantage_estimator": "grpo", "num_generations": 16, "loss_type": "dr_grpo"},
}
SOLVED = KLConfig(kind="solved", target=0.7, num_generations=64, num_prompts=3, placement="reward")


@pytest.mark.parametrize("case", ESTIMATORS)
def test_without_a_critic_the_policy_converges_to_the_optimum_at_the_solved_coefficient(case):
    trainer = enumerable.make(beta=0.5, kind="full", total_episodes=UPDATES * 256, kl=SOLVED, **ESTIMATORS[case])
    trainer.start()
    beta = trainer.kl.value
    before = enumerable.distance(trainer.bank, beta)
    for _ in range(trainer.updates):
        trainer.step()
    after = enumerable.distance(trainer.bank, beta)
    assert before["gap"] > 0.5
    assert after["gap"] < 0.08, (before, after)
    assert after["kl"] == pytest.approx(SOLVED.target, rel=0.2)


def test_with_kl_in_the_loss_the_policy_approaches_the_optimum_of_that_objective():
    """It is closer to it than to the optimum with KL in the reward."""
    beta, own = 0.5, enumerable.optimum_with_kl_in_the_loss("k3")
    kl = KLConfig(kind="fixed", init=beta)
    values = {"advantage_estimator": "grpo", "num_generations": 16, "loss_type": "dr_grpo", "scale_rewards": "none"}
    trainer = enumerable.make(beta=beta, kind="full", total_episodes=UPDATES * 256, kl=kl, **values)
    assert enumerable.distance(trainer.bank, beta, optimum=own)["gap"] > 0.9
    for _ in range(trainer.updates):
        trainer.step()
    gap = enumerable.distance(trainer.bank, beta, optimum=own)["gap"]
    assert gap < 0.17
    assert gap < 0.7 * enumerable.distance(trainer.bank, beta)["gap"]


@pytest.mark.parametrize(
    ("estimator", "corrected", "optimum"),
    [("k3", False, "k3"), ("k2", False, "reverse"), ("k3", True, "reverse"), ("k1", True, "reverse")],
)
def test_the_mean_gradient_vanishes_at_the_optimum_with_kl_in_the_loss(estimator, corrected, optimum):
    """Of the losses of all responses, weighted by their probability; by the logits of each prefix."""
    beta, bank = 0.5, enumerable.make("full", beta=0.5).bank
    prompt = enumerable.PROMPTS[1]
    norms = {}
    for name, policy in (
        (optimum, enumerable.optimum_with_kl_in_the_loss(optimum)),
        ("reward", enumerable.optimum),
    ):
        logp_BT = enumerable.by_token(policy(bank, prompt, beta)).float().requires_grad_()
        ref_BT = enumerable.by_token(enumerable.logprobs(bank, "reference", prompt)).float()
        probability_B = torch.where(enumerable.MASK, logp_BT, 0.0).sum(1).exp().detach()
        scores_B = enumerable.reward([prompt] * len(enumerable.RESPONSES), enumerable.RESPONSES)
        advantages_BT = (scores_B - probability_B @ scores_B)[:, None].expand(logp_BT.shape)
        shared = {"count": 1.0}
        for row, probability in enumerate(probability_B):
            rows = slice(row, row + 1)
            old_BT, mask_BT = logp_BT[rows].detach(), enumerable.MASK[rows]
            loss = policy_loss(logp_BT[rows], old_BT, advantages_BT[rows], mask_BT, cliprange=0.2, **shared).loss
            loss = loss + kl_loss(
                logp_BT[rows], old_BT, ref_BT[rows], mask_BT, coef=beta, estimator=estimator,
                use_bias_correction=corrected, **shared,
            ).loss  # fmt: skip
            (probability * loss).backward()
        norms[name] = enumerable.logit_gradient(logp_BT.detach(), logp_BT.grad)
    assert norms[optimum] < 1e-3 * 0.05
    assert norms["reward"] > 0.05


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
