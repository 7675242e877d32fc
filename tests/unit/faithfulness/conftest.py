"""The small network and image set, one for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.explain.faithfulness.small import small_shop, tiny_embedder

from diml.data import ImageSet
from diml.models import Embedder


@pytest.fixture
def tiny() -> Embedder:
    return tiny_embedder()


@pytest.fixture
def shop(tmp_path: Path) -> ImageSet:
    return small_shop(tmp_path)
