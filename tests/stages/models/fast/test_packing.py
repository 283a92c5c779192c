"""Passes over packed rows against passes over padded ones."""

import pytest
import tiny
import torch

from stages.models.bank import checkpoint_activations
from stages.models.fast import packing
from stages.models.fast.packing import Packing
from stages.sampling.episodes import Episodes

LENGTHS = [9, 3, 1, 6]


def rows():
    ids = torch.randint(3, 40, (len(LENGTHS), 10), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor(LENGTHS)
    keep = torch.arange(10) < lengths[:, None]
    return ids.where(keep, 0), lengths, keep


def test_tokens_return_to_their_places():
    ids, lengths, keep = rows()
    packed = Packing.of(lengths, lengths, 10)
    assert torch.equal(packed.pack(ids)[0], ids[keep])
    assert torch.equal(packed.pad(packed.pack(ids)), ids)
    assert packed.position_N.tolist() == [position for length in LENGTHS for position in range(length)]
    x = torch.randn(4, 10, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(packed.pack, x)
    assert torch.autograd.gradcheck(packed.pad, packed.pack(x).detach().requires_grad_())


def test_little_padding_is_kept(monkeypatch):
    lengths = torch.tensor([10, 10, 9, 10])
    assert Packing.of(lengths, lengths, 10) is None
    monkeypatch.setattr(packing, "WORTH", 0.01)
    assert Packing.of(lengths, lengths, 10) is not None


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_hidden_states_and_gradients_equal_those_of_padded_rows(kind, checkpointing):
    ids, lengths, keep = rows()
    bank = tiny.lora_bank(value="trunk", distinct=True) if kind == "lora" else tiny.full_bank(value="trunk")
    if checkpointing:
        checkpoint_activations(bank)
    weight = torch.randn(len(LENGTHS), 10, 1, generator=torch.Generator().manual_seed(2)) * keep[..., None]
    results = []
    for packed in (None, Packing.of(lengths, lengths, 10)):
        with bank.active("policy", train=True) as actor:
            assert actor.passes.plain
            hidden = actor.hidden(ids, packed)
            (hidden.sin() * weight).sum().backward()
        parameters = [p for p in bank.parameters_of("policy") if p.grad is not None]
        assert parameters
        results.append([hidden.detach() * keep[..., None], *(p.grad.clone() for p in parameters)])
        for parameter in parameters:
            parameter.grad = None
    assert not hidden[~keep].any()
    for padded, packed in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


def test_padding_reaches_no_linear_layer():
    prompts, responses = [[5, 6, 7], [5], [8, 9]], [[11, 12, 13, 14], [11], [12]]
    episodes = Episodes.build(prompts, responses, {1}, 0)
    assert episodes.ids_BL.numel() == 3 * 7
    bank, seen = tiny.lora_bank(value="trunk"), []
    with bank.active("policy") as actor:
        layer = actor.lm.get_decoder().layers[0].mlp.down_proj
        forward = layer.forward
        layer.forward = lambda x: seen.append(x.shape[:-1].numel()) or forward(x)
        packed = episodes.hidden(actor)
        padded = actor.hidden(episodes.ids_BL)
    assert seen == [12, 21]
    for row, length in enumerate([7, 2, 3]):
        torch.testing.assert_close(packed[row, :length], padded[row, :length], rtol=1e-4, atol=1e-5)
