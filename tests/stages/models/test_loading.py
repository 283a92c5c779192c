import pytest
import torch

from pipeline.errors import StageError
from stages.models.loading import dtype_of, readable_checkpoint


@pytest.mark.parametrize("error", [OSError(), ValueError("first line\nsecond line"), KeyError("weight")])
def test_whatever_is_wrong_with_a_checkpoint_is_one_message(error):
    with pytest.raises(StageError, match="checkpoint cannot be loaded: ") as caught, readable_checkpoint("x"):
        raise error
    assert "second line" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_dtype_on_a_cpu(name, expected):
    assert dtype_of(name, "cpu") == expected
