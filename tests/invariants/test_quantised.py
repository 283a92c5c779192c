"""The rules of the shared backbone, and PPO's, hold under 4 bits and under quantisation-aware training too."""

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


def gradients(made, role):
    for parameter in made.parameters():
        parameter.grad = None
    with made.active(role, train=True) as actor:
        hidden = actor.hidden(IDS)
        logp, _ = actor.logprobs(hidden[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), temperature=1.0, chunk_size=5)
        logp.sum().backward()
    return {r: [p.grad for p in made.parameters_of(r)] for r in made.roles}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_only_the_active_role_gets_a_gradient_and_only_it_changes_the_output(kind):
    made = bank(kind, distinct=True)
    for role in ("policy", "value"):
        found = gradients(made, role)
        lora = found[role][: -2 if role in made.heads else None]
        assert all(g is not None and g.dtype == torch.float32 and float(g.abs().max()) > 0 for g in lora)
        assert all(g is None for other in made.roles if other != role for g in found[other])

    def output(role):
        with made.active(role) as actor:
            return actor.hidden(IDS)

    before = {role: output(role) for role in made.roles}
    with torch.no_grad():
        for parameter in made.parameters_of("policy"):
            parameter.add_(0.1)
    for role in made.roles:
        assert torch.equal(output(role), before[role]) == (role != "policy")


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_backward_pass_after_the_role_is_an_error(kind):
    made = bank(kind)
    with made.active("policy", train=True) as actor:
        loss = actor.hidden(IDS).sum()
    with pytest.raises(RuntimeError, match="call backward before"):
        loss.backward()


@pytest.mark.parametrize("kind", EXACT)
def test_checkpointing_changes_no_gradient(kind):
    plain, checkpointed = bank(kind, distinct=True), bank(kind, distinct=True)
    checkpoint_activations(checkpointed)
    for role in ("policy", "value"):
        found, expected = gradients(checkpointed, role)[role], gradients(plain, role)[role]
        for ours, theirs in zip(found, expected, strict=True):
            if theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", EXACT)
def test_padding_and_batches_change_nothing(kind):
    made = bank(kind, distinct=True)
    with made.active("policy") as actor:
        together = actor.hidden(IDS)
        padded = actor.hidden(torch.cat([IDS, torch.zeros(3, 4, dtype=torch.long)], 1))[:, :6]
        for i in range(3):
            torch.testing.assert_close(actor.hidden(IDS[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(padded, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_what_is_noted_while_sampling_is_what_a_pass_says(kind, value):
    """For inputs on a grid it is not, to the last step of the grid, and so it is not used."""
    trainer = case(kind, value=value)
    assert trainer.exact == (kind in EXACT)
    with torch.no_grad():
        for parameter in trainer.bank.parameters_of("policy"):
            parameter.add_(0.05 * torch.randn(parameter.shape))
    episodes = trainer.sample(trainer.next_prompts(), record=True)
    scored = experience.score_tokens(trainer.bank, "policy", episodes, trainer.config, with_values=value == "trunk")
    mask, record = episodes.mask_BT, episodes.sampled
    noted = torch.where(mask, record.logp_BT[:, : mask.shape[1]], 0.0)
    off = float((noted - scored.logp_BT).abs().max())
    assert off < (1e-4 if kind in EXACT else 0.5)
    if value == "trunk" and kind in EXACT:
        torch.testing.assert_close(
            record.values_BT[:, : mask.shape[1]][mask], scored.values_BT[mask], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_ppo_starts_at_its_reference_and_moves_the_learning_roles_only(kind):
    trainer = case(kind)
    before = {role: trainer.bank.checksum(role) for role in trainer.bank.roles}
    metrics = trainer.step()
    assert abs(metrics["objective/kl"]) < (1e-3 if kind in EXACT else 0.5)
    trainer.frozen.check()
    after = {role: trainer.bank.checksum(role) for role in trainer.bank.roles}
    assert {role for role in before if before[role] != after[role]} == {"policy", "value"}
    assert all(p.dtype == torch.float32 for p in trainer.bank.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("value", ["trunk", pytest.param("adapter", marks=pytest.mark.slow)])
def test_resume_equals_no_interruption(kind, value, tmp_path):
    values = ppo_case.EVERYTHING | {"value": value}
    whole = case(kind, **values)
    first = case(kind, **values)
    for trainer, steps in ((whole, 2), (first, 1)):
        trainer.start()
        for _ in range(steps):
            trainer.step()
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = case(kind, seed=99, **values)
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    second.step()
    for role in whole.bank.roles:
        assert second.bank.checksum(role) == whole.bank.checksum(role), role


@pytest.mark.parametrize("kind", FAST)
def test_micro_batches_change_nothing(kind):
    """One rounding of the weights serves all micro-batches of a step. (After a step, a last bit may round a weight
    of the next one to another level.)"""
    found = []
    for size in (None, 1):
        trainer = case(kind, micro_batch_size=size, num_mini_batches=1, num_ppo_epochs=1)
        trainer.step()
        found.append(ppo_case.weights(trainer))
    ppo_case.assert_close(found[1], found[0], 2e-4)
