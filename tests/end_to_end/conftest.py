"""What the runs of seconds share: small pictures, and one thread, with which they are equal to the bit."""

import pytest
import torch

from end_to_end.small_runs import make_pictures


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))
