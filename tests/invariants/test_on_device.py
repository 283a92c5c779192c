"""What must hold on every device, on the one that `--device` names (`make test-device DEVICE=mps`).

In float32, so that tokens and numbers can be compared with each other and with the CPU's.
"""

import copy
import math

import ppo_case
import pytest
import tiny
import torch

from pipeline.config.ppo import PPOConfig
from stages.models.fast import packing
from stages.ppo import experience
from stages.sampling.episodes import Episodes
from stages.sampling.sampler import BuiltinSampler, SamplingParams

KINDS = list(tiny.BANKS)
PROMPTS = tiny.rows(9, 1, 12, seed=3)
PARAMS = SamplingParams(max_new_tokens=20, stop_ids=ppo_case.STOPS, temperature=0.8)
EXACT = {"cpu": 0.0}
"""Largest difference of weights between runs that do the same work. Elsewhere sums may change their order."""


def sampled(bank, role="policy", batch=None, prompts=PROMPTS, params=PARAMS, record=False):
    with bank.active(role, decode=True) as actor:
        return BuiltinSampler(tiny.PAD, batch).sample(actor, prompts, params, 5, record=record)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_on_the_device(device, kind):
    trainer = ppo_case.make(kind, device=device)
    trainer.step()
    assert {p.device.type for p in trainer.bank.parameters()} == {device}
    optimizers = [role.optimizer for role in trainer.optimisation.optimizers.values()]
    moments = [state["exp_avg"] for optimizer in optimizers for state in optimizer.state.values()]
    assert moments
    assert {moment.device.type for moment in moments} == {device}
    episodes = trainer.sample(trainer.next_prompts())
    assert {episodes.ids_BL.device.type, episodes.mask_BT.device.type} == {device}
    assert episodes.lengths_B.device.type == "cpu", "the host knows the lengths"


def test_tokens_do_not_depend_on_what_shares_the_batch(device):
    bank = tiny.lora_bank(distinct=True).to(device)
    whole = sampled(bank).responses
    assert len({len(response) for response in whole}) > 3
    for batch in (1, 2, 4):
        assert sampled(bank, batch=batch).responses == whole


def test_log_probs_of_sampling_equal_those_of_a_pass(device):
    """With entropies and values. On other devices than a CPU, rows are refilled in slots."""
    bank = tiny.lora_bank(distinct=True, value="trunk").to(device)
    episodes = sampled(bank, batch=4, record=True)
    config = PPOConfig(temperature=0.8)
    scores = experience.score_tokens(bank, "policy", episodes, config, entropy=True, with_values=True)
    recorded = experience.TokenScores.sampled(episodes)
    for name in ("logp_BT", "entropy_BT", "values_BT"):
        torch.testing.assert_close(getattr(recorded, name), getattr(scores, name), atol=1e-4, rtol=0)
    assert (scores.logp_BT[episodes.mask_BT] < 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_equal_padded_rows(device, kind, monkeypatch):
    """Hidden states and gradients."""
    bank = tiny.BANKS[kind]().to(device)
    responses = [[*row, tiny.EOS] for row in tiny.rows(len(PROMPTS), 1, 15, seed=4)]
    episodes = Episodes.build(PROMPTS, responses, ppo_case.STOPS, tiny.PAD, device)
    results = []
    for worth in (0.01, 1.0):
        monkeypatch.setattr(packing, "WORTH", worth)
        assert (episodes.packing is None) == (worth == 1.0)
        with bank.active("policy", train=True) as actor:
            hidden = episodes.predicting_hidden(episodes.hidden(actor))
            hidden.square().sum().backward()
        gradients = [p.grad.clone() for p in bank.parameters_of("policy") if p.grad is not None]
        bank.zero_grad()
        results.append((hidden.detach(), gradients))
    (packed, packed_gradients), (padded, padded_gradients) = results
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)
    assert packed_gradients
    for one, other in zip(packed_gradients, padded_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_kl_is_zero_and_the_ratio_is_one_before_the_first_step(device, kind):
    metrics = ppo_case.make(kind, device=device, learning_rate=1e-12, temperature=0.7).step()
    assert metrics["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["objective/kl_k3"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["policy/clipfrac_avg"] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_do_not_change_an_update(device, kind):
    trainers = [ppo_case.make(kind, device=device, micro_batch_size=n, **ppo_case.EVERYTHING) for n in (4, 1)]
    for trainer in trainers:
        trainer.step()
    ppo_case.assert_close(ppo_case.weights(trainers[1]), ppo_case.weights(trainers[0]), tolerance=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one(device, kind):
    uninterrupted = ppo_case.make(kind, device=device, **ppo_case.EVERYTHING)
    uninterrupted.step()
    state = copy.deepcopy(uninterrupted.state_dict())
    uninterrupted.step()
    resumed = ppo_case.make(kind, device=device, seed=9, **ppo_case.EVERYTHING)
    resumed.load_state_dict(state)
    resumed.step()
    expected = ppo_case.weights(uninterrupted)
    ppo_case.assert_close(ppo_case.weights(resumed), expected, tolerance=EXACT.get(device, 1e-5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_an_update_matches_the_cpu(device, kind, value):
    """With every option on. The random numbers and so the tokens are the same; weights differ by the order of sums
    only."""
    if device == "cpu":
        pytest.skip("this is the CPU")
    values = ppo_case.EVERYTHING | {"value": value}
    trainers = [ppo_case.make(kind, device=name, **values) for name in ("cpu", device)]
    metrics = [trainer.step() for trainer in trainers]
    assert metrics[1]["objective/scores"] == pytest.approx(metrics[0]["objective/scores"], abs=1e-4)
    assert metrics[1]["objective/kl"] == pytest.approx(metrics[0]["objective/kl"], abs=1e-4)
    ppo_case.assert_close(ppo_case.weights(trainers[1]), ppo_case.weights(trainers[0]), tolerance=2e-4)


def test_sixteen_bits_pass_the_trainers_checks(device):
    """Ratio, KL, gradients and frozen roles, in bfloat16."""
    bank = tiny.lora_bank(value="trunk", seed=2, dtype=torch.bfloat16)
    trainer = ppo_case.make(bank=bank, value="trunk", device=device)
    for _ in range(2):
        metrics = trainer.step()
        assert all(math.isfinite(number) for number in metrics.values())
    assert metrics["sampling/kl_k3"] < 0.05
    trainer.frozen.check()
