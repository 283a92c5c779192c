import numpy as np
import pytest
import torch
from torch import nn

from stages.training.loss_scale import LossScale, needs_loss_scale


def test_only_float16_weights_need_a_scale():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert not needs_loss_scale(model)
    assert not needs_loss_scale(model.bfloat16())
    model[1].half()
    assert needs_loss_scale(model)


def test_without_need_of_it_nothing_is_scaled_and_nothing_skipped():
    scale, parameter = LossScale(False), nn.Parameter(torch.ones(3))
    loss = parameter.sum()
    assert scale(loss) is loss
    parameter.grad = torch.full((3,), 2.0)
    scale.unscale_([parameter])
    assert parameter.grad.tolist() == [2.0, 2.0, 2.0]
    assert not scale.skips(True)
    assert not scale.skips(False)


def test_gradients_come_back_in_their_own_size():
    scale, parameter = LossScale(True), nn.Parameter(torch.tensor([1.0, -2.0]))
    scale((parameter**2).sum()).backward()
    assert parameter.grad.abs().min() > 1e4
    scale.unscale_([parameter, nn.Parameter(torch.ones(1))])
    assert parameter.grad.tolist() == [2.0, -4.0]


def test_it_halves_at_each_overflow_until_it_is_one():
    scale = LossScale(True)
    seen = []
    while scale.skips(False):
        seen.append(scale.value)
    assert seen == [2.0**i for i in range(15, -1, -1)]
    assert scale.value == 1.0, "no factor is left to blame: the next gradient that is not finite is an error"


def test_it_doubles_after_an_interval_without_overflow(monkeypatch):
    monkeypatch.setattr(LossScale, "growth_interval", 3)
    scale = LossScale(True)
    finite = [True, True, False, True, True, True, True, True, True]
    assert [scale.skips(f) for f in finite] == [not f for f in finite]
    assert scale.value == 2.0**16 / 2 * 2 * 2


def test_it_follows_torchs_own_scaler(monkeypatch):
    """The same overflows, the same factors."""
    monkeypatch.setattr(LossScale, "growth_interval", 4)
    ours, theirs = LossScale(True), torch.amp.GradScaler("cpu", growth_interval=4)
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    overflows = np.random.default_rng(0).random(60) < 0.2
    for overflow in overflows:
        theirs.scale(parameter.sum() * (float("inf") if overflow else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.skips(not overflow)
        assert ours.value == theirs.get_scale()
    assert overflows.sum() > 5


def test_its_state_goes_on_where_it_was(monkeypatch):
    monkeypatch.setattr(LossScale, "growth_interval", 3)
    first, second = LossScale(True), LossScale(True)
    for finite in (False, False, True, True):
        first.skips(finite)
    second.load_state_dict(first.state_dict())
    for scale in (first, second):
        scale.skips(True)
    assert first.state_dict() == second.state_dict() == {"value": 2.0**15, "good_steps": 0}


@pytest.mark.parametrize("scaled", [False, True])
def test_a_mean_over_many_tokens_underflows_without_it(scaled):
    """Gradient of float32 parameters behind an activation in float16, of a mean over 65,536 tokens."""
    torch.manual_seed(0)
    x, weight = torch.randn(256, 32), torch.randn(32, 16) / 32**0.5
    out = torch.randn(16) / 1024

    def gradient(dtype, scale):
        leaf = weight.clone().requires_grad_()
        hidden = (x @ leaf).to(dtype)
        loss = (hidden.tanh() @ out.to(dtype)).float().sum() / 65536
        scale(loss).backward()
        scale.unscale_([leaf])
        return leaf.grad.flatten()

    exact = gradient(torch.float32, LossScale(False))
    found = gradient(torch.float16, LossScale(scaled))
    cosine = float(torch.cosine_similarity(exact, found, 0))
    assert cosine > 0.999 if scaled else cosine < 0.9
