"""What all tests share: how hard hypothesis looks, and where the material outside the repository lies."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

SHARED = Path(__file__).resolve().parents[2] / "shared"

# "fast" draws the same examples in every run; `HYPOTHESIS_PROFILE=thorough pytest tests/laws` goes hunting.
_slow_is_fine = [HealthCheck.too_slow]
settings.register_profile("fast", deadline=None, max_examples=20, derandomize=True, suppress_health_check=_slow_is_fine)
settings.register_profile("thorough", deadline=None, max_examples=500, suppress_health_check=_slow_is_fine)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


#: Modules with a test or a fixture of minutes. They come first, so that no process works on them while others are done.
_MINUTES = ("test_documents", "test_recorded_numbers", "test_distributed", "test_resume")


@pytest.hookimpl(trylast=True)  # after the order is drawn
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in _MINUTES)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """A test that draws from torch's own generator draws the same in any order."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def oracle() -> dict[str, np.ndarray]:
    """Arrays that the released code gave on fixed inputs; `tests/reference/README.md` describes them."""
    with np.load(Path(__file__).parent / "reference" / "released_code.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def grocery_root() -> Path:
    """Folder of the Grocery Store photos."""
    path = SHARED / "datasets" / "grocery"
    if not path.is_dir():
        pytest.skip(f"the grocery photos are not here: {path}")
    return path


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory):
    """Address of a Milvus server, started where the first test asks for it; two at once would want the same ports."""
    from unit.search.milvus_server import running_server

    with running_server(tmp_path_factory.mktemp("server")) as address:
        yield address
