from pathlib import Path

import pytest


@pytest.fixture
def shared() -> Path:
    """A folder of data sets outside the repository; tests that need it are skipped if it is missing."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets in {folder}")
    return folder
