import math

import numpy as np
import pytest
import tiny
import torch

from stages.models import actor as actors
from stages.models.actor import Actor
from stages.models.fast.linear import speed_up
from stages.models.fast.plain import PlainSteps
from stages.models.passes import CachedSteps
from stages.models.precision import compute_in
from stages.sampling import decoding
from stages.sampling.decoding import Record, generate, sample
from stages.sampling.episodes import Episodes, logprobs

STOPS = {tiny.EOS, 9, 17, 33}
LENGTH = 12
PROMPTS = [*tiny.rows(7, 1, 9, seed=3), tiny.rows(1, 9, 9, seed=4)[0]]


@pytest.fixture(scope="module")
def lm():
    return tiny.lm(3)


@pytest.fixture(scope="module")
def uniform():
    return torch.rand((len(PROMPTS), LENGTH), generator=torch.Generator().manual_seed(2))


def run(lm, prompts, uniform, **values):
    arguments = {"temperature": 0.8, "stop_ids": STOPS, "pad_id": tiny.PAD} | values
    return generate(Actor(lm), prompts, uniform, **arguments)


@torch.no_grad()
def slowly(lm, prompt, uniform, temperature=0.8):
    """One prompt alone, the whole sequence anew for every token, sampling in float64."""
    ids = list(prompt)
    for u in uniform.tolist():
        logits = lm(torch.tensor([ids])).logits[0, -1].double().numpy() / temperature
        p = np.exp(logits - logits.max())
        ids.append(int(np.searchsorted((p / p.sum()).cumsum(), u, side="right")))
        if ids[-1] in STOPS:
            break
    return ids[len(prompt) :]


def test_equals_a_slow_reference(lm, uniform):
    responses = run(lm, PROMPTS, uniform)
    expected = [slowly(lm, prompt, u) for prompt, u in zip(PROMPTS, uniform, strict=True)]
    assert responses == expected
    lengths = [len(response) for response in responses]
    assert len(set(lengths)) > 3, f"the case must hold short and long responses: {lengths}"
    assert LENGTH in lengths


@pytest.mark.parametrize("make", [lambda: tiny.lm(3), tiny.gpt2], ids=["rotary", "learned"])
def test_left_padding_changes_nothing(make, uniform):
    """Whether positions are rotations or embeddings of their own."""
    model = make()
    together = run(model, PROMPTS, uniform)
    assert together == [run(model, [prompt], uniform[i : i + 1])[0] for i, prompt in enumerate(PROMPTS)]
    assert together == [slowly(model, prompt, u) for prompt, u in zip(PROMPTS, uniform, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100, None])
def test_batches_of_any_size(lm, uniform, batch_size):
    done = []
    responses = run(lm, PROMPTS, uniform, batch_size=batch_size, on_batch=done.append)
    assert responses == [slowly(lm, prompt, u) for prompt, u in zip(PROMPTS, uniform, strict=True)]
    assert sum(done) == len(PROMPTS)
    assert max(done) <= (batch_size or len(PROMPTS))


@pytest.mark.parametrize("kind", [PlainSteps, CachedSteps])
def test_dropping_finished_rows_changes_nothing(kind, lm, uniform, monkeypatch):
    drops = []
    keep = kind.keep
    monkeypatch.setattr(kind, "keep", lambda self, rows: drops.append(len(rows)) or keep(self, rows))
    if kind is CachedSteps:
        monkeypatch.setattr(actors, "plain_decoder", lambda model, up_to: None)
    results = {}
    for share in (0.0, 0.75, 1.0):
        drops.clear()
        monkeypatch.setattr(decoding, "COMPACT_AT", share)
        results[share] = run(lm, PROMPTS, uniform)
        assert bool(drops) == (share > 0)
    assert results[0.0] == results[0.75] == results[1.0]


def test_each_response_ends_at_its_first_stop_token(lm, uniform):
    for response in run(lm, PROMPTS, uniform):
        assert not STOPS & set(response[:-1])
        assert len(response) == LENGTH or response[-1] in STOPS


def test_every_stop_id_stops(lm, uniform):
    free = run(lm, PROMPTS, uniform, stop_ids={tiny.VOCABULARY + 5})
    assert {len(response) for response in free} == {LENGTH}
    wanted = {free[0][2], free[1][5]}
    for response, stopped in zip(free, run(lm, PROMPTS, uniform, stop_ids=wanted), strict=True):
        first = next((i for i, token in enumerate(response) if token in wanted), LENGTH)
        assert stopped == response[: first + 1]


