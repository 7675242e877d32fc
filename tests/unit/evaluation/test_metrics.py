"""Metrics of single queries on worked examples: perfect, hopeless, in between, without anything to find."""

from __future__ import annotations

import pytest
import torch

from diml.evaluation.metrics import METRICS, depth_needed, query_metrics


def of_one(relevant: list[int], count: int, in_gallery: bool) -> dict[str, float]:
    """Metrics of one query."""
    table = torch.tensor([relevant]).bool()
    found = query_metrics(table, torch.tensor([count]), torch.tensor([in_gallery]))
    return {name: value.item() for name, value in found.items()}


def test_columns_stand_in_the_order_of_tables():
    found = query_metrics(torch.zeros(2, 3).bool(), torch.tensor([1, 2]), torch.tensor([True, False]))
    assert tuple(found) == METRICS
    assert {(value.dtype, value.shape) for value in found.values()} == {(torch.float64, (2,))}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 49])
@pytest.mark.parametrize("in_gallery", [True, False])
def test_a_perfect_ranking_scores_exactly_1_and_self_counted_its_ceiling(count, in_gallery):
    found = of_one([1] * count + [0] * 10, count, in_gallery)
    ceiling = count / (count + in_gallery)
    assert found == {name: ceiling if name.endswith("self_counted") else 1.0 for name in METRICS}


@pytest.mark.parametrize("count", [1, 5])
def test_a_ranking_with_the_relevant_last_scores_0(count):
    assert set(of_one([0] * 10 + [1] * count, count, True).values()) == {0.0}


@pytest.mark.parametrize(("first", "expected"), [(0, "1111"), (1, "0111"), (2, "0011"), (4, "0001"), (8, "0000")])
def test_recall_at_k_asks_for_one_among_the_first_k(first, expected):
    found = of_one([0] * first + [1] * 3, 3, True)
    assert [found[f"recall@{k}"] for k in (1, 2, 4, 8)] == [float(digit) for digit in expected]


@pytest.mark.parametrize(
    ("relevant", "count", "name", "expected"),
    [
        ([1, 0, 1, 1, 0], 3, "r_precision", 2 / 3),
        ([1, 0, 1, 1, 0], 3, "map@r", (1 / 1 + 2 / 3) / 3),
        ([1, 0, 1, 1, 0], 3, "r_precision_self_counted", 3 / 4),
        ([1, 0, 1, 1, 0], 3, "map@r_self_counted", (1 / 1 + 2 / 3 + 3 / 4) / 4),
        ([0, 1, 1], 1, "r_precision", 0),
        ([0, 1], 1, "map@r", 0),
        ([0, 1], 1, "r_precision_self_counted", 1 / 2),
        ([0, 1], 1, "map@r_self_counted", 1 / 4),
        ([1], 5, "r_precision", 1 / 5),  # the gallery ends before R
    ],
)
def test_precision_within_the_first_r(relevant, count, name, expected):
    assert of_one(relevant, count, True)[name] == pytest.approx(expected, abs=1e-15)


def test_a_query_from_outside_the_gallery_does_not_count_itself():
    found = of_one([0, 1, 1, 1], 2, False)
    assert found["r_precision_self_counted"] == found["r_precision"] == 1 / 2
    assert found["map@r_self_counted"] == found["map@r"] == 1 / 4


@pytest.mark.parametrize("in_gallery", [True, False])
@pytest.mark.parametrize("depth", [0, 1, 9])
def test_nothing_to_find_scores_0(in_gallery, depth):
    assert of_one([0] * depth, 0, in_gallery) == dict.fromkeys(METRICS, 0.0)


def test_queries_do_not_mix():
    relevant = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    count, inside = torch.tensor([1, 2, 0]), torch.tensor([True, False, True])
    together = query_metrics(relevant, count, inside)
    for row in range(3):
        alone = query_metrics(relevant[row : row + 1], count[row : row + 1], inside[row : row + 1])
        assert {name: value[row].item() for name, value in together.items()} == {
            name: value.item() for name, value in alone.items()
        }


@pytest.mark.parametrize(
    ("counts", "rerank_at", "depth"), [([3, 1], (0,), 8), ([3, 20], (0,), 21), ([3], (0, 100), 100), ([], (0, 2), 8)]
)
def test_a_ranking_is_wanted_as_deep_as_any_metric_looks(counts, rerank_at, depth):
    assert depth_needed(torch.tensor(counts, dtype=torch.int64), rerank_at) >= depth
