"""A tiny network, small images, and one thread: with more, small tensors take longer."""

from __future__ import annotations

import pytest
import torch

from diml.data.transforms import Preprocess
from diml.models import Embedder, load_embedder
from end_to_end.small_runs import make_images


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny():
    """Build an embedder on a network of some hundred thousand weights, the same for the same seed."""

    def build(*, seed: int = 0, name: str = "test_resnet", **options) -> Embedder:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            settings = {"head": "linear", "dim": 16, "grid": 2, "preprocess": Preprocess(size=64, resize=72)}
            return load_embedder(name, pretrained=False, **(settings | options))

    return build


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A CSV data set of 10 training and 4 test classes, 4 images each."""
    return make_images(tmp_path_factory.mktemp("images"))
