"""Models sharded over a single process, which holds all parts. For several processes, see
tests/invariants/test_sharded_*.py."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from pipeline.errors import StageError
from stages.models import checkpoint
from stages.models.actor import Actor
from stages.models.adapters import new_adapter
from stages.models.bank import checkpoint_activations
from stages.models.precision import compute_in
from stages.models.sharding import Twin, gathered, gathered_state, load_optimizer, mesh_of, shard, whole
from stages.scoring.reward_model import RewardModel

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(autouse=True)
def _one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(actor):
    """Gradients of the mean log-prob of some tokens, with logits in two chunks."""
    hidden = actor.hidden(IDS).flatten(0, 1)
    logps, _ = actor.logprobs(hidden, IDS.flatten(), temperature=1.0, chunk_size=5)
    logps.mean().backward()
    return {name: gathered(p.grad) for name, p in actor.lm.named_parameters() if p.grad is not None}


def mixed():
    model = tiny.lm()
    compute_in(model, torch.bfloat16)
    return model


def checkpointed():
    model = tiny.lm().train()
    checkpoint_activations(model)
    return model


KINDS = {
    "untied": tiny.lm,
    "tied": lambda: tiny.lm(tie_word_embeddings=True),
    "gpt2": tiny.gpt2,
    "in bfloat16": mixed,
    "recomputed": checkpointed,
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_an_unsharded_model(kind):
    model = KINDS[kind]().train().requires_grad_(True)
    actor = Actor(model).through_modules()
    torch.manual_seed(0)  # for dropout
    expected = gradients(actor)
    lm = KINDS[kind]().train().requires_grad_(True)
    shard(lm, mesh_of("cpu"))
    with whole(lm):
        actor = Actor(lm).through_modules()
    torch.manual_seed(0)
    actual = gradients(actor)
    assert actual.keys() == expected.keys()
    for name, parameter in lm.named_parameters():
        assert isinstance(parameter, DTensor)
        assert parameter.grad.dtype == torch.float32
        # In bfloat16 the unsharded model keeps its hidden states in float32.
        limit = 0.1 * float(expected[name].norm()) if kind == "in bfloat16" else 1e-6
        assert float((actual[name] - expected[name]).norm()) <= limit, name


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_gradients_of_adapters_on_a_frozen_sharded_backbone(quantization):
    banks = [tiny.lora_bank(quantization=quantization) for _ in range(2)]
    banks[1].shard(mesh_of("cpu"))
    found = []
    for bank in banks:
        with bank.active("policy", train=True) as actor:
            found.append(gradients(actor))
    assert found[0].keys() == found[1].keys()
    assert all(".policy." in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-5)


def test_training_passes_call_the_modules_and_reading_passes_need_not():
    bank = tiny.full_bank()
    with bank.active("policy", train=True) as actor:
        assert actor.passes.plain
    bank = tiny.full_bank()
    bank.shard(mesh_of("cpu"))
    with bank.active("policy", train=True) as actor:
        assert not actor.passes.plain
    with bank.active("policy") as actor:
        assert actor.passes.plain


def test_a_whole_role_has_plain_weights_and_may_be_opened_again():
    bank = tiny.full_bank()
    expected = bank.checksum("policy")
    bank.shard(mesh_of("cpu"))
    weight = lambda: bank.models["policy"].lm_head.weight  # noqa: E731
    for _ in range(2):
        with bank.whole("policy"):
            assert type(weight()) is nn.Parameter
            with bank.active("policy") as actor:
                actor.hidden(IDS)
            assert type(weight()) is nn.Parameter, "the inner context must not scatter the weights"
            assert isinstance(bank.models["reference"].lm_head.weight, DTensor)
        assert isinstance(weight(), DTensor)
    assert bank.checksum("policy") == expected


def test_a_role_s_state_is_loaded_whole_or_in_parts(tmp_path):
    source, plain, sharded = (tiny.lora_bank(seed=seed) for seed in (1, 2, 3))
    sharded.shard(mesh_of("cpu"))
    whole_state = source.state_of("policy")
    sharded.load_state_of("policy", whole_state)
    assert sharded.checksum("policy") == source.checksum("policy")
    assert all(isinstance(part, DTensor) for part in sharded.state_of("policy").values())
    # Saved in parts, loaded whole, and in parts again.
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"role": sharded.state_of("policy"), "numbers": [1, (2.0, "two")]})
    state = checkpoint.load(path)
    assert state["numbers"] == [1, (2.0, "two")]
    plain.load_state_of("policy", state["role"])
    assert plain.checksum("policy") == source.checksum("policy")
    before = sharded.checksum("policy")
    with torch.no_grad():
        for parameter in sharded.parameters_of("policy"):
            parameter.zero_()
    sharded.load_state_of("policy", checkpoint.load(path, mesh_of("cpu"))["role"])
    assert sharded.checksum("policy") == before


def test_a_checkpoint_replaces_the_parts_of_the_last_one(tmp_path):
    bank = tiny.full_bank()
    bank.shard(mesh_of("cpu"))
    path = tmp_path / "checkpoint.pt"
    for _ in range(3):
        checkpoint.save(path, bank.state_of("policy"))
    assert len([folder for folder in tmp_path.iterdir() if folder.is_dir()]) == 1
    checkpoint.save(path, {"whole": torch.ones(2)})
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_without_its_parts_is_refused(tmp_path):
    bank = tiny.full_bank()
    bank.shard(mesh_of("cpu"))
    checkpoint.save(tmp_path / "checkpoint.pt", bank.state_of("policy"))
    checkpoint.remove_parts(tmp_path / "checkpoint.pt")
    with pytest.raises(StageError, match="the checkpoint is damaged"):
        checkpoint.load(tmp_path / "checkpoint.pt")


def test_a_twin_is_trained_while_the_original_has_no_weights():
    model = RewardModel(tiny.lm(), tiny.head())
    compute_in(model.lm, torch.bfloat16)
    model.requires_grad_(True)
    lengths, before = torch.tensor([4, 4]), {n: p.detach().clone() for n, p in model.named_parameters()}
    twin = Twin(model, mesh_of("cpu"))
    assert sum(p.numel() for p in model.parameters()) == 0
    twin.module(IDS, lengths).sum().backward()
    with torch.no_grad():
        for parameter in twin.module.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    assert gathered_state(twin.module).keys() == before.keys()
    twin.restore()
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert model(IDS, lengths).isfinite().all()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lm_head" in name), name


def test_a_twin_of_adapters_on_an_nf4_backbone_gives_the_same_scores():
    lm = new_adapter(tiny.quantised_lm("nf4"), tiny.LORA)
    model, lengths = RewardModel(lm, tiny.head(0, tiny.QUANTISED_HIDDEN)), torch.tensor([4, 4])
    with torch.no_grad():
        expected = model(IDS, lengths)
    twin = Twin(model, mesh_of("cpu"))
    scores = twin.module(IDS, lengths)
    torch.testing.assert_close(scores.detach(), expected)
    scores.sum().backward()
    gradients_of = [n for n, p in twin.module.named_parameters() if p.grad is not None]
    assert any("lora_B" in name for name in gradients_of)
    twin.restore()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, lengths), expected)


def test_an_optimizer_loads_whole_moments():
    def step(head, optimizer):
        head(torch.ones(3, tiny.HIDDEN)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    plain, sharded = tiny.head(), tiny.head()
    shard(sharded, mesh_of("cpu"))
    ours, theirs = (torch.optim.AdamW(head.parameters(), lr=0.1) for head in (sharded, plain))
    step(sharded, ours)
    step(plain, theirs)
    load_optimizer(ours, copy.deepcopy(theirs.state_dict()))
    assert all(isinstance(state["exp_avg"], DTensor) for state in ours.state.values())
    step(sharded, ours)
    step(plain, theirs)
    torch.testing.assert_close(gathered(sharded.weight), plain.weight.detach())


def test_a_mixture_of_experts_is_refused():
    lm = tiny.lm()
    lm.model.layers[0].mlp.experts = nn.Linear(2, 2)
    with pytest.raises(StageError, match="mixture of experts"):
        shard(lm, mesh_of("cpu"))
