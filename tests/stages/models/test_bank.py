import numpy as np
import pytest
import tiny
import torch

from pipeline.errors import StageError
from stages.models.acceptance import OWN
from stages.models.actor import Actor, check_projection
from stages.models.bank import BASE, checkpoint_activations, disable_dropout

IDS = torch.tensor(tiny.rows(3, 6, 6))


def outputs(bank, role):
    with bank.active(role) as actor:
        hidden = actor.hidden(IDS)
        return hidden if role not in bank.heads else torch.cat([hidden, actor.scalar(hidden)[..., None]], -1)


def backward(bank, role):
    """The gradients, by role, of a loss on log-probs and on the scalar head, if there is one."""
    for parameter in bank.parameters():
        parameter.grad = None
    with bank.active(role, train=True) as actor:
        hidden = actor.hidden(IDS)
        logp, _ = actor.logprobs(hidden[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), temperature=1.0, chunk_size=5)
        loss = logp.sum()
        if role in bank.heads:
            loss = loss + actor.scalar(hidden).sum()
        loss.backward()
    return {r: [None if p.grad is None else p.grad.clone() for p in bank.parameters_of(r)] for r in bank.roles}


@pytest.fixture(params=tiny.BANKS)
def bank(request):
    return tiny.BANKS[request.param]()


@pytest.fixture
def lora():
    return tiny.lora_bank(distinct=True)


@pytest.mark.parametrize("changed", tiny.ROLES)
def test_only_the_active_roles_weights_change_the_output(bank, changed):
    before = {role: outputs(bank, role) for role in bank.roles}
    with torch.no_grad():
        for parameter in bank.parameters_of(changed):
            parameter.add_(0.1)
    for role in bank.roles:
        assert torch.equal(outputs(bank, role), before[role]) == (role != changed), role


def test_roles_differ_and_the_base_is_the_bare_backbone(lora):
    bare = tiny.lm(0).get_decoder()(input_ids=IDS).last_hidden_state
    seen = [outputs(lora, role)[..., : tiny.HIDDEN] for role in lora.roles] + [outputs(lora, BASE)]
    torch.testing.assert_close(seen[-1], bare)
    for i, hidden in enumerate(seen):
        for other in seen[:i]:
            assert (hidden - other).abs().max() > 0.01


