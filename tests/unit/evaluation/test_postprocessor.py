"""`StructuralPostprocessor` with stand-ins for the results and the data set of open-metric-learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import diml
from diml.evaluation import StructuralPostprocessor
from diml.matching import Regions

IMAGES = 20


@dataclass(frozen=True)
class Results:
    """The attributes and the checks of OML's `RetrievalResults`."""

    distances: Sequence[Tensor]
    retrieved_ids: Sequence[Tensor]
    gt_ids: Sequence[Tensor] | None = None

    def __post_init__(self) -> None:
        for distances, ids in zip(self.distances, self.retrieved_ids, strict=True):
            assert distances.ndim == ids.ndim == 1
            assert len(distances) == len(ids) == len(ids.unique())
            assert (distances.diff() >= 0).all()


@dataclass(frozen=True)
class Photos:
    """Queries and gallery among one data set."""

    queries: Tensor
    gallery: Tensor

    def get_query_ids(self) -> Tensor:
        return self.queries

    def get_gallery_ids(self) -> Tensor:
        return self.gallery


@pytest.fixture
def regions() -> Regions:
    return Regions.from_maps(torch.randn(IMAGES, 8, 2, 2, generator=torch.Generator().manual_seed(0)))


PHOTOS = Photos(torch.tensor([3, 0, 19]), torch.tensor([18, 2, 4, 5, 6, 7, 8, 1, 9, 10, 11]))


def retrieved(regions: Regions, lengths: Sequence[int]) -> Results:
    query, gallery = regions[PHOTOS.queries], regions[PHOTOS.gallery]
    order = diml.nearest(query, gallery, len(PHOTOS.gallery)).order
    distances = torch.cdist(query.pooled, gallery.pooled).gather(1, order)
    shortened = [(d[:length], ids[:length]) for d, ids, length in zip(distances, order, lengths, strict=True)]
    truth = tuple(ids[:1] for _, ids in shortened)
    return Results(tuple(d for d, _ in shortened), tuple(ids for _, ids in shortened), truth)


def test_the_order_is_that_of_our_re_ranking_and_the_rest_stays(regions: Regions) -> None:
    before = retrieved(regions, [11, 11, 11])
    after = StructuralPostprocessor(regions, top_n=6).process(before, PHOTOS)
    query, gallery = regions[PHOTOS.queries], regions[PHOTOS.gallery]
    expected = diml.rerank(query, gallery, torch.stack(tuple(before.retrieved_ids))[:, :6])
    assert type(after) is Results
    assert after.gt_ids is before.gt_ids
    for row, (ids, distances) in enumerate(zip(after.retrieved_ids, after.distances, strict=True)):
        assert torch.equal(ids[:6], expected.order[row])
        assert torch.equal(ids[6:], before.retrieved_ids[row][6:])
        assert torch.equal(distances[6:], before.distances[row][6:])
        steps = expected.scores[row, :-1] - expected.scores[row, 1:]
        torch.testing.assert_close(distances[:6].diff(), steps, atol=1e-5, rtol=0)
    assert any(not torch.equal(new, old) for new, old in zip(after.retrieved_ids, before.retrieved_ids, strict=True))


def test_queries_may_have_few_retrieved_images_or_none(regions: Regions) -> None:
    before = retrieved(regions, [4, 0, 1])
    after = StructuralPostprocessor(regions, top_n=6).process(before, PHOTOS)
    assert [len(ids) for ids in after.retrieved_ids] == [4, 0, 1]
    assert sorted(after.retrieved_ids[0].tolist()) == sorted(before.retrieved_ids[0].tolist())
    alone = StructuralPostprocessor(regions, top_n=6).process(retrieved(regions, [4, 11, 11]), PHOTOS)
    assert torch.equal(after.retrieved_ids[0], alone.retrieved_ids[0])
    assert torch.isfinite(after.distances[0]).all()


def test_errors_name_what_is_needed(regions: Regions) -> None:
    with pytest.raises(ValueError, match="top_n: need an integer of at least 2, got 1"):
        StructuralPostprocessor(regions, top_n=1)
    processor = StructuralPostprocessor(regions[:10], top_n=3)
    assert processor.top_n == 3
    with pytest.raises(ValueError, match="dataset: need images 0 to 9, those with regions, got 19"):
        processor.process(retrieved(regions, [3, 3, 3]), PHOTOS)
    with pytest.raises(ValueError, match="rr: need results of the 3 queries of the data set, got 0"):
        processor.process(Results((), ()), PHOTOS)
