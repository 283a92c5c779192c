"""Upper bounds on host synchronisations, and results equal to those of the CPU."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import ppo_case
import pytest
import tiny
import torch
from simulated_device import NAME, counting

from pipeline.config.reward import RewardConfig
from stages.export.measure import ReferenceMetrics
from stages.models import checkpoint
from stages.models.actor import Actor
from stages.models.quantization import grids
from stages.ppo.advantages import gae, masked_moments, token_rewards, whiten
from stages.ppo.trainer import PPOTrainer
from stages.reward.groups import Order
from stages.reward.training import objective_of, ranking_loss
from stages.sampling.decoding import Record, generate
from stages.scoring.reward_model import RewardModel, score_rows

PROMPTS = tiny.rows(7, 1, 9, seed=3)
STOPS = {tiny.EOS, *range(9, 45, 6)}


def sampled(device: str, length: int, stops: set[int], **values: Any) -> tuple[list[list[int]], int]:
    """Responses, and the number of host synchronisations."""
    actor = Actor(tiny.lm(3).to(device))
    uniform = torch.rand((len(PROMPTS), length), generator=torch.Generator().manual_seed(2))
    with counting() as syncs:
        responses = generate(actor, PROMPTS, uniform, temperature=0.8, stop_ids=stops, pad_id=tiny.PAD, **values)
    return responses, syncs.total()


def test_decoding_synchronises_once_per_sixteen_tokens():
    endless = {tiny.VOCABULARY + 5}
    _, short = sampled(NAME, 16, endless)
    _, long = sampled(NAME, 80, endless)
    assert long - short == (80 - 16) / 16
    assert short <= 6, "only at the start and at the end of a batch"


@pytest.mark.parametrize("batch_size", [None, 3])
def test_responses_match_the_cpu(batch_size):
    expected, _ = sampled("cpu", 30, STOPS, batch_size=batch_size)
    responses, syncs = sampled(NAME, 30, STOPS, batch_size=batch_size)
    assert responses == expected
    lengths = {len(response) for response in responses}
    assert len(lengths) > 3, "the test needs short and long responses"
    batches = -(-len(PROMPTS) // (batch_size or len(PROMPTS)))
    assert syncs <= 3 + batches * (3 + max(lengths) // 8)


def test_the_record_of_a_rollout_matches_the_cpu():
    records = {}
    for device in ("cpu", NAME):
        bank = tiny.lora_bank(value="trunk", distinct=True).to(device)
        record = records[device] = Record.empty((len(PROMPTS), 20), device)
        uniform = torch.rand((len(PROMPTS), 20), generator=torch.Generator().manual_seed(2))
        with bank.active("policy", decode=True) as actor:
            responses = generate(
                actor, PROMPTS, uniform, temperature=0.8, stop_ids=STOPS, pad_id=tiny.PAD, record=record
            )
    for row, response in enumerate(responses):
        for name in ("logp_BT", "entropy_BT", "values_BT"):
            actual, expected = (
                getattr(records[device], name)[row, : len(response)].cpu() for device in (NAME, "cpu")
            )
            torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0, msg=name)


# --- Training -----------------------------------------------------------------------------------------------------


def optimised(**values: Any) -> tuple[PPOTrainer, Counter[tuple[str, str]], dict[str, float]]:
    """Runs an update on the device. Returns the trainer, the synchronisations of its optimisation, and metrics."""
    recorded: dict[str, Any] = {}
    trainer = ppo_case.make(device=NAME, **values)
    optimise = trainer.optimisation.run

    def counted(*arguments: Any) -> dict[str, float]:
        with counting() as syncs:
            metrics = optimise(*arguments)
        recorded["syncs"] = syncs
        return metrics

    trainer.optimisation.run = counted  # type: ignore[method-assign]
    metrics = trainer.step()
    return trainer, recorded["syncs"], metrics


KINDS = [
    ("lora", "trunk"),
    pytest.param("lora", "adapter", marks=pytest.mark.slow),
    pytest.param("full", "trunk", marks=pytest.mark.slow),
    pytest.param("full", "adapter", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "value"), KINDS)
def test_training_synchronises_once_per_optimizer_step(kind, value):
    """For any number of micro-batches: copies of the minibatch's rows and of demonstrations to the device, and one
    copy of the sums back."""
    for size in (None, 1):
        _, syncs, metrics = optimised(kind=kind, value=value, micro_batch_size=size, **ppo_case.EVERYTHING)
        steps = metrics["optimizer_steps"]
        of_policy = steps / 2 if value == "adapter" else steps
        counts = Counter(kind for kind, _ in syncs.elements())
        assert counts == {"host to device": steps + 3 * of_policy, "tolist": steps}


@pytest.mark.parametrize(("kind", "value"), KINDS)
def test_updates_match_the_cpu(kind, value):
    values = {"kind": kind, "value": value, "micro_batch_size": 3, **ppo_case.EVERYTHING}
    expected, on_device = ppo_case.make(**values), ppo_case.make(device=NAME, **values)
    for _ in range(2):
        expected_metrics, metrics = expected.step(), on_device.step()
        for name in expected_metrics:
            if not name.startswith("time/") and name not in ("tokens_per_second", "mfu"):
                assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-3, abs=1e-4), name
    ppo_case.assert_close(ppo_case.weights(on_device), ppo_case.weights(expected), 2e-4)


def test_an_update_synchronises_rarely_outside_optimizer_steps():
    trainer = ppo_case.make(device=NAME, **(ppo_case.EVERYTHING | {"ptx_coef": 0.0}))
    trainer.step()
    with counting() as syncs:
        metrics = trainer.step()
    assert syncs.total() <= 40 + 2 * metrics["optimizer_steps"]


@pytest.mark.slow
def test_a_checkpoint_resumes_on_the_device(tmp_path):
    values = {"device": NAME, "value": "trunk", **ppo_case.EVERYTHING}
    expected, resumed = ppo_case.make(**values), ppo_case.make(**values)
    expected.step()
    checkpoint.save(tmp_path / "checkpoint.pt", {"trainer": expected.state_dict()})
    expected.step()
    resumed.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt")["trainer"])
    resumed.step()
    ppo_case.assert_close(ppo_case.weights(resumed), ppo_case.weights(expected), 0.0)


def test_advantage_estimation_matches_the_cpu():
    torch.manual_seed(0)
    values, mask = 1e4 + torch.randn(6, 9), torch.rand(6, 9) > 0.3
    for function in (masked_moments, whiten):
        actual, expected = function(values.to(NAME), mask.to(NAME)), function(values, mask)
        torch.testing.assert_close([x.cpu() for x in actual], list(expected), rtol=0, atol=0)
    score = torch.randn(6)
    rewards = token_rewards(values, score, mask)
    torch.testing.assert_close(token_rewards(values.to(NAME), score, mask.to(NAME)).cpu(), rewards)
    on_device = gae(rewards.to(NAME), values.to(NAME), mask.to(NAME), 0.9, 0.8)
    for actual, expected in zip(on_device, gae(rewards, values, mask, 0.9, 0.8), strict=True):
        torch.testing.assert_close(actual.cpu(), expected)


@pytest.mark.parametrize("name", grids.GRIDS)
def test_quantisation_grids_match_the_cpu(name):
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(grids.onto(name, weight.to(NAME)).cpu(), grids.onto(name, weight))


def test_the_divergence_of_an_exported_model_matches_the_cpu():
    divergences = {}
    answers = tiny.rows(len(PROMPTS), 1, 6, seed=6)
    codec = SimpleNamespace(stop_ids={tiny.EOS}, pad_id=tiny.PAD)
    reference: Any = SimpleNamespace(
        prompts=[SimpleNamespace(ids=ids) for ids in PROMPTS],
        codec=codec,
        batch_size=3,
        params=SimpleNamespace(temperature=0.8),
    )
    for device in ("cpu", NAME):
        policy, other = (Actor(tiny.lm(seed).to(device)) for seed in (1, 2))
        divergences[device] = ReferenceMetrics.divergence(reference, policy, other, answers)
    assert divergences[NAME] == pytest.approx(divergences["cpu"], rel=1e-4)


# --- Reward model -------------------------------------------------------------------------------------------------


def test_scoring_synchronises_once_for_all_batches():
    rows = tiny.rows(11, 2, 9, seed=5)
    model = RewardModel(tiny.lm(1), tiny.head(2)).eval()
    expected = score_rows(model, rows, 4, "cpu")
    model.to(NAME)
    with counting() as syncs:
        scores = score_rows(model, rows, 4, NAME)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    counts = Counter(kind for kind, _ in syncs.elements())
    assert counts.pop("item") == 3, "transformers reads the positions of each batch"
    assert counts == {"host to device": 1 + 3, "device to host": 1}, (
        "the lengths and the ids of each batch; the scores"
    )


@pytest.mark.parametrize("objective", ["bradley_terry", "davidson", "plackett_luce", "regression"])
def test_the_ranking_loss_synchronises_once_for_all_rankings(objective):
    """A second synchronisation is for the gradient."""
    counts = {}
    for rankings in (1, 9):
        orders = [Order([3 * i, 3 * i + 1, 3 * i + 2], [1, 2, 2], 1.0) for i in range(rankings)]
        scores = torch.randn(3 * rankings, generator=torch.Generator().manual_seed(0))
        loss = objective_of(RewardConfig(objective=objective), [])
        on_cpu, on_device = scores.clone().requires_grad_(), scores.to(NAME).requires_grad_()
        ranking_loss(on_cpu, orders, loss)[0].backward()
        with counting() as syncs:
            ranking_loss(on_device, orders, loss)[0].backward()
        torch.testing.assert_close(on_device.grad.cpu(), on_cpu.grad)
        counts[rankings] = syncs.total()
    assert counts == {1: 2, 9: 2}