def test_an_adapters_output_equals_that_of_merged_weights():
    """W + (alpha / r) * B @ A, computed explicitly."""
    bank = tiny.lora_bank(distinct=True)
    merged = tiny.lm(0)
    state = dict(bank.model.named_parameters())
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            stem = "base_model.model." + name.removesuffix(".weight")
            if f"{stem}.lora_A.reward.weight" in state:
                a, b = (state[f"{stem}.lora_{x}.reward.weight"] for x in "AB")
                parameter += 4 / 2 * b @ a
    expected = merged.get_decoder()(input_ids=IDS).last_hidden_state
    with bank.active("reward") as actor:
        torch.testing.assert_close(actor.hidden(IDS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("role", ["policy", "value"])
def test_gradients_land_on_the_active_role_only(bank, role):
    for other, gradients in backward(bank, role).items():
        if other != role:
            assert all(gradient is None for gradient in gradients), f"{other} got a gradient from {role}"
    assert all(gradient is not None for gradient in backward(bank, role)[role][:4])
    assert sum(float(g.abs().sum()) for g in backward(bank, role)[role] if g is not None) > 0
    shared = [p for p in bank.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in shared)


@pytest.mark.parametrize("role", ["policy", "value"])
def test_gradient_by_finite_differences(lora, role):
    """Of a sum over last hidden states with respect to one weight of the role's adapter."""
    parameter = lora.parameters_of(role)[1]
    with lora.active(role, train=True) as actor:
        actor.hidden(IDS).sin().sum().backward()

    def value(step):
        with torch.no_grad():
            parameter[0, 0] += step
        with lora.active(role) as actor:
            total = float(actor.hidden(IDS).double().sin().sum())
        with torch.no_grad():
            parameter[0, 0] -= step
        return total

    numeric = (value(1e-2) - value(-1e-2)) / 2e-2
    assert parameter.grad[0, 0].item() == pytest.approx(numeric, rel=0.05, abs=1e-3)


def test_requires_grad_is_set_once(bank):
    def learning():
        return {name for name, p in bank.named_parameters() if p.requires_grad}

    before = learning()
    expected = {id(p) for role in ("policy", "value") for p in bank.parameters_of(role)}
    assert {id(p) for p in bank.parameters() if p.requires_grad} == expected
    for role in bank.roles:
        with bank.active(role, train=role in bank.trainable):
            pass
        assert learning() == before, f"after {role}"


def test_without_train_no_gradient_is_recorded(bank):
    for role in bank.roles:
        with bank.active(role) as actor:
            assert not actor.hidden(IDS).requires_grad, role
            assert not actor.lm.training


def test_roles_do_not_nest(bank):
    with (
        bank.active("policy"),
        pytest.raises(RuntimeError, match="do not nest"),
        bank.active("reference"),
    ):
        pass
    with bank.active("reference"):  # the error leaves the bank usable
        pass


@pytest.mark.parametrize("role", ["reference", "reward"])
def test_frozen_roles_cannot_train(bank, role):
    with pytest.raises(RuntimeError, match="frozen"), bank.active(role, train=True):
        pass


def test_unknown_roles_are_refused(lora):
    with pytest.raises(RuntimeError, match="no adapter 'critic'"), lora.active("critic"):
        pass
    with lora.active("policy") as actor, pytest.raises(RuntimeError, match="no scalar head"):
        actor.scalar(actor.hidden(IDS))


def test_an_error_inside_a_role_leaves_the_bank_as_it_was(lora):
    expected = outputs(lora, "reference")
    with pytest.raises(ZeroDivisionError), lora.active("policy", train=True):
        1 / 0  # noqa: B018
    assert torch.equal(outputs(lora, "reference"), expected)


def test_backward_after_leaving_the_role_is_an_error(lora):
    with lora.active("policy", train=True) as actor:
        loss = actor.hidden(IDS).sum()
    with pytest.raises(RuntimeError, match="before the role's context ends"):
        loss.backward()


def test_backward_under_another_role_is_an_error(lora):
    with lora.active("policy", train=True) as actor:
        policy = actor.hidden(IDS)
    with lora.active("value", train=True) as actor:
        loss = policy.sum() + actor.hidden(IDS).sum()
        with pytest.raises(RuntimeError, match="before the role's context ends"):
            loss.backward()


@pytest.mark.parametrize("role", ["policy", "value"])
@pytest.mark.parametrize("kind", tiny.BANKS)
def test_gradient_checkpointing_changes_no_gradient(kind, role):
    bank = tiny.BANKS[kind](**({"distinct": True} if kind == "lora" else {}))
    plain = backward(bank, role)[role]
    checkpoint_activations(bank)
    runs = []
    owner = bank.models[role] if kind == "full" else bank.model.get_base_model()
    owner.model.layers[0].mlp.up_proj.register_forward_pre_hook(lambda *_: runs.append(1))
    checkpointed = backward(bank, role)[role]
    assert len(runs) == 2, "the layer must run again in the backward pass for this test to be meaningful"
    for expected, actual in zip(plain, checkpointed, strict=True):
        assert (expected is None) == (actual is None)
        if expected is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_checksum_detects_any_change_of_a_role(bank):
    before = {role: bank.checksum(role) for role in bank.roles}
    assert before == {role: bank.checksum(role) for role in bank.roles}
    with torch.no_grad():
        bank.parameters_of("reward")[-1].add_(1e-6)  # the head's bias
    after = {role: bank.checksum(role) for role in bank.roles}
    assert {role for role in bank.roles if before[role] != after[role]} == {"reward"}


def test_checksums_are_equal_for_equal_weights():
    bank = tiny.lora_bank()
    assert bank.checksum("policy") == bank.checksum("reference")
    assert bank.checksum("policy") != bank.checksum("reward")


@pytest.mark.parametrize("role", ["policy", "value"])
@pytest.mark.parametrize("kind", tiny.BANKS)
def test_state_round_trip(kind, role, tmp_path):
    bank, other = tiny.BANKS[kind](seed=0), tiny.BANKS[kind](seed=7)
    torch.save(bank.state_of(role), tmp_path / "state.pt")
    others = {r: other.checksum(r) for r in other.roles if r != role}
    assert other.checksum(role) != bank.checksum(role)
    other.load_state_of(role, torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.checksum(role) == bank.checksum(role)
    assert others == {r: other.checksum(r) for r in others}


def test_state_is_a_copy(lora):
    state = lora.state_of("value")
    copies = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for parameter in lora.parameters_of("value"):
            parameter.zero_()
    assert all(torch.equal(state[name], copies[name]) for name in copies)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_a_state_of_another_model_is_refused(lora, damage):
    state = lora.state_of("value")
    if damage == "missing":
        state.pop("head.bias")
    elif damage == "extra":
        state["model.more"] = torch.zeros(1)
    else:
        state["head.weight"] = torch.zeros(1, tiny.HIDDEN + 1)
    before = lora.checksum("value")
    with pytest.raises(StageError, match="other parameters"):
        lora.load_state_of("value", state)
    assert lora.checksum("value") == before


def test_right_padding_changes_nothing(lora):
    short = tiny.rows(1, 4, 4, seed=5)[0]
    padded = torch.tensor([short + [tiny.PAD] * 5])
    with lora.active("policy") as actor:
        torch.testing.assert_close(actor.hidden(padded)[:, :4], actor.hidden(torch.tensor([short])))


def test_logprobs_equal_those_of_the_models_own_logits(lora):
    with lora.active("policy") as actor, torch.no_grad():
        logits = actor.lm(input_ids=IDS).logits.double().numpy() / 0.7
        hidden = actor.hidden(IDS)
        logp, entropy = actor.logprobs(
            hidden[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), temperature=0.7, chunk_size=4
        )
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.log(np.take_along_axis(p[:, :-1], IDS[:, 1:, None].numpy(), -1)).ravel()
    np.testing.assert_allclose(logp, expected, atol=1e-4)
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(-1)[:, :-1].ravel(), atol=1e-4)


def test_every_dropout_is_disabled():
    """In modules, and in numbers that attention layers pass to a function."""
    model = tiny.lm(attention_dropout=0.5)
    model.extra = torch.nn.Dropout(0.5)
    model.train()
    ids = {"input_ids": IDS}
    assert not torch.equal(model(**ids).logits, model(**ids).logits)
    disable_dropout(model)
    assert torch.equal(model(**ids).logits, model(**ids).logits)
    assert torch.equal(model.extra(torch.ones(9)), torch.ones(9))


def scaled(name):
    """Tiny models whose logits are scaled or soft-capped."""
    import transformers

    shape = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    special = {
        "Gemma2": {"final_logit_softcapping": 1.0},
        "Granite": {"logits_scaling": 8.0},
        "Cohere": {"logit_scale": 0.25},
        "Llama": {},
    }[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**shape, **special)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Granite", "Cohere"])
def test_projections_of_several_architectures(name):
    check_projection(Actor(scaled(name), None, lambda: None))


def test_an_architecture_with_other_logits_is_refused():
    model = scaled("Llama")
    model.config.logit_scale = 0.5  # an attribute that Llama ignores
    with pytest.raises(StageError, match="LlamaForCausalLM cannot be trained here: its logits"):
        Actor(model)
    with pytest.raises(StageError, match="LlamaForCausalLM computes its logits"):
        check_projection(Actor(model, passes=OWN))
