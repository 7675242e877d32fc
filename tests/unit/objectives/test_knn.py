"""`StructuralKNN` in PML's calculator and testers gives the numbers of our own evaluation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import nn
from torch.utils.data import TensorDataset

import diml
from diml.matching import Matcher, Regions
from diml.objectives import StructuralKNN, StructuralSimilarity, pack_regions

METRICS = {
    "recall@1": "precision_at_1",
    "r_precision": "r_precision",
    "map@r": "mean_average_precision_at_r",
}


def photos(count: int, seed: int) -> tuple[Regions, torch.Tensor]:
    """Images of 6 classes, of 2 x 2 regions with 8 channels, that look alike enough for errors."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 6
    centres = torch.randn(6, 8, 2, 2, generator=torch.Generator().manual_seed(7))
    return Regions.from_maps(centres[labels] + 1.5 * torch.randn(count, 8, 2, 2, generator=generator)), labels


def numbers(knn, *arguments) -> dict[str, float]:
    calculator = AccuracyCalculator(include=tuple(METRICS.values()), knn_func=knn, device=torch.device("cpu"))
    return calculator.get_accuracy(*arguments)


@pytest.mark.parametrize("rerank_at", [0, 10, 1000])
def test_the_numbers_are_those_of_our_evaluation(rerank_at: int) -> None:
    regions, labels = photos(48, 0)
    found = numbers(StructuralKNN(4, rerank_at), pack_regions(regions), labels)
    report = diml.evaluate_regions(regions, labels, rerank_at=(rerank_at,)).row(rerank_at)
    assert {name: found[METRICS[name]] for name in METRICS} == pytest.approx(
        {name: report[name] for name in METRICS}, abs=1e-9
    )
    assert 0.1 < found["precision_at_1"] < 0.95


def test_full_re_ranking_is_pmls_own_search_with_the_structural_similarity() -> None:
    """Both directions of a pair differ by rounding only, so that the neighbours are the same."""
    (query, labels_q), (gallery, labels_g) = photos(12, 1), photos(30, 2)
    packed = pack_regions(query), pack_regions(gallery)
    ours, theirs = StructuralKNN(4, 30), CustomKNN(StructuralSimilarity(4))
    _, rows = ours(packed[0], 30, packed[1])
    _, expected = theirs(packed[0], 30, packed[1])
    assert torch.equal(rows, expected)
    arguments = (packed[0], labels_q, packed[1], labels_g)
    assert numbers(ours, *arguments) == pytest.approx(numbers(theirs, *arguments))


def test_distances_increase_and_the_query_is_left_out() -> None:
    regions, _ = photos(20, 3)
    packed = pack_regions(regions)
    distances, rows = StructuralKNN(4, 6)(packed, 19, packed, ref_includes_query=True)
    assert (distances.diff(dim=1) >= 0).all()
    assert [sorted(row) for row in rows.tolist()] == [[*range(i), *range(i + 1, 20)] for i in range(20)]
    pooled = diml.nearest(regions, regions, 19, exclude=torch.arange(20)).order
    assert torch.equal(rows[:, 6:], pooled[:, 6:])
    assert not torch.equal(rows, pooled)
    few = StructuralKNN(4, 6)(packed, 2, packed, ref_includes_query=True)
    assert torch.equal(few[1], rows[:, :2])


def test_a_matcher_is_used() -> None:
    regions, _ = photos(20, 4)
    packed = pack_regions(regions)
    orders = [StructuralKNN(4, 19, Matcher(weights=name))(packed, 19, packed, True)[1] for name in _WEIGHTS]
    assert not torch.equal(*orders)


_WEIGHTS = ("cross_correlation", "uniform")


def test_a_tester_that_normalises_embeddings_gives_the_same_numbers() -> None:
    regions, labels = photos(24, 5)
    calculator = AccuracyCalculator(
        include=("precision_at_1",), knn_func=StructuralKNN(4, 5), device=torch.device("cpu")
    )
    tester = GlobalEmbeddingSpaceTester(
        accuracy_calculator=calculator, dataloader_num_workers=0, batch_size=8, data_device=torch.device("cpu")
    )
    images = TensorDataset(pack_regions(regions), labels)
    found = tester.test({"val": images}, 0, nn.Identity())["val"]["precision_at_1_level0"]
    assert found == pytest.approx(diml.evaluate_regions(regions, labels, rerank_at=(5,)).row(5)["recall@1"])
    assert not torch.allclose(F.normalize(pack_regions(regions)), pack_regions(regions))


def test_errors_name_what_is_needed() -> None:
    packed = pack_regions(photos(6, 6)[0])
    with pytest.raises(ValueError, match="regions: need an integer of at least 1, got 0"):
        StructuralKNN(0)
    with pytest.raises(ValueError, match="rerank_at: need an integer of at least 0"):
        StructuralKNN(4, -1)
    with pytest.raises(ValueError, match="k: need 1 to 5 neighbours, got 6"):
        StructuralKNN(4)(packed, 6, packed, True)
    with pytest.raises(ValueError, match="check the number of regions"):
        StructuralKNN(5)(packed, 3, packed)
