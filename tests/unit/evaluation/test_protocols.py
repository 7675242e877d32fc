"""Protocols of re-identification and landmark retrieval, against loops over their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diml.evaluation import evaluate_regions
from diml.evaluation.extra import extra_metrics
from diml.evaluation.metrics import METRICS, check_metrics, query_metrics
from diml.evaluation.split import QueryGallerySplit
from diml.matching import Matcher, Regions
from diml.matching.retrieval import NOTHING

REID = ("recall@1", "recall@3", "recall@5", "map", "map_trapezoid", "minp", "map@r", "r_precision")


def regions_of(images: int, seed: int, classes: int = 4) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 4, 8, generator=generator)
    dense = centres[torch.arange(images) % classes] + 1.5 * torch.randn(images, 4, 8, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1), (2, 2))


def reid_by_loops(cosines: np.ndarray, labels: np.ndarray, cameras: np.ndarray, query: int, gallery: list[int]) -> dict:
    """CMC, AP and INP of one query, as evaluations of re-identification compute them."""
    order = sorted(gallery, key=lambda image: -cosines[query, image])
    kept = [g for g in order if not (labels[g] == labels[query] and cameras[g] == cameras[query])]
    right = [labels[g] == labels[query] for g in kept]
    places = [place for place, yes in enumerate(right, start=1) if yes]
    if not places:
        return {}
    precisions = [found / place for found, place in enumerate(places, start=1)]
    trapezoid = 0.0  # Oxford5k: old and new precision are averaged at each step of the recall
    old_recall, old_precision, found = 0.0, 1.0, 0
    for place, yes in enumerate(right, start=1):
        found += yes
        recall, precision = found / len(places), found / place
        trapezoid += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return {
        **{f"recall@{k}": float(any(right[:k])) for k in (1, 3, 5)},
        "map": sum(precisions) / len(places),
        "map_trapezoid": trapezoid,
        "minp": len(places) / places[-1],
        "map@r": sum(p for p, place in zip(precisions, places, strict=True) if place <= len(places)) / len(places),
        "r_precision": sum(place <= len(places) for place in places) / len(places),
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sides", ["leave-one-out", "query and gallery"])
def test_metrics_equal_loops_over_the_definitions(seed: int, sides: str) -> None:
    images = 26
    regions, labels = regions_of(images, seed), np.arange(images) % 4
    cameras = np.random.default_rng(seed).integers(3, size=images)
    chosen = {} if sides == "leave-one-out" else {"queries": list(range(8)), "gallery": list(range(5, images))}
    queries, gallery = chosen.get("queries", range(images)), chosen.get("gallery", list(range(images)))
    found = evaluate_regions(
        regions, labels, rerank_at=(0,), cameras=cameras, metrics=REID, without_relevant="exclude", **chosen
    )
    cosines = (regions.pooled.double() @ regions.pooled.double().T).numpy()
    wanted = {
        query: reid_by_loops(cosines, labels, cameras, query, [g for g in gallery if g != query]) for query in queries
    }
    counted = [query for query in queries if wanted[query]]
    assert found.queries.tolist() == counted
    for name in REID:
        expected = [wanted[query][name] for query in counted]
        np.testing.assert_allclose(found.per_query[0][name], expected, rtol=0, atol=1e-12)


def test_all_right_hits_from_the_camera_of_the_query_count_for_nothing() -> None:
    """Where the only near images are of the query's camera, R@1 is 0 under the protocol and 100 % without it."""
    dense = torch.tensor([[1.0, 0], [1, 0.01], [0, 1], [0.3, 1], [1, 0.2]]).unsqueeze(1)
    regions = Regions.normalized(dense, dense[:, 0])
    sides = {"queries": [0], "gallery": [1, 2, 3, 4]}
    labels, cameras = [7, 7, 7, 8, 8], ["a", "a", "b", "b", "b"]
    plain = evaluate_regions(regions, labels, rerank_at=(0,), **sides)
    reid = evaluate_regions(regions, labels, rerank_at=(0,), cameras=cameras, metrics=REID, **sides)
    assert plain.row(0)["recall@1"] == 1
    assert reid.row(0)["recall@1"] == 0
    assert reid.row(0)["map"] == pytest.approx(1 / 3)  # image 2 stands behind 4 and 3


def test_ignored_images_are_not_reranked_and_keep_nothing_in_the_ranking() -> None:
    images = 24
    regions, cameras = regions_of(images, 1), torch.arange(images) % 2
    split = QueryGallerySplit.from_labels(torch.arange(images) % 4, cameras=cameras)
    order = split.nearest(regions.pooled, images).order
    assert not split.ignored(order).any()
    for query, row in enumerate(order.tolist()):
        kept = [image for image in row if image != NOTHING]
        ignored = [g for g in range(images) if g % 4 == query % 4 and g % 2 == query % 2]
        assert sorted(kept + ignored) == list(range(images))
        assert row[len(kept) :] == [NOTHING] * len(ignored)