def test_temperature_zero_is_greedy(lm):
    uniform = torch.rand(len(PROMPTS), LENGTH)
    responses = run(lm, PROMPTS, uniform, temperature=0)
    for prompt, response in zip(PROMPTS, responses, strict=True):
        ids = torch.tensor([prompt])
        expected = lm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=LENGTH,
            eos_token_id=sorted(STOPS),
            pad_token_id=tiny.PAD,
        )
        assert response == expected[0, len(prompt) :].tolist()


def test_a_model_in_training_mode_speaks_in_evaluation_mode(uniform):
    model = tiny.lm(3, attention_dropout=0.5).train()
    assert run(model, PROMPTS, uniform) == run(tiny.lm(3), PROMPTS, uniform)


LOGITS = torch.tensor([0.5, -1.0, 2.0, -float("inf"), 0.0, 1.0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sample_matches_the_distribution(temperature):
    n = 20_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(1))
    tokens, _ = sample(LOGITS.expand(n, -1), uniform, temperature)
    counts = np.bincount(tokens.numpy(), minlength=6)
    p = np.exp(LOGITS.double().numpy() / temperature)
    p /= p.sum()
    assert counts[3] == 0
    likely = p > 0
    chi_square = ((counts[likely] - n * p[likely]) ** 2 / (n * p[likely])).sum()
    assert chi_square < 13.28, f"99 % of true samples lie below (4 degrees of freedom): {counts}"


def test_sample_is_the_inverse_cdf():
    """Evenly spaced numbers give each token its share, to within one."""
    n = 10_000
    tokens, _ = sample(LOGITS.expand(n, -1), (torch.arange(n) + 0.5) / n, 1.0)
    p = LOGITS.exp() / LOGITS.exp().sum()
    np.testing.assert_allclose(np.bincount(tokens.numpy(), minlength=6), n * p.numpy(), atol=1.01)
    assert (tokens.diff() >= 0).all()


@pytest.mark.parametrize("impossible", [[0], [5], [0, 5], [0, 1, 4, 5], [2, 3]])
def test_impossible_tokens_are_never_drawn(impossible):
    logits = LOGITS.clone()
    logits[3] = 0.3
    logits[impossible] = -float("inf")
    edges = torch.tensor([0.0, 1e-45, 1e-7, 0.5, 1 - 2**-24])
    uniform = torch.cat([edges, torch.rand(1000, generator=torch.Generator().manual_seed(2))])
    assert not set(sample(logits.expand(len(uniform), -1), uniform, 1.0)[0].tolist()) & set(impossible)


def test_tokens_of_vanishing_probability_at_the_end_are_not_drawn():
    """With many tokens the cumulative sum does not end at one exactly."""
    logits = torch.randn(200, 5000, generator=torch.Generator().manual_seed(3))
    logits[:, -1] = -float("inf")
    assert (sample(logits, torch.full((200,), 1 - 2**-24), 1.0)[0] < 4999).all()


def test_half_precision_logits_are_sampled_in_float32():
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    for u in (0.0, 0.3337, 0.9999):
        assert sample(logits, torch.tensor([u]), 1.0)[0].item() == math.floor(u * 1000)


@torch.no_grad()
@pytest.mark.parametrize("long", [False, True], ids=["short", "longer than what a CPU writes out"])
def test_a_model_under_autocast_samples_in_the_precision_that_it_trains_in(long, uniform):
    """Float32 weights, products in bfloat16: log-probs noted while sampling are those of a pass over it all."""
    model = tiny.lm(3, max_position_embeddings=256).requires_grad_(True)
    exact = Actor(tiny.lm(3, max_position_embeddings=256))
    compute_in(model, torch.bfloat16)
    actor = Actor(speeded(model))
    prompts = tiny.rows(len(PROMPTS), 130, 140, seed=3) if long else PROMPTS
    record = Record.empty(tuple(uniform.shape), "cpu")
    responses = generate(actor, prompts, uniform, temperature=0.8, stop_ids=STOPS, pad_id=tiny.PAD, record=record)
    episodes = Episodes.build(prompts, responses, STOPS, tiny.PAD)

    def again(actor):
        hidden = actor.hidden(episodes.ids_BL)
        logps, _ = logprobs(actor, episodes, hidden, temperature=0.8, chunk_size=5)
        return logps[episodes.mask_BT]

    noted = record.logp_BT[:, : episodes.mask_BT.shape[1]][episodes.mask_BT]
    differences, precisions = noted - again(actor), noted - again(exact)
    assert precisions.norm() > 0.01, "the case must tell float32 from bfloat16"
    assert differences.norm() < 0.3 * precisions.norm()
    assert all(p.dtype == torch.float32 for p in model.parameters())


def speeded(model):
    speed_up(model)
    return model
