import pytest
import torch
from torch import nn

from pipeline.errors import StageError
from stages.training.optimizers import adamw

VALUES = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def trained(kind, steps=5):
    torch.manual_seed(0)
    large, small = nn.Parameter(torch.randn(64, 128)), nn.Parameter(torch.randn(10))
    optimizer = adamw(kind, [large, small], "cpu", **VALUES)
    assert not optimizer.state, "PPO's check of a role's first gradient asks for this"
    for step in range(steps):
        (large.sin() * (step + 1)).sum().backward()
        (small**2).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return large.detach(), small.detach(), optimizer


def test_eight_bits_are_those_of_adamw_but_for_rounding():
    large, small, optimizer = trained("adamw_8bit")
    expected_large, expected_small, _ = trained("adamw")
    torch.testing.assert_close(small, expected_small, rtol=1e-5, atol=1e-6)
    off = (large - expected_large).abs().max()
    assert 0 < off < 0.2 * 5 * VALUES["lr"], "a step is about the learning rate"
    states = [state for state in optimizer.state.values() if state["state1"].numel() == 64 * 128]
    assert all(state[name].dtype == torch.uint8 for state in states for name in ("state1", "state2"))


def test_paging_needs_a_cuda_device():
    with pytest.raises(StageError, match="the device is cpu"):
        adamw("paged_adamw_8bit", [nn.Parameter(torch.zeros(3))], "cpu", **VALUES)
