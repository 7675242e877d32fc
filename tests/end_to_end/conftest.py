"""Fixtures of the short runs: small images, and one thread, with which runs are bit-identical."""

import pytest
import torch

from end_to_end.small_runs import make_images


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))
