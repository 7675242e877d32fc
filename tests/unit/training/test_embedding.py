"""One process; several are in tests/end_to_end/test_distributed.py."""

from __future__ import annotations

import warnings

import pytest
import torch

from diml.data import ImageSet, load_dataset
from diml.distributed import ProcessGroup
from diml.training.embedding import embed_shared, gather_regions

ALONE = ProcessGroup()


def test_one_process_embeds_as_the_embedder_does(tiny, images):
    test = load_dataset("csv", images).test
    embedder = tiny()
    found = embed_shared(embedder, test, ALONE, batch_size=5)
    direct = embedder.embed(test.paths, batch_size=5)
    assert torch.equal(found.regions.dense, direct.dense)
    assert found.images is test


def test_gathering_in_one_process_is_the_identity(tiny):
    regions = tiny()(torch.randn(2, 3, 64, 64))
    assert gather_regions(regions, ALONE) is regions


def test_unreadable_images_are_skipped_by_name(tiny, images, tmp_path):
    test = load_dataset("csv", images).test
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths = (*test.paths[:2], tmp_path / "broken.png", *test.paths[3:])
    mixed = ImageSet(paths, test.labels, name="mixed")
    with pytest.warns(UserWarning, match=r"skipped .*broken.png: "):
        found = embed_shared(tiny(), mixed, ALONE, batch_size=5, on_bad_image="skip")
    assert found.kept.tolist() == [i for i in range(len(test)) if i != 2]
    assert len(found.images) == len(found.regions) == len(test) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"broken.png"):
            embed_shared(tiny(), mixed, ALONE, batch_size=5)
