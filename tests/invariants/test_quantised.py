"""The invariants of the shared backbone and of PPO also hold in 4 bits and in quantisation-aware training."""

import ppo_case
import pytest
import tiny
import torch

from stages.models.bank import checkpoint_activations
from stages.ppo import experience

KINDS = {
    "nf4": "nf4",
    "q4_0": {"qat": "q4_0"},
    "int3": {"qat": "int3-g32"},
    "int8 activations": {"qat": "q8_0", "activations": "int8"},
    "int8": "int8",
}
EXACT = ["nf4", "q4_0", "int3"]
FAST = ["nf4", "int3"]
EVERY_KIND = [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
IDS = torch.tensor(tiny.rows(3, 6, 6))


def bank(kind, **values):
    return tiny.lora_bank(quantization=KINDS[kind], **values)


def case(kind, **values):
    value = values.get("value", "adapter")
    return ppo_case.make(bank=bank(kind, value=value, seed=2), **values)


def gradients(model, role):
    for parameter in model.parameters():
        parameter.grad = None
    with model.active(role, train=True) as actor:
        hidden = actor.hidden(IDS)
        logp, _ = actor.logprobs(hidden[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), temperature=1.0, chunk_size=5)
        logp.sum().backward()
    return {r: [p.grad for p in model.parameters_of(r)] for r in model.roles}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_only_the_active_role_gets_a_gradient_and_only_it_changes_the_output(kind):
    model = bank(kind, distinct=True)
    for role in ("policy", "value"):
        grads = gradients(model, role)
        lora = grads[role][: -2 if role in model.heads else None]
        assert all(g is not None and g.dtype == torch.float32 and float(g.abs().max()) > 0 for g in lora)
        assert all(g is None for other in model.roles if other != role for g in grads[other])

    def output(role):
        with model.active(role) as actor:
            return actor.hidden(IDS)

    before = {role: output(role) for role in model.roles}
    with torch.no_grad():
        for parameter in model.parameters_of("policy"):
            parameter.add_(0.1)
    for role in model.roles:
        assert torch.equal(output(role), before[role]) == (role != "policy")


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_backward_pass_after_leaving_the_role_is_an_error(kind):
    model = bank(kind)
    with model.active("policy", train=True) as actor:
        loss = actor.hidden(IDS).sum()
    with pytest.raises(RuntimeError, match="call backward before"):
        loss.backward()


@pytest.mark.parametrize("kind", EXACT)
def test_checkpointing_does_not_change_gradients(kind):
    plain, checkpointed = bank(kind, distinct=True), bank(kind, distinct=True)
    checkpoint_activations(checkpointed)
    for role in ("policy", "value"):
        actual, expected = gradients(checkpointed, role)[role], gradients(plain, role)[role]
        for grad, expected_grad in zip(actual, expected, strict=True):
            if expected_grad is not None:
                torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", EXACT)
def test_padding_and_batching_do_not_change_hidden_states(kind):
    model = bank(kind, distinct=True)
    with model.active("policy") as actor:
        together = actor.hidden(IDS)
        padded = actor.hidden(torch.cat([IDS, torch.zeros(3, 4, dtype=torch.long)], 1))[:, :6]
        for i in range(3):
            torch.testing.assert_close(actor.hidden(IDS[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(padded, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_logprobs_and_values_recorded_while_sampling_match_a_forward_pass(kind, value):
    """Quantised inputs are the exception: the two differ by up to one level of the grid, and no record is used."""
    trainer = case(kind, value=value)
    assert trainer.exact == (kind in EXACT)
    with torch.no_grad():
        for parameter in trainer.bank.parameters_of("policy"):
            parameter.add_(0.05 * torch.randn(parameter.shape))
    episodes = trainer.sample(trainer.next_prompts(), record=True)
    scored = experience.score_tokens(trainer.bank, "policy", episodes, trainer.config, with_values=value == "trunk")
    mask, record = episodes.mask_BT, episodes.sampled
    sampled_logp = torch.where(mask, record.logp_BT[:, : mask.shape[1]], 0.0)
    difference = float((sampled_logp - scored.logp_BT).abs().max())
    assert difference < (1e-4 if kind in EXACT else 0.5)
    if value == "trunk" and kind in EXACT:
        torch.testing.assert_close(
            record.values_BT[:, : mask.shape[1]][mask], scored.values_BT[mask], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_ppo_starts_at_its_reference_and_changes_trainable_roles_only(kind):
    trainer = case(kind)
    before = {role: trainer.bank.checksum(role) for role in trainer.bank.roles}
    metrics = trainer.step()
    assert abs(metrics["objective/kl"]) < (1e-3 if kind in EXACT else 0.5)
    trainer.frozen.check()
    after = {role: trainer.bank.checksum(role) for role in trainer.bank.roles}
    assert {role for role in before if before[role] != after[role]} == {"policy", "value"}
    assert all(p.dtype == torch.float32 for p in trainer.bank.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_without_a_critic_only_the_policy_changes(kind, name):
    trainer = case(kind, value="trunk", advantage_estimator=name, num_generations=4)
    before = {role: trainer.bank.checksum(role) for role in trainer.bank.roles}
    metrics = trainer.step()
    assert metrics["objective/equal_rewards"] == 0.0
    trainer.frozen.check()
    assert {role for role in before if before[role] != trainer.bank.checksum(role)} == {"policy"}


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("value", ["trunk", pytest.param("adapter", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_uninterrupted_run(kind, value, tmp_path):
    values = ppo_case.EVERYTHING | {"value": value}
    uninterrupted = case(kind, **values)
    first = case(kind, **values)
    for trainer, steps in ((uninterrupted, 2), (first, 1)):
        trainer.start()
        for _ in range(steps):
            trainer.step()
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = case(kind, seed=99, **values)
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    second.step()
    for role in uninterrupted.bank.roles:
        assert second.bank.checksum(role) == uninterrupted.bank.checksum(role), role


@pytest.mark.parametrize("kind", FAST)
def test_micro_batches_do_not_change_an_update(kind):
    """All micro-batches of a step use the same rounded weights. (After a step, a difference in the last bit may
    round a weight to another level.)"""
    weights = []
    for size in (None, 1):
        trainer = case(kind, micro_batch_size=size, num_mini_batches=1, num_ppo_epochs=1)
        trainer.step()
        weights.append(ppo_case.weights(trainer))
    ppo_case.assert_close(weights[1], weights[0], 2e-4)
