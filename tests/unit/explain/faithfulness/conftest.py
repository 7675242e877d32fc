"""The small network and picture set, one for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from diml.data import PictureSet
from diml.models import Embedder
from unit.explain.faithfulness.small import small_shop, tiny_embedder


@pytest.fixture
def tiny() -> Embedder:
    return tiny_embedder()


@pytest.fixture
def shop(tmp_path: Path) -> PictureSet:
    return small_shop(tmp_path)
