"""How regions are kept while they are evaluated."""

import pytest
import torch

from diml.evaluation.evaluate import evaluate_dataset, stored_as
from diml.matching import QuantizedRegions, Regions


def images(dtype=torch.float32):
    dense = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    return Regions.normalized(dense, dense.mean(dim=1)).to(dtype)


@pytest.mark.parametrize("storage", ["float32", "float16", "int16", "int8"])
def test_regions_are_stored_as_asked(storage):
    regions, stored = images(), stored_as(images(), storage)
    kept = stored.codes if isinstance(stored, QuantizedRegions) else stored.dense
    assert kept.dtype == getattr(torch, storage)
    assert (stored[:].dense.float() - regions.dense).abs().max() < 1e-2
    if storage != "float16":
        assert stored.pooled.equal(regions.pooled)


def test_what_is_stored_so_is_left_as_it_is():
    regions = images()
    assert stored_as(regions, "float32") is regions


def test_an_unknown_storage_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"storage: need one of \('float32', .*\), got 'int4'"):
        evaluate_dataset(None, None, storage="int4")
