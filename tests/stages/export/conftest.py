import pytest
import small

from stages.models.text import Codec


@pytest.fixture
def codec() -> Codec:
    return Codec(small.bpe())
