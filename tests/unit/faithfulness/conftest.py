"""The small network and image set, new for each test, and random matches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diml.data import ImageSet
from diml.matching import Match
from diml.models import Embedder
from unit.explain.random_matches import make_match
from unit.faithfulness.small import small_shop, tiny_embedder


@pytest.fixture
def tiny() -> Embedder:
    return tiny_embedder()


@pytest.fixture
def shop(tmp_path: Path) -> ImageSet:
    return small_shop(tmp_path)


@pytest.fixture
def random_match() -> Callable[..., Match]:
    """`random_match((rows, columns) or R, (rows, columns) or R, pairs=1, signed=False, **settings)`."""
    return make_match
