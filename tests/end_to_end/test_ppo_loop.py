"""The single-file PPO loop (examples/ppo_loop.py) learns, and its updates match the trainer's."""

from __future__ import annotations

import copy

import ppo_case
import ppo_loop
import pytest
import tiny
import torch

from pipeline.config.ppo import KLConfig
from stages.ppo import experience
from stages.ppo.kl import FixedKL
from stages.ppo.trainer import PPOTrainer
from stages.sampling.prompts import EncodedPrompt

PROMPTS = [EncodedPrompt([], ids, "train") for ids in tiny.rows(8, 4, 4, seed=1)]


def test_an_update_matches_the_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both train on the trainer's episodes, in a single minibatch, so that the order does not matter."""
    bank = tiny.full_bank(value="trunk")
    policy = ppo_loop.Policy(copy.deepcopy(bank.models["policy"]), copy.deepcopy(bank.heads["policy"]))
    reference = copy.deepcopy(bank.models["reference"])
    config = {
        "value": "trunk",
        "num_mini_batches": 1,
        "num_ppo_epochs": 3,
        "lr_scheduler_type": "constant",
        "lam": 0.9,
        "kl": KLConfig(kind="fixed", init=0.2),
    }
    trainer = ppo_case.make("full", bank=bank, **config)
    trainer = PPOTrainer(bank, trainer.config, ppo_case.CODEC, PROMPTS, trainer.reward, seed=0)
    batches = []
    build = experience.build

    def recording_build(bank, episodes, scores, *arguments, **values):
        batches.append((episodes, scores))
        return build(bank, episodes, scores, *arguments, **values)

    monkeypatch.setattr(experience, "build", recording_build)
    expected = trainer.step()
    [(episodes, scores)] = batches
    assert len(set(episodes.response_lengths_B.tolist())) > 1
    length = 4 + episodes.mask_BT.shape[1]
    ids = torch.full((8, length), tiny.PAD)
    ids[:, : episodes.ids_BL.shape[1]] = episodes.ids_BL
    settings = ppo_loop.Settings(
        num_mini_batches=1,
        num_ppo_epochs=3,
        lam=0.9,
        vf_coef=trainer.config.vf_coef,
        max_grad_norm=trainer.config.max_grad_norm,
    )
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=trainer.config.learning_rate,
        eps=trainer.config.adam_epsilon,
        weight_decay=0.0,
    )
    before = copy.deepcopy(policy.lm.state_dict())
    metrics = ppo_loop.update(
        policy, reference, optimizer, ids, episodes.mask_BT, scores, FixedKL(0.2), settings, torch.Generator()
    )
    assert metrics["score"] == pytest.approx(expected["objective/scores"])
    assert metrics["kl"] == pytest.approx(expected["objective/kl"], abs=1e-5)
    expected_weights = {**bank.models["policy"].state_dict()}
    moved = max(float((expected_weights[name] - before[name]).abs().max()) for name in expected_weights)
    assert moved > 1e-3
    for name, weight in policy.lm.state_dict().items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=1e-3 * moved, msg=name)
    torch.testing.assert_close(policy.head.weight, bank.heads["policy"].weight, rtol=0, atol=1e-3 * moved)


def test_the_reward_rises(capsys: pytest.CaptureFixture[str]) -> None:
    history = ppo_loop.main(updates=8)
    assert history[-1]["score"] > history[0]["score"] + 3
    assert history[-1]["kl"] > 1
    assert "update   0" in capsys.readouterr().out
