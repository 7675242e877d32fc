"""The base code's further metrics equal their definitions, written out as loops or taken from elsewhere."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from scipy.stats import entropy
from sklearn.metrics import average_precision_score

from diml.evaluation import evaluate_regions, extra
from diml.evaluation.extra import (
    EXTRA_METRICS,
    average_precisions,
    class_distances,
    clustering_metrics,
    extra_metrics,
    pair_f1,
    spectral_decay,
)
from diml.matching import Regions


def clouds(sizes: list[int], spread: float = 0.5, dim: int = 6, seed: int = 0) -> tuple[Regions, np.ndarray]:
    """Classes as clouds around random centres; labels are not consecutive."""
    generator = torch.Generator().manual_seed(seed)
    labels = np.repeat(np.arange(len(sizes)) * 7 + 3, sizes)
    centres = torch.randn(len(sizes), dim, generator=generator)
    vectors = centres.repeat_interleave(torch.tensor(sizes), dim=0)
    vectors = vectors + spread * torch.randn(len(labels), dim, generator=generator)
    return Regions.normalized(vectors[:, None], vectors), labels


def ap_of(relevant: list[bool], depth: int, divisor: float) -> float:
    hits, total = 0, 0.0
    for place, hit in enumerate(relevant[:depth], 1):
        if hit:
            hits += 1
            total += hits / place
    return total / divisor


@given(seed=st.integers(0, 200), sizes=st.lists(st.integers(1, 6), min_size=2, max_size=6))
def test_average_precision_equals_a_loop_over_the_ranking(seed, sizes) -> None:
    regions, labels = clouds([*sizes, 2], seed=seed)
    got = extra_metrics(regions, labels)
    vectors = regions.pooled.double().numpy()
    found: dict[str, list[float]] = {}
    for query in range(len(labels)):
        others = [row for row in range(len(labels)) if row != query]
        others.sort(key=lambda row: -float(vectors[query] @ vectors[row]))
        relevant = [labels[row] == labels[query] for row in others]
        count = sum(relevant)
        if not count:
            continue
        for name, depth in (("map@c", count), ("map@1000", 1000), ("map@lim", 1023), ("map", len(others))):
            found.setdefault(name, []).append(ap_of(relevant, depth, min(count, depth)))
            self_depth = count + 1 if name == "map@c" else depth
            found.setdefault(f"{name}_self_counted", []).append(ap_of(relevant, self_depth, count + 1))
    for name, values in found.items():
        assert got[name] == pytest.approx(np.mean(values), rel=1e-5), name


def test_full_map_equals_scikit_learn_and_map_at_c_the_report() -> None:
    regions, labels = clouds([9, 4, 12, 2, 1], spread=1.2)
    queries, gallery = np.array([0, 5, 10, 20, 27]), np.array([3, 4, 5, 11, 12, 13, 14, 20, 21, 25, 26, 8])
    got = extra_metrics(regions, labels, queries=queries, gallery=gallery)
    vectors = regions.pooled.double().numpy()
    wanted = []
    for query in queries:
        rows = gallery[gallery != query]
        if (labels[rows] == labels[query]).any():
            wanted.append(average_precision_score(labels[rows] == labels[query], vectors[rows] @ vectors[query]))
    assert len(wanted) == 4
    assert got["map"] == pytest.approx(np.mean(wanted))
    report = evaluate_regions(regions, labels, rerank_at=(0,), queries=queries, gallery=gallery, resamples=10).row(0)
    assert got["map@c"] == pytest.approx(report["map@r"])
    assert got["map@c_self_counted"] == pytest.approx(report["map@r_self_counted"])


def test_depths_cut_long_rankings() -> None:
    relevant = torch.zeros(1, 3000, dtype=torch.bool)
    relevant[0, [0, 999, 1000, 1022, 1023, 2999]] = True
    found = average_precisions(relevant, torch.tensor([6]), torch.tensor([True]))
    places = [1, 1000, 1001, 1023, 1024, 3000]
    gains = list(itertools.accumulate((rank + 1) / place for rank, place in enumerate(places)))
    assert found["map@c"].item() == pytest.approx(gains[0] / 6)
    assert found["map@1000"].item() == pytest.approx(gains[1] / 6)
    assert found["map@lim"].item() == pytest.approx(gains[3] / 6)
    assert found["map"].item() == pytest.approx(gains[5] / 6)
    assert found["map_self_counted"].item() == pytest.approx(gains[5] / 7)
    everything = average_precisions(torch.ones(1, 3000, dtype=torch.bool), torch.tensor([3000]), torch.tensor([True]))
    assert {everything[name].item() for name in ("map@c", "map@1000", "map@lim", "map")} == {1.0}


def test_equal_scores_stand_in_gallery_order_and_the_query_is_never_found() -> None:
    pooled = torch.eye(3)[[0, 0, 0, 0, 1]]
    regions, labels = Regions(pooled[:, None], pooled), np.array([1, 2, 1, 2, 2])
    got = extra_metrics(regions, labels, queries=[2], gallery=range(5))
    assert got["map"] == 1
    got = extra_metrics(regions, labels, queries=[1], gallery=range(5))
    assert got["map"] == pytest.approx((1 / 3 + 2 / 4) / 2)  # 0, 2, 3, 4: relevant at 3 and 4


def test_blocks_change_nothing(monkeypatch) -> None:
    regions, labels = clouds([5, 6, 7], spread=1)
    whole = extra_metrics(regions, labels)
    monkeypatch.setattr(extra, "SCORE_BYTES", 1)
    parts = extra_metrics(regions, labels)
    assert whole == pytest.approx(parts, rel=1e-6)


@given(seed=st.integers(0, 100), count=st.integers(2, 25))
def test_f1_counts_pairs(seed, count) -> None:
    generator = np.random.default_rng(seed)
    labels, clusters = generator.integers(0, 4, count), generator.integers(0, 5, count)
    pairs = list(itertools.combinations(range(count), 2))
    right = sum(labels[a] == labels[b] and clusters[a] == clusters[b] for a, b in pairs)
    precision = right / max(1, sum(clusters[a] == clusters[b] for a, b in pairs))
    recall = right / max(1, sum(labels[a] == labels[b] for a, b in pairs))
    wanted = 2 * precision * recall / (precision + recall) if right else 0.0
    assert pair_f1(labels, clusters) == pytest.approx(wanted)


def test_clusters_that_are_the_classes_score_one_and_the_seed_decides() -> None:
    regions, labels = clouds([8, 5, 9, 7], spread=0.001)
    pooled = regions.pooled.double().numpy()
    assert clustering_metrics(pooled, labels, seed=0) == pytest.approx({"nmi": 1.0, "f1": 1.0})
    mixed, labels = clouds([20] * 6, spread=1.0)
    pooled = mixed.pooled.double().numpy()
    assert clustering_metrics(pooled, labels, seed=3) == clustering_metrics(pooled, labels, seed=3)
    assert len({clustering_metrics(pooled, labels, seed=seed)["nmi"] for seed in range(5)}) > 1
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    clustering_metrics(pooled, labels, seed=3)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_nmi_of_a_known_table() -> None:
    """Two classes of 2; clusters must be {0, 1, 2} and {3}: worked out by hand."""
    vectors = np.array([[1.0, 0], [1, 0.01], [1, -0.01], [-1, 0]])
    got = clustering_metrics(vectors, np.array([0, 0, 1, 1]), seed=0)
    shared = sum(p * math.log(p / (q * r)) for p, q, r in ((0.5, 0.5, 0.75), (0.25, 0.5, 0.75), (0.25, 0.5, 0.25)))
    assert got["nmi"] == pytest.approx(2 * shared / (entropy([0.5, 0.5]) + entropy([0.75, 0.25])))
    assert got["f1"] == pytest.approx(2 * 1 / (2 * 1 + 2 + 1))


@given(seed=st.integers(0, 100), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_distances_equal_loops_over_pairs(seed, sizes) -> None:
    regions, labels = clouds([*sizes, 3], seed=seed)
    vectors = regions.pooled.double()
    by_class = [vectors[torch.from_numpy(labels == label)].numpy() for label in np.unique(labels)]
    within = [
        np.mean([cosine(a, b) for a, b in itertools.combinations(members, 2)])
        for members in by_class
        if len(members) > 1
    ]
    between = [cosine(a.mean(axis=0), b.mean(axis=0)) for a, b in itertools.combinations(by_class, 2)]
    got = class_distances(vectors, labels)
    assert got["intra_distance"] == pytest.approx(np.mean(within), rel=1e-5, abs=1e-6)
    assert got["inter_distance"] == pytest.approx(np.mean(between), rel=1e-5, abs=1e-6)
    assert got["intra_over_inter"] == pytest.approx(got["intra_distance"] / got["inter_distance"])


def test_distances_where_all_coincide() -> None:
    same = torch.ones(4, 1, dtype=torch.float64)
    got = class_distances(same, np.array([0, 0, 1, 1]))
    assert got == pytest.approx({"intra_distance": 0, "inter_distance": 0, "intra_over_inter": 0}, abs=1e-6)


@given(seed=st.integers(0, 100), first=st.sampled_from([1, 2, 4]))
def test_rho_is_the_divergence_of_the_spectrum_from_uniform(seed, first) -> None:
    vectors = np.random.default_rng(seed).normal(size=(20, 6)) * np.arange(1, 7)
    values = np.linalg.svd(vectors)[1][first - 1 :]
    given_, uniform = values / values.sum(), np.full(len(values), 1 / len(values))
    tensor = torch.from_numpy(vectors)
    assert spectral_decay(tensor, first=first) == pytest.approx(entropy(uniform, given_))
    assert spectral_decay(tensor, first=first, reverse=True) == pytest.approx(entropy(given_, uniform))
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    assert spectral_decay(3 * tensor @ turn, first=first) == pytest.approx(spectral_decay(tensor, first=first))


def test_rho_of_simple_spectra() -> None:
    assert spectral_decay(torch.eye(5)) == pytest.approx(0, abs=1e-12)
    line = spectral_decay(torch.ones(9, 4))
    assert 10 < line < 40  # one direction only: great, and finite
    assert spectral_decay(torch.zeros(3, 4)) == 0
    assert spectral_decay(torch.randn(3, 4), first=10) == 0
    assert spectral_decay(torch.randn(3, 1)) == 0


def test_all_of_them_finite_in_order_and_between_their_bounds() -> None:
    regions, labels = clouds([5, 6, 1, 7])
    for kept in (regions, regions.to(torch.float16)):
        got = extra_metrics(kept, torch.from_numpy(labels))
        assert tuple(got) == EXTRA_METRICS
        assert all(type(value) is float and math.isfinite(value) and value >= 0 for value in got.values())
        assert all(value <= 1 for name, value in got.items() if name.startswith(("nmi", "f1", "map")))


def test_a_perfect_embedding() -> None:
    pooled = torch.eye(4).repeat_interleave(5, dim=0)
    got = extra_metrics(Regions(pooled[:, None], pooled), np.arange(20) // 5)
    ones = ("nmi", "f1", "map@c", "map@1000", "map@lim", "map", "inter_distance")
    assert [got[name] for name in ones] == pytest.approx([1] * len(ones))
    assert got["map@c_self_counted"] == pytest.approx(4 / 5)  # the released protocol's ceiling, (n - 1) / n
    assert got["intra_distance"] == pytest.approx(0, abs=1e-12)
    assert got["rho@1"] == pytest.approx(0, abs=1e-12)


def test_images_that_coincide_do_no_harm() -> None:
    pooled = torch.ones(6, 1)
    got = extra_metrics(Regions(pooled[:, None], pooled), [0, 0, 1, 1, 2, 2])
    assert all(math.isfinite(value) for value in got.values())


def test_queries_and_gallery_are_described_together_and_no_others() -> None:
    regions, labels = clouds([6, 6, 6])
    queries, gallery = np.array([0, 1, 6]), np.array([1, 2, 3, 7, 8])
    union = np.array([0, 1, 2, 3, 6, 7, 8])
    some = extra_metrics(regions, labels, queries=queries, gallery=gallery)
    alone = extra_metrics(regions[torch.from_numpy(union)], labels[union])
    for name in ("nmi", "f1", "intra_distance", "inter_distance", "rho@1"):
        assert some[name] == pytest.approx(alone[name])


def test_wrong_input_is_named() -> None:
    regions, labels = clouds([3, 3])
    with pytest.raises(ValueError, match="at least two classes"):
        extra_metrics(regions, [1] * 6)
    with pytest.raises(ValueError, match="no query has a relevant image"):
        extra_metrics(regions, range(6))
    with pytest.raises(ValueError, match="labels: need one class"):
        extra_metrics(regions, labels[:4])
    with pytest.raises(ValueError, match="queries: need image rows"):
        extra_metrics(regions, labels, queries=[6])
    with pytest.raises(ValueError, match="no class has two images"):
        class_distances(regions.pooled.double(), np.arange(6))
