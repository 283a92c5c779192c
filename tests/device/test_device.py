"""The simulated device refuses and counts the documented operations."""

import pytest
import simulated_device
import torch
from simulated_device import NAME, counting
from torch import nn


def on(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device=NAME)


INDEX = torch.zeros(3, dtype=torch.long)


@pytest.mark.expects_refusals
@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(lambda: on(3) * torch.ones(3), id="elementwise"),
        pytest.param(lambda: torch.ones(3)[INDEX.to(NAME)], id="host tensor indexed by a device tensor"),
        pytest.param(lambda: on(3).index_put_((INDEX.to(NAME),), torch.ones(3)), id="host values"),
        pytest.param(lambda: torch.ones(()).add_(on()), id="in place into a host scalar"),
        pytest.param(lambda: on(3).gather(0, INDEX), id="gather"),
        pytest.param(lambda: on(3).scatter(0, INDEX, on(3)), id="scatter"),
        pytest.param(lambda: on(3).index_select(0, INDEX), id="index_select"),
        pytest.param(lambda: torch.cat([on(3), torch.ones(3)]), id="cat"),
        pytest.param(lambda: torch.cat([on(3), torch.ones(())[None]]), id="cat of one number"),
        pytest.param(lambda: torch.stack([on(), torch.ones(())]), id="stack of scalars"),
        pytest.param(lambda: torch.isin(on(3), torch.ones(2)), id="isin"),
        pytest.param(lambda: torch.searchsorted(on(3), torch.ones(2)), id="searchsorted"),
        pytest.param(lambda: on(2, 2) @ torch.ones(2, 2), id="matrix product"),
        pytest.param(lambda: nn.functional.embedding(INDEX, on(3, 2)), id="embedding"),
        pytest.param(lambda: on(3).double(), id="float64 by conversion"),
        pytest.param(lambda: torch.zeros(3, dtype=torch.float64, device=NAME), id="float64 from the start"),
        pytest.param(lambda: on(3).sum(dtype=torch.float64), id="float64 sum"),
        pytest.param(lambda: on(3).numpy(), id="numpy"),
    ],
)
def test_operations_across_devices_are_refused(operation):
    with pytest.raises((RuntimeError, TypeError), match="simulated device"):
        operation()
    assert "tests/device/test_device.py" in simulated_device.refused[-1]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda: on(3) * torch.tensor(2.0), [2.0, 2.0, 2.0]),
        (lambda: on(3) * torch.tensor(2.0, dtype=torch.float64), [2.0, 2.0, 2.0]),
        (lambda: on(3).masked_fill(on(3).bool(), torch.tensor(2.0)), [2.0, 2.0, 2.0]),
        (lambda: torch.arange(3, device=NAME)[INDEX], [0, 0, 0]),
        (lambda: torch.arange(3, device=NAME)[[2, 1]], [2, 1]),
        (lambda: torch.where(on(2).bool(), on(2), 0.0), [1.0, 1.0]),
        (lambda: torch.tensor([1, 2], device=NAME), [1, 2]),
        (lambda: torch.linspace(0, 1, 3, device=NAME), [0.0, 0.5, 1.0]),
        (lambda: torch.ones(3).copy_(on(3)), [1.0, 1.0, 1.0]),
    ],
)
def test_operations_that_cuda_allows_are_allowed(operation, expected):
    assert operation().tolist() == expected


@pytest.mark.parametrize(
    ("operation", "kinds"),
    [
        (lambda: on(3).sum().item(), ["item"]),
        (lambda: bool(on()), ["item"]),
        (lambda: on(3).tolist(), ["tolist"]),
        (lambda: on(3).nonzero(), ["nonzero"]),
        (lambda: on(3)[on(3) > 0], ["boolean index"]),
        (lambda: on(3).masked_select(on(3) > 0), ["masked_select"]),
        (lambda: torch.equal(on(3), on(3)), ["equal"]),
        (lambda: on(3).unique(), ["unique"]),
        (lambda: on(3).cpu(), ["device to host"]),
        (lambda: torch.ones(3).to(NAME), ["host to device"]),
        (lambda: on(3).copy_(torch.ones(3)), ["host to device"]),
        (lambda: on(3)[INDEX], ["host to device"]),
        (lambda: on(3).repeat_interleave(on(3).long()), ["repeat_interleave without output_size"]),
        (lambda: on(3).long().repeat_interleave(on(3).long(), output_size=3), []),
        (lambda: on(3)[torch.arange(3, device=NAME)] + 1, []),
        (lambda: on(3, 3).softmax(-1).argsort(stable=True)[:2], []),
    ],
)
def test_synchronisations_are_counted_by_source_line(operation, kinds):
    with counting() as syncs:
        operation()
    assert [kind for kind, _ in syncs.elements()] == kinds
    assert all(line.startswith("tests/device/test_device.py:") for _, line in syncs)


def test_training_matches_the_cpu():
    """With autograd, an optimizer, tied weights and their checkpoint."""
    torch.manual_seed(0)
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Tanh(), head)
    ids = torch.arange(5)

    def train(device: str) -> torch.Tensor:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(ids.to(device)), ids.to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        return embedding.weight.detach().cpu().clone()

    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = train("cpu")
    model.load_state_dict(start)
    model.to(NAME)
    assert head.weight is embedding.weight
    torch.testing.assert_close(train(NAME), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_products_in_its_precision(dtype):
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    expected = nn.functional.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
    layer.to(NAME)
    with torch.autocast(NAME, dtype=dtype):
        result = layer(x.to(NAME))
        assert result.exp().dtype == dtype
        assert nn.functional.embedding(INDEX.to(NAME), layer.weight).dtype == torch.float32
    torch.testing.assert_close(result.cpu(), expected)
    result.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
