"""How many worker processes there may be; that they end is tested in tests/end_to_end/test_stopping.py."""

from __future__ import annotations

import pytest
from PIL import Image

from diml.data import Preprocess
from diml.data.loading import iterate_batches
from diml.workers import check_workers


@pytest.mark.parametrize("workers", [-1, 100_000, 1 << 70])
def test_a_number_that_no_machine_can_start_is_refused(workers, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(ValueError, match=rf"workers: need 0 to \d+ processes on a machine of \d+ cores, got {workers}"):
        iterate_batches([path], Preprocess(size=8, resize=8), workers=workers)


@pytest.mark.parametrize(("cores", "most"), [(2, 64), (64, 256), (None, 64)])
def test_the_limit_follows_the_cores(cores, most, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert check_workers(most) == most
    with pytest.raises(ValueError, match=f"need 0 to {most}"):
        check_workers(most + 1)