def test_junk_is_neither_query_nor_gallery_image() -> None:
    images = 20
    regions, labels = regions_of(images, 2), np.arange(images) % 4
    junk = labels.copy()
    junk[[3, 8, 15]] = -1
    kept = np.flatnonzero(junk >= 0)
    with_junk = evaluate_regions(regions, junk, rerank_at=(0, 6))
    without = evaluate_regions(regions[kept], labels[kept], rerank_at=(0, 6))
    assert with_junk.rows == without.rows
    assert with_junk.gallery_size == len(kept)
    words = evaluate_regions(regions, [str(label) for label in junk], rerank_at=(0, 6))
    assert words.rows == without.rows
    with pytest.raises(ValueError, match="junk"):
        evaluate_regions(regions, [-1] * images)


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 20))
def test_laws_of_the_whole_ranking(seed: int, relevant_images: int, others: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ranking = torch.arange(relevant_images + others) < relevant_images
    shuffled = ranking[torch.randperm(len(ranking), generator=generator)].unsqueeze(0)
    count, inside = torch.tensor([relevant_images]), torch.tensor([False])
    found = {k: float(v) for k, v in query_metrics(shuffled, count, inside, REID).items()}
    assert all(0 <= value <= 1 for value in found.values())
    assert found["map@r"] <= found["map"] + 1e-12  # it has the same terms, and more
    perfect = query_metrics(ranking.unsqueeze(0), count, inside, REID)
    assert all(float(value) == pytest.approx(1) for value in perfect.values())


def test_metrics_equal_torchmetrics() -> None:
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalRPrecision

    generator = torch.Generator().manual_seed(0)
    relevant = torch.rand(40, 30, generator=generator) < 0.2
    relevant[:, 4] = True
    scores = torch.arange(30, 0, -1.0).expand(40, -1)
    index = torch.arange(40).unsqueeze(1).expand(-1, 30)
    ours = query_metrics(relevant, relevant.sum(dim=1), torch.zeros(40, dtype=torch.bool), REID)
    theirs = {
        "map": RetrievalMAP(),
        "r_precision": RetrievalRPrecision(),
        "recall@1": RetrievalHitRate(top_k=1),
        "recall@3": RetrievalHitRate(top_k=3),
        "recall@5": RetrievalHitRate(top_k=5),
    }
    for name, metric in theirs.items():  # which compute in float32
        value = metric(scores.flatten(), relevant.flatten(), indexes=index.flatten())
        assert float(ours[name].mean()) == pytest.approx(float(value), abs=1e-6), name


def test_metrics_equal_those_of_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    def exact_knn(query, k, reference, same_source):  # the library's own needs another package
        cosines = query @ reference.T
        if same_source:
            cosines.fill_diagonal_(-torch.inf)
        found = cosines.topk(k, dim=1)
        return 1 - found.values, found.indices

    regions, labels = regions_of(40, 5), torch.arange(40) % 5
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_average_precision"),
        k=39,
        knn_func=exact_knn,
    )
    theirs = calculator.get_accuracy(regions.pooled, labels)
    ours = evaluate_regions(regions, labels, rerank_at=(0,), metrics=(*METRICS, "map")).row(0)
    pairs = {
        "recall@1": "precision_at_1",
        "r_precision": "r_precision",
        "map@r": "mean_average_precision_at_r",
        "map": "mean_average_precision",
    }
    for name, their_name in pairs.items():
        assert ours[name] == pytest.approx(theirs[their_name], abs=1e-12), name


def test_map_of_the_further_metrics_ignores_too() -> None:
    regions, labels = regions_of(24, 3), torch.arange(24) % 3
    cameras = torch.arange(24) // 3 % 2
    report = evaluate_regions(regions, labels, rerank_at=(0,), cameras=cameras, metrics=("map",))
    assert extra_metrics(regions, labels, cameras=cameras)["map"] == pytest.approx(report.row(0)["map"], abs=1e-12)


def test_a_reranking_keeps_what_is_ignored_out() -> None:
    regions, labels, cameras = regions_of(24, 4), torch.arange(24) % 4, torch.arange(24) // 4 % 2
    report = evaluate_regions(regions, labels, rerank_at=(0, 5), cameras=cameras, matcher=Matcher(), metrics=REID)
    for row, query in enumerate(report.queries.tolist()):
        hits = report.hits[5][row]
        hits = hits[hits != NOTHING]
        assert not ((labels[hits] == labels[query]) & (cameras[hits] == cameras[query])).any()


@pytest.mark.parametrize("name", ["recall@0", "recall@", "recall@-1", "precision", "mAP"])
def test_unknown_metrics_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"metrics: no metric .*recall@k and map@k for any k"):
        check_metrics([name])


def test_cameras_have_to_fit() -> None:
    with pytest.raises(ValueError, match="cameras: need one for each of 8 images, got 3"):
        evaluate_regions(regions_of(8, 0), torch.arange(8) % 2, cameras=[1, 2, 3])
