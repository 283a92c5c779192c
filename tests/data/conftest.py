from pathlib import Path

import pytest


@pytest.fixture
def shared() -> Path:
    """Data sets that are not part of the repository; tests on them are skipped where they are not."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets in {folder}")
    return folder
