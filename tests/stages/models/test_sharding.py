"""Sharded parameters in a single process, which holds all shards. For several processes, see
tests/invariants/test_sharded_*.py."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from pipeline.errors import StageError
from stages.models.actor import Actor
from stages.models.precision import compute_in
from stages.models.sharding import Shards, gathered, whole_states

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(autouse=True)
def _one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(lm):
    """Gradients of the mean log-prob of some tokens, with logits in two chunks."""
    lm.train().requires_grad_(True)
    actor = Actor(lm)
    hidden = actor.hidden(IDS).flatten(0, 1)
    logps, _ = actor.logprobs(hidden, IDS.flatten(), temperature=1.0, chunk_size=5)
    logps.mean().backward()
    return {name: gathered(p.grad) for name, p in lm.named_parameters()}


def mixed():
    model = tiny.lm()
    compute_in(model, torch.bfloat16)
    return model


@pytest.mark.parametrize("kind", ["untied", "tied", "gpt2", "under autocast"])
def test_gradients_equal_those_of_an_unsharded_model(kind):
    make = {
        "untied": tiny.lm,
        "tied": lambda: tiny.lm(tie_word_embeddings=True),
        "gpt2": tiny.gpt2,
        "under autocast": mixed,
    }[kind]
    expected, lm = gradients(make()), make()
    Shards(lm, device="cpu")
    actual = gradients(lm)
    assert actual.keys() == expected.keys()
    for name, parameter in lm.named_parameters():
        assert isinstance(parameter, DTensor)
        assert isinstance(parameter.grad, DTensor)
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-6)


def test_a_parameter_is_sharded_along_its_longest_dimension():
    head = tiny.head()
    shards = Shards(head, device="cpu")
    assert [p.placements for p in shards.parameters] == [(Shard(1),), (Shard(0),)]


def test_the_lm_head_is_gathered_once_per_pass_and_a_layer_on_every_read():
    lm = tiny.lm().train().requires_grad_(True)
    Shards(lm, device="cpu")
    head, layer = lm.lm_head, lm.model.layers[0].mlp.up_proj
    first = head.weight
    assert head.weight is first
    assert layer.weight is not layer.weight
    first.sum().backward()
    assert head.weight is not first


def test_a_gathered_model_is_plain_and_keeps_changes_on_request():
    lm = tiny.lm()
    before = lm.lm_head.weight.detach().clone()
    shards = Shards(lm, device="cpu")
    for changes in (False, True):
        with shards.whole(changes=changes), torch.no_grad():
            assert type(lm.lm_head.weight) is nn.Parameter
            lm.lm_head.weight += 1
            with shards.whole():  # nested uses are no-ops
                assert type(lm.lm_head.weight) is nn.Parameter
        assert isinstance(dict(lm.named_parameters())["lm_head.weight"], DTensor)
        torch.testing.assert_close(lm.lm_head.weight.detach(), before + changes)
    shards.release()
    assert all(type(p) is nn.Parameter for p in lm.parameters())
    torch.testing.assert_close(lm.lm_head.weight.detach(), before + 1)


def test_an_error_inside_the_context_discards_changes():
    head = tiny.head()
    before = head.weight.detach().clone()
    shards = Shards(head, device="cpu")

    def fail():
        with shards.whole(changes=True), torch.no_grad():
            head.weight += 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    torch.testing.assert_close(head.weight.detach(), before, rtol=0, atol=0)


def test_an_optimizer_saves_and_loads_unsharded_moments():
    def step(head, optimizer):
        head(torch.ones(3, tiny.HIDDEN)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    plain, sharded = tiny.head(), tiny.head()
    Shards(sharded, device="cpu")
    ours, theirs = (torch.optim.AdamW(head.parameters(), lr=0.1) for head in (sharded, plain))
    whole_states(ours)
    step(sharded, ours)
    step(plain, theirs)
    for index, values in theirs.state_dict()["state"].items():
        for name, value in values.items():
            actual = ours.state_dict()["state"][index][name]
            assert not isinstance(actual, DTensor)
            torch.testing.assert_close(actual, value)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    moments = [state["exp_avg"] for state in ours.state.values()]
    assert all(isinstance(moment, DTensor) for moment in moments)
    step(sharded, ours)
    step(plain, theirs)
    torch.testing.assert_close(sharded.weight.detach(), plain.weight.detach())


def test_a_mixture_of_experts_is_refused():
    lm = tiny.lm()
    lm.model.layers[0].mlp.experts = nn.Linear(2, 2)
    with pytest.raises(StageError, match="mixture of experts"):
        Shards(lm, device="cpu")
