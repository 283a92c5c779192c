"""PPO in 16 bits, compared with float32: gradients, the measured mismatch, overflow, and the errors raised."""

import ppo_case
import pytest
import tiny
import torch

from pipeline.errors import StageError
from stages.models.bank import checkpoint_activations
from stages.ppo import experience
from stages.ppo import trainer as trainer_module
from stages.training.loss_scale import LossScale

BANKS = {
    "bf16": lambda **v: tiny.lora_bank(dtype=torch.bfloat16, **v),
    "fp16": lambda **v: tiny.lora_bank(dtype=torch.float16, **v),
    "full, bf16": lambda **v: tiny.full_bank(compute=torch.bfloat16, **v),
}
EXACT = {
    "bf16": tiny.lora_bank,
    "fp16": tiny.lora_bank,
    "full, bf16": tiny.full_bank,
}
KINDS = list(BANKS)


def make(kind, banks=BANKS, **values):
    value = values.setdefault("value", "trunk")
    return ppo_case.make(bank=banks[kind](value=value, seed=2), **values)


def cosine(actual, expected):
    actual, expected = (torch.cat([g.flatten() for g in gradients]) for gradients in (actual, expected))
    return float(torch.cosine_similarity(actual, expected, 0))


def rollout(kind):
    """Experience of one batch in float32. Every precision learns from this batch."""
    exact = make(kind, EXACT)
    prompts = exact.next_prompts()
    episodes = exact.sample(prompts)
    scores = ppo_case.varied(prompts, episodes.responses)
    return experience.build(exact.bank, episodes, scores, scores, exact.config, 0.1, exact.world)


