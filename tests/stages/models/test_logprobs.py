import numpy as np
import pytest
import torch

from stages.models.logprobs import ChosenLogprob, token_logprobs


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 4, generator=generator)
    weight = torch.randn(11, 4, generator=generator)
    targets = torch.randint(11, (7,), generator=generator)
    return hidden, weight, targets


def enumerate_by_hand(hidden, weight, targets, temperature):
    logits = hidden.numpy().astype(float) @ weight.numpy().astype(float).T / temperature
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.log(p[np.arange(len(p)), targets.numpy()]), -(p * np.log(p)).sum(1)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_values_by_enumeration(case, temperature, chunk_size):
    hidden, weight, targets = case
    logp, entropy = token_logprobs(
        hidden, targets, lambda h: h @ weight.T, temperature=temperature, chunk_size=chunk_size
    )
    expected_logp, expected_entropy = enumerate_by_hand(hidden, weight, targets, temperature)
    np.testing.assert_allclose(logp, expected_logp, atol=1e-5)
    np.testing.assert_allclose(entropy, expected_entropy, atol=1e-5)
    assert logp.dtype == entropy.dtype == torch.float32


def test_entropy_of_a_uniform_and_of_a_one_point_distribution():
    logits = torch.tensor([[0.0] * 8, [100.0] + [0.0] * 7])
    _, entropy = token_logprobs(logits, torch.zeros(2, dtype=torch.long), lambda h: h)
    np.testing.assert_allclose(entropy, [np.log(8), 0.0], atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_chunks_change_neither_value_nor_gradient(case, chunk_size):
    hidden, weight, targets = case
    results = []
    for size in (7, chunk_size):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logp, entropy = token_logprobs(h, targets, lambda x, w=w: x @ w.T, temperature=0.7, chunk_size=size)
        (logp.sin().sum() + entropy.cos().sum()).backward()
        results.append((logp.detach(), entropy.detach(), h.grad, w.grad))
    for expected, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, expected, rtol=1e-5, atol=1e-6)


def test_gradient_of_a_log_prob_in_closed_form(case):
    hidden, weight, targets = case
    h = hidden.clone().requires_grad_()
    logp, _ = token_logprobs(h, targets, lambda x: x @ weight.T, temperature=2.0, chunk_size=3)
    logp.sum().backward()
    logits = hidden.numpy() @ weight.numpy().T / 2.0
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = (np.eye(11)[targets.numpy()] - p) @ weight.numpy() / 2.0
    np.testing.assert_allclose(h.grad, expected, atol=1e-5)


def test_logits_are_computed_one_chunk_at_a_time(case):
    hidden, weight, targets = case
    sizes = []

    def project(h):
        sizes.append(len(h))
        return h @ weight.T

    token_logprobs(hidden.requires_grad_(), targets, project, chunk_size=3)
    assert sizes == [3, 3, 1]


def test_half_precision_logits_are_normalised_in_float32():
    logits = torch.full((1, 300), 1.0, dtype=torch.bfloat16)
    logp, entropy = token_logprobs(logits, torch.tensor([0]), lambda h: h)
    assert logp.item() == pytest.approx(-np.log(300), rel=1e-6)
    assert entropy.item() == pytest.approx(np.log(300), rel=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.6, -0.8)], ids=["log-prob", "entropy", "both"])
def test_gradients_by_finite_differences(case, weights):
    hidden, weight, targets = case
    logits = (hidden @ weight.T).double()
    rows = torch.arange(1.0, 8.0)

    def weighted(x):
        outputs = ChosenLogprob.apply(x.clone(), targets, 0.7, True)
        return sum(w * (rows * part).sum() for w, part in zip(weights, outputs, strict=True))

    leaf = logits.clone().requires_grad_()
    weighted(leaf).backward()
    for at in np.ndindex(*logits.shape):
        step = torch.zeros_like(logits)
        step[at] = 1e-6
        slope = (weighted(logits + step) - weighted(logits - step)) / 2e-6
        assert leaf.grad[at].item() == pytest.approx(slope.item(), abs=1e-7)


@pytest.mark.parametrize("chunk_size", [3, 100])
def test_without_entropies_value_and_gradient_are_the_same(case, chunk_size):
    hidden, weight, targets = case
    h = hidden.clone().requires_grad_()
    logp, entropy = token_logprobs(
        h, targets, lambda x: x @ weight.T, temperature=0.7, chunk_size=chunk_size, entropy=False
    )
    (logp * torch.arange(7)).sum().backward()
    logits = hidden.numpy().astype(float) @ weight.numpy().astype(float).T / 0.7
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = np.arange(7)
    np.testing.assert_allclose(logp.detach(), np.log(p[rows, targets.numpy()]), atol=1e-5)
    expected = rows[:, None] * (np.eye(11)[targets.numpy()] - p) @ weight.numpy() / 0.7
    np.testing.assert_allclose(h.grad, expected, atol=1e-4)
    assert not entropy.any()


def test_a_very_unlikely_token_has_a_finite_log_prob():
    logits = torch.tensor([[300.0, 0.0, -40.0]], requires_grad=True)
    logp, _ = ChosenLogprob.apply(logits.clone(), torch.tensor([2]), 1.0, False)
    assert logp.item() == pytest.approx(-340.0)
    logp.sum().backward(retain_graph=True)
    np.testing.assert_allclose(logits.grad, [[-1.0, 0.0, 1.0]], atol=1e-6)
    with pytest.raises(RuntimeError, match="inplace"):
        logp.sum().backward()
