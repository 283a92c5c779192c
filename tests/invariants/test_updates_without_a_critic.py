"""Updates without a critic: how token losses add up, equal rewards, and dynamic sampling."""

import ppo_case
import pytest
import torch

from pipeline.config.ppo import KLConfig, ScoreConfig
from stages.ppo import experience

GRPO = {
    "value": "trunk",
    "advantage_estimator": "grpo",
    "num_generations": 2,
    "score": ScoreConfig(normalization="none", clip=None),
}


def coarse(prompts, responses):
    """Equal for most responses."""
    return torch.tensor([float(sum(response) % 3 == 0) for response in responses])


def data_of(trainer):
    prompts = trainer.next_prompts()
    episodes = trainer.sample(prompts, record=True)
    scores = trainer.reward(prompts, episodes.responses)
    return experience.build(trainer.bank, episodes, scores, scores, trainer.config, 0.3, trainer.world)


def gradient(trainer, data, rows, count):
    """The policy's gradient of a minibatch, as a vector."""
    with trainer.bank.active("policy", train=True) as actor:
        trainer.optimisation.policy_gradients(actor, data, rows, count, 1, trainer.generator)
    parts = [parameter.grad.flatten() for parameter in trainer.bank.parameters_of("policy")]
    vector = torch.cat(parts)
    for parameter in trainer.bank.parameters_of("policy"):
        parameter.grad = None
    return vector


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo", "dr_grpo", "grpo"])
def test_token_losses_add_up_as_the_loss_type_says(loss_type):
    """A minibatch's gradient is a sum of those of its responses, each divided by what docs/ppo.md says. The KL term
    is added up like the policy loss."""
    kl = KLConfig(kind="fixed", init=0.3, placement="loss", estimator="k2")
    values = GRPO | {"advantage_estimator": "rloo", "num_mini_batches": 2, "kl": kl}
    single, trainer = (ppo_case.make(loss_type=name, **values) for name in ("bnpo", loss_type))
    for other in (single, trainer):  # away from the reference, so that the KL has a gradient
        other.step()
    start = trainer.bank.state_of("policy")
    single.bank.load_state_of("policy", start)
    data = data_of(trainer)
    rows = torch.tensor([0, 3, 5, 6])
    lengths = data.episodes.response_lengths_B
    assert len(set(lengths[rows].tolist())) > 1
    sums = [gradient(single, data, row[None], 1.0) for row in rows]
    divisors = {
        "bnpo": [lengths[rows].sum()] * 4,
        "dapo": [lengths.sum() / 2] * 4,
        "dr_grpo": [4 * trainer.config.response_length] * 4,
        "grpo": [4 * length for length in lengths[rows]],
    }[loss_type]
    expected = sum(total / divisor for total, divisor in zip(sums, divisors, strict=True))
    actual = gradient(trainer, data, rows, float(lengths[rows].sum()))
    assert float(expected.norm()) > 1e-4
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)


def test_kl_in_the_loss_leaves_the_reward_alone():
    kl = {name: KLConfig(kind="fixed", init=0.3, placement=name) for name in ("reward", "loss")}
    values = GRPO | {"scale_rewards": "none"}
    for name, config in kl.items():
        trainer = ppo_case.make(kl=config, **values)
        trainer.step()
        data = data_of(trainer)
        mask, returns = data.episodes.mask_BT, data.returns_BT[:, 0]
        log_ratio = torch.where(mask, data.logp_BT - data.ref_logp_BT, 0.0).sum(1)
        scores = ppo_case.varied([], data.episodes.responses)
        assert float(log_ratio.abs().max()) > 0.01
        torch.testing.assert_close(returns, scores - 0.3 * log_ratio * (name == "reward"), rtol=1e-4, atol=1e-4)
        assert ("loss/kl_avg" in trainer.step()) == (name == "loss")


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_a_batch_of_equal_rewards_changes_nothing_and_training_goes_on(name):
    equal = [True]

    def scorer(prompts, responses):
        return torch.full((len(responses),), 0.7) if equal[0] else ppo_case.varied(prompts, responses)

    trainer = ppo_case.make(scorer=scorer, **GRPO | {"advantage_estimator": name, "kl": KLConfig(placement="loss")})
    before = ppo_case.weights(trainer)
    metrics = trainer.step()
    assert metrics["objective/equal_rewards"] == 1.0
    assert metrics["policy/grad_norm"] < 1e-6
    ppo_case.assert_close(ppo_case.weights(trainer), before, tolerance=0.0)
    equal[0] = False
    assert trainer.step()["objective/equal_rewards"] == 0.0
    assert any(not torch.equal(tensor, before[key]) for key, tensor in ppo_case.weights(trainer).items())


def test_prompts_with_equal_rewards_are_replaced(monkeypatch):
    batches = []
    build = experience.build

    def recorded(bank, episodes, scores, rewards, *args, **values):
        batches.append((episodes, scores, values["reuse"]))
        data = build(bank, episodes, scores, rewards, *args, **values)
        again = build(bank, episodes, scores, rewards, *args, **values | {"reuse": False})
        torch.testing.assert_close(data.logp_BT, again.logp_BT, rtol=1e-4, atol=1e-4)
        return data

    monkeypatch.setattr(experience, "build", recorded)
    plain, resampling = (ppo_case.make(scorer=coarse, max_resamples=limit, **GRPO) for limit in (0, 20))
    without, metrics = plain.step(), resampling.step()
    assert without["objective/equal_rewards"] > 0
    assert metrics["objective/equal_rewards"] == 0
    assert metrics["objective/resampled"] >= 4 * without["objective/equal_rewards"]
    (first, first_scores, _), (second, scores, reuse) = batches
    assert reuse
    assert torch.equal(scores, coarse([], second.responses)), "scores belong to the responses"
    for group in range(0, 8, 2):
        if first_scores[group] != first_scores[group + 1]:
            assert first.responses[group : group + 2] == second.responses[group : group + 2]
        assert scores[group] != scores[group + 1]
        lengths = second.prompt_lengths_B[group : group + 2].tolist()
        ids = [second.ids_BL[group + i, : lengths[i]].tolist() for i in range(2)]
        assert ids[0] == ids[1], "responses to the same prompt"


def test_the_number_of_resamples_is_bounded():
    scored = []

    def scorer(prompts, responses):
        scored.append(len(responses))
        return torch.zeros(len(responses))

    trainer = ppo_case.make(scorer=scorer, max_resamples=3, **GRPO)
    metrics = trainer.step()
    assert scored == [8] * 4
    assert metrics["objective/resampled"] == 12
    assert metrics["objective/equal_rewards"] == 1.0