def gradients(trainer, data, *, count=100.0, size=None):
    """The unclipped gradients of the policy's first optimizer step."""
    rows = torch.arange(len(data.episodes))
    with trainer.bank.active("policy", train=True) as actor:
        trainer.optimisation.policy_gradients(actor, data, rows, count, size, trainer.generator)
    parameters = trainer.optimisation.optimizers["policy"].parameters
    trainer.optimisation.optimizers["policy"].scale.unscale_(parameters)
    grads = [p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return grads


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_float32_for_any_number_of_tokens(kind):
    data = rollout(kind)
    for count in (100.0, 1e7):
        expected = gradients(make(kind, EXACT), data, count=count)
        actual = gradients(make(kind), data, count=count)
        assert all(g.dtype == torch.float32 for g in actual)
        assert cosine(actual, expected) > 0.995, count


def test_float16_gradients_underflow_without_a_loss_scale():
    data = rollout("fp16")
    unscaled = make("fp16")
    unscaled.optimisation.optimizers["policy"].scale = LossScale(False)
    assert cosine(gradients(unscaled, data, count=1e7), gradients(make("fp16", EXACT), data, count=1e7)) < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_and_checkpointing_change_gradients_by_rounding_only(kind):
    data = rollout(kind)
    expected = gradients(make(kind), data)
    assert cosine(gradients(make(kind), data, size=1), expected) > 0.9995
    recomputed = make(kind)
    checkpoint_activations(recomputed.bank)
    assert cosine(gradients(recomputed, data), expected) > 0.9995


@pytest.mark.parametrize("value", ["trunk", "adapter"])
@pytest.mark.parametrize("kind", KINDS)
def test_updates_measure_the_mismatch_between_sampling_and_training(kind, value):
    trainer = make(kind, value=value)
    for _ in range(2):
        metrics = trainer.step()
        assert 0 <= metrics["sampling/kl_k3"] < 1e-3
        assert 0 < metrics["sampling/logp_difference_std"] < 0.05
    assert ("loss_scale/policy" in metrics) == (kind == "fp16")
    assert metrics["objective/kl"] != 0


def test_in_float32_there_is_no_mismatch_to_measure():
    assert not any(name.startswith("sampling/") for name in ppo_case.make().step())


@pytest.mark.parametrize("kind", KINDS)
def test_kl_is_zero_and_the_ratio_is_one_before_the_first_step(kind):
    metrics = make(kind, learning_rate=1e-12).step()
    assert metrics["objective/kl"] == pytest.approx(0.0, abs=1e-3)
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_run(kind, tmp_path):
    values = ppo_case.EVERYTHING | {"importance_sampling_clip_max": 1.5}
    uninterrupted = make(kind, **values)
    uninterrupted.start()
    if kind == "fp16":
        # Overflows at first, so the scale changes.
        uninterrupted.optimisation.optimizers["policy"].scale.value = 2.0**30
    uninterrupted.step()
    torch.save(uninterrupted.state_dict(), tmp_path / "checkpoint.pt")
    expected = uninterrupted.step()
    second = make(kind, seed=99, **values)
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    metrics = second.step()
    ppo_case.assert_close(ppo_case.weights(second), ppo_case.weights(uninterrupted), tolerance=0)
    assert {role: o.scale.state_dict() for role, o in second.optimisation.optimizers.items()} == {
        role: o.scale.state_dict() for role, o in uninterrupted.optimisation.optimizers.items()
    }
    for name, number in expected.items():
        if "second" not in name and name != "mfu" and not name.startswith("time/"):
            assert metrics[name] == number, name


# --- Full fine-tuning ---


def test_full_fine_tuning_keeps_float32_weights_that_bfloat16_would_round_away():
    trainer = make("full, bf16", learning_rate=1e-5, max_grad_norm=1.0)
    before = ppo_case.weights(trainer)
    trainer.step()
    after = ppo_case.weights(trainer)
    name = "policy model.model.layers.0.mlp.up_proj.weight"
    assert after[name].dtype == torch.float32
    changed = (after[name] != before[name]).float().mean()
    changed_in_bfloat16 = (after[name].bfloat16() != before[name].bfloat16()).float().mean()
    assert changed > 0.9 > 0.1 > changed_in_bfloat16


# --- Overflow ---


def test_a_step_that_overflows_is_skipped_and_training_continues():
    trainer = make("fp16", num_ppo_epochs=1, num_mini_batches=2)
    trainer.optimisation.optimizers["policy"].scale.value = 2.0**60
    before = ppo_case.weights(trainer)
    metrics = trainer.step()
    ppo_case.assert_close(ppo_case.weights(trainer), before, tolerance=0)
    assert metrics["loss_scale/policy"] == 2.0**58
    assert "policy/grad_norm" not in metrics, "an infinite norm is not logged"
    trainer.optimisation.optimizers["policy"].scale.value = 2.0**16
    trainer.step()
    assert any(not torch.equal(new, before[name]) for name, new in ppo_case.weights(trainer).items())


def test_a_gradient_that_is_nan_at_any_scale_ends_the_stage():
    def broken(prompts, responses):
        return torch.full((len(responses),), torch.nan)

    trainer = make("fp16", scorer=broken)
    trainer.optimisation.optimizers["policy"].scale.value = 1.0
    with pytest.raises(StageError, match="gradient is nan"):
        trainer.step()


# --- Errors ---


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_a_policy_that_differs_from_the_reference_is_refused(kind):
    bank = tiny.lora_bank(value="trunk", distinct=True, dtype=BANKS[kind]().model.dtype)
    with pytest.raises(StageError, match="policy and reference differ before the first step"):
        ppo_case.make(bank=bank, value="trunk").step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_that_changes_between_experience_and_first_step_is_refused(kind, monkeypatch):
    """Even when the mean ratio stays within 10 %."""
    build = experience.build

    def changed(bank, *args, **values):
        data = build(bank, *args, **values)
        with torch.no_grad():
            for name, parameter in bank._named_parameters("policy").items():
                if "lora_B" in name:
                    parameter.mul_(0.94)
                elif name.endswith("o_proj.weight"):
                    parameter.mul_(0.8)
        return data

    monkeypatch.setattr(trainer_module.experience, "build", changed)
    with pytest.raises(StageError, match=r"the policy's ratio to itself is (0\.9|1\.0)"):
        make(kind).step()


# --- Importance weights ---


@pytest.mark.parametrize(("shift", "weight"), [(0.2, 0.8187), (-0.2, 1.2214), (-3.0, 2.0)])
def test_importance_weights_scale_the_policys_gradient(shift, weight, monkeypatch):
    """All tokens get the same shift of their sampling log-prob, hence the same weight, capped at 2."""

    def first_norm(shifted, clip_max):
        trainer = make(
            "bf16",
            num_ppo_epochs=1,
            num_mini_batches=1,
            vf_coef=0.0,
            max_grad_norm=1e9,
            importance_sampling_clip_max=clip_max,
        )
        sample = trainer.sample

        def shifted_sample(prompts, **values):
            episodes = sample(prompts, **values)
            # As if sampling had computed training's log-probs plus the shift.
            logp = experience.score_tokens(trainer.bank, "policy", episodes, trainer.config).logp_BT
            episodes.sampled.logp_BT[:, : logp.shape[1]] = logp + shifted
            return episodes

        monkeypatch.setattr(trainer, "sample", shifted_sample)
        return trainer.step()["policy/grad_norm"]

    plain = first_norm(shift, None)
    assert first_norm(shift, 2.0) / plain == pytest.approx(weight, rel=0.01)
    assert first_norm(0.0, 2.0) / plain == pytest.approx(1.0, rel=1e-6)
