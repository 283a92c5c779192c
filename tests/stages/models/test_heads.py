import numpy as np
import pytest
import torch

from pipeline.errors import StageError
from stages.models.heads import ScalarHead, at_last_token


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = ScalarHead(8)
    torch.nn.init.constant_(head.bias, 0.3)
    return head


def test_output_is_a_scalar_in_float32(head):
    hidden = torch.randn(2, 5, 8)
    expected = hidden.numpy() @ head.weight.detach().numpy()[0] + 0.3
    np.testing.assert_allclose(head(hidden).detach(), expected, atol=1e-6)
    half = head(hidden.bfloat16())
    assert (half.shape, half.dtype) == ((2, 5), torch.float32)


def test_rescale_normalises_the_output(head):
    hidden = torch.randn(50, 8)
    before = head(hidden).detach().numpy()
    head.rescale_(mean=1.5, std=0.25)
    np.testing.assert_allclose(head(hidden).detach(), (before - 1.5) / 0.25, atol=1e-4)


def test_save_and_load(head, tmp_path):
    head.save(tmp_path / "head.safetensors")
    loaded = ScalarHead.load(tmp_path / "head.safetensors")
    assert torch.equal(loaded.weight, head.weight)
    assert torch.equal(loaded.bias, head.bias)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "other tensors"])
def test_a_damaged_file_raises_a_stage_error(head, tmp_path, damage):
    path = tmp_path / "head.safetensors"
    head.save(path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "other tensors":
        from safetensors.torch import save_file

        save_file({"something": torch.zeros(1)}, path)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(StageError, match="head cannot be loaded") as caught:
        ScalarHead.load(path)
    assert str(path) in str(caught.value)


def test_the_initial_scale_does_not_grow_with_width():
    torch.manual_seed(0)
    spreads = [float(ScalarHead(width)(torch.randn(4000, width)).detach().std()) for width in (16, 1024)]
    assert spreads == pytest.approx([1.0, 1.0], abs=0.4)


def test_at_last_token():
    values = torch.arange(24.0).view(2, 4, 3)
    last = at_last_token(values, torch.tensor([2, 4]))
    assert last.tolist() == [[3.0, 4.0, 5.0], [21.0, 22.0, 23.0]]
    assert at_last_token(values[..., 0], torch.tensor([1, 3])).tolist() == [0.0, 18.0]
