from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data sets (OpenMoji, COCO captions, SNLI), which are not part of the project."""
    repository = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("ELVA_SHARED_DATA", repository.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set ELVA_SHARED_DATA to the folder that holds it")
    return folder
