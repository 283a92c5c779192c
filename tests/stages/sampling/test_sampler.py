"""The built-in sampler: its parameters, and the guarantees that its documentation gives."""

import numpy as np
import pytest
import tiny
import torch

from stages.models.actor import Actor
from stages.sampling.decoding import sample
from stages.sampling.sampler import BuiltinSampler, SamplingParams, Share

STOPS = frozenset({tiny.EOS, 9, 17, 33})
PROMPTS = tiny.rows(8, 1, 9, seed=3)
PARAMS = SamplingParams(max_new_tokens=12, stop_ids=STOPS, temperature=0.8)


@pytest.fixture(scope="module")
def actor():
    return Actor(tiny.lm(3))


def test_episodes_hold_the_prompts_and_their_responses(actor):
    episodes = BuiltinSampler(tiny.PAD, 3).sample(actor, PROMPTS, PARAMS, 5)
    assert len({len(response) for response in episodes.responses}) > 2
    for i, (prompt, response) in enumerate(zip(PROMPTS, episodes.responses, strict=True)):
        assert episodes.ids_BL[i, : int(episodes.lengths_B[i])].tolist() == [*prompt, *response]
        assert not STOPS & set(response[:-1])
        assert len(response) == 12 or response[-1] in STOPS
    assert episodes.sampled is None


def test_a_seed_decides(actor):
    sampler = BuiltinSampler(tiny.PAD)
    first, again, other = (sampler.sample(actor, PROMPTS, PARAMS, seed).responses for seed in (5, 5, 6))
    assert first == again != other
    generator = torch.Generator().manual_seed(5)
    assert sampler.sample(actor, PROMPTS, PARAMS, generator).responses == first
    assert sampler.sample(actor, PROMPTS, PARAMS, generator).responses != first, "the generator is advanced"


def test_neither_batches_nor_shares_change_a_response(actor):
    whole = BuiltinSampler(tiny.PAD).sample(actor, PROMPTS, PARAMS, 5).responses
    assert BuiltinSampler(tiny.PAD, 1).sample(actor, PROMPTS, PARAMS, 5).responses == whole
    for rows in ([0, 2, 4, 6], [1, 3, 5, 7], [6]):
        part = [PROMPTS[row] for row in rows]
        share = Share(torch.tensor(rows), len(PROMPTS))
        responses = BuiltinSampler(tiny.PAD).sample(actor, part, PARAMS, 5, share=share).responses
        assert responses == [whole[row] for row in rows]


def test_a_record_is_kept_on_request(actor):
    episodes = BuiltinSampler(tiny.PAD).sample(actor, PROMPTS, PARAMS, 5, record=True)
    assert episodes.sampled is not None
    assert episodes.sampled.logp_BT.shape == (len(PROMPTS), 12)
    assert (episodes.sampled.logp_BT[:, : episodes.mask_BT.shape[1]][episodes.mask_BT] < 0).all()


@pytest.mark.parametrize("values", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_parameters_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match="out of range"):
        SamplingParams(max_new_tokens=1, stop_ids=STOPS, **values)
    with pytest.raises(ValueError, match="out of range"):
        SamplingParams(max_new_tokens=0, stop_ids=STOPS)


LOGITS = torch.tensor([0.5, -1.0, 2.0, -float("inf"), 0.0, 1.0])


def kept_by(top_k, top_p):
    """The tokens that may be drawn, by definition."""
    p = np.exp(LOGITS.double().numpy())
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda i: -p[i])[: top_k or None]
    mass, kept = p[order].sum(), []
    for token in order:
        if p[kept].sum() >= top_p * mass:
            break
        kept.append(token)
    shares = np.zeros(len(p))
    shares[kept] = p[kept] / p[kept].sum()
    return shares


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (1, 1.0), (3, 1.0), (0, 0.5), (0, 0.8), (0, 1e-6), (3, 0.9)]
)
def test_top_k_and_top_p_keep_the_likely_tokens_and_their_proportions(top_k, top_p):
    n = 20_000
    uniform = (torch.arange(n) + 0.5) / n
    tokens, probs = sample(LOGITS.expand(n, -1), uniform, 1.0, top_k, top_p)
    expected = kept_by(top_k, top_p)
    np.testing.assert_allclose(np.bincount(tokens.numpy(), minlength=6), n * expected, atol=1.01)
    np.testing.assert_allclose(probs[0].sum(), 1.0, atol=1e-6)


def test_equal_logits_are_cut_to_k():
    tokens, _ = sample(torch.zeros(1000, 6), torch.rand(1000), 1.0, 2, 1.0)
    assert set(tokens.tolist()) == {0, 1}
