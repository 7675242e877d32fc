"""`evaluate_regions`: options, refusals, warnings, and what a report keeps of each query."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import diml.evaluation.evaluate as module
import scores
from diml.evaluation.metrics import METRICS
from diml.matching import ConvergenceWarning, Matcher, Regions, match, native, retrieval
from diml.matching.pairs import by_content
from diml.matching.retrieval import NOTHING
from scores import WEIGHT_OF, evaluated

LABELS = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 0])  # images 5 and 10 stand alone
ALONE = [5, 10]


def images(count: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, 4, 16, generator=generator, dtype=torch.float64)
    return Regions.normalized(dense, dense.mean(dim=1)).to(dtype)


def classes(*sizes: int) -> tuple[Regions, np.ndarray]:
    """Images whose classes are far apart: any sensible ranking is perfect."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    generator = torch.Generator().manual_seed(0)
    dense = 0.05 * torch.randn(len(labels), 4, 16, generator=generator)
    dense[torch.arange(len(labels)), :, torch.from_numpy(labels)] += 1
    return Regions.normalized(dense, dense.mean(dim=1)), labels


def evaluate(regions: Regions | None = None, labels=LABELS, **options):
    return evaluated(images() if regions is None else regions, labels, **({"resamples": 5} | options))


# ------------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("score", ["both", "structural", "pooled"])
def test_a_perfect_ranking_scores_exactly_1_and_self_counted_its_ceiling(score):
    report = evaluate(*classes(2, 5, 3), rerank_at=(0, 4, 100), structural_weight=WEIGHT_OF[score])
    sizes = np.repeat([2, 5, 3], [2, 5, 3])
    for row in report.rows:
        ceiling = np.mean((sizes - 1) / sizes)
        assert row == {"rerank_at": row["rerank_at"]} | {
            metric: pytest.approx(ceiling, abs=1e-15) if "self" in metric else 1.0 for metric in METRICS
        }
    assert {bounds for row in report.intervals for metric, bounds in row.items() if "self" not in metric} == {(1, 1)}
    assert {(c.difference, c.low, c.high) for c in report.comparisons} == {(0, 0, 0)}


def test_a_perfect_ranking_of_another_gallery_scores_1_either_way():
    regions, labels = classes(4, 4)
    report = evaluate(regions, labels, queries=[0, 4, 5], gallery=[1, 2, 7, 6])
    assert {row[metric] for row in report.rows for metric in METRICS} == {1.0}


def test_rows_stand_in_the_order_asked_each_k_once():
    report = evaluate(rerank_at=(100, 0, 5, 100, 0))
    assert [row["rerank_at"] for row in report.rows] == [100, 0, 5]
    assert list(report.per_query) == list(report.hits) == [100, 0, 5]


def test_a_k_does_not_depend_on_the_other_ks():
    together = evaluate(rerank_at=(0, 1, 3, 7, 100))
    for k in (0, 1, 3, 7, 100):
        alone = evaluate(rerank_at=(k,))
        assert alone.row(k) == together.row(k)
        width = alone.hits[k].shape[1]
        np.testing.assert_array_equal(alone.hits[k], together.hits[k][:, :width])


@pytest.mark.parametrize("rerank_at", [(0,), (0, 5), (0, 100)])
def test_ten_hits_of_each_query_are_kept(rerank_at):
    report = evaluate(images(40), np.arange(40) % 10, rerank_at=rerank_at)
    assert {hits.shape for hits in report.hits.values()} == {(40, 10)}


def test_hits_are_image_rows_not_places_in_the_gallery():
    regions, labels = classes(3, 3)
    report = evaluate(regions, labels, queries=[5, 0], gallery=[4, 2, 1], rerank_at=(0, 2))
    for hits in report.hits.values():
        assert hits[0, 0] == 4
        assert set(hits[1, :2].tolist()) == {1, 2}
        assert [sorted(row) for row in hits.tolist()] == [[1, 2, 4], [1, 2, 4]]


def test_where_the_gallery_is_used_up_hits_are_minus_one():
    report = evaluate(queries=[1, 3, 2], gallery=[2, 0, 1, 4], rerank_at=(0, 2, 9))
    for hits in report.hits.values():
        assert sorted(hits[0].tolist()) == [NOTHING, 0, 2, 4]
        assert sorted(hits[1].tolist()) == [0, 1, 2, 4]
        assert sorted(hits[2].tolist()) == [NOTHING, 0, 1, 4]
        assert hits[[0, 2], -1].tolist() == [NOTHING, NOTHING]


def test_reranking_by_the_pooled_score_leaves_the_ranking_as_it_was():
    report = evaluate(images(60), np.arange(60) % 12, rerank_at=(0, 7, 30), structural_weight=0, resamples=50)
    for k in (7, 30):
        np.testing.assert_array_equal(report.hits[k], report.hits[0][:, : report.hits[k].shape[1]])
        assert report.row(k) == report.row(0) | {"rerank_at": k}
    assert {(c.difference, c.low, c.high) for c in report.comparisons} == {(0, 0, 0)}


def test_the_scores_are_three_different_rankings():
    pooled, structural, both = (
        evaluate(rerank_at=(12,), structural_weight=WEIGHT_OF[s]).hits[12] for s in ("pooled", "structural", "both")
    )
    assert (pooled != structural).any()
    assert (structural != both).any()
    assert (both != pooled).any()


@pytest.mark.parametrize("rerank_at", [(0,), (0, 6, 100)])
@pytest.mark.parametrize("size", [1, 7, 29])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_size_of_blocks_changes_nothing(size, compiled, rerank_at, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "_KERNEL", None)
        monkeypatch.setattr(native, "_REASON", "turned off by a test")
    regions, labels, options = images(30), np.arange(30) % 9, {"rerank_at": rerank_at, "epsilon": 0.5}
    whole = evaluate(regions, labels, **options)
    monkeypatch.setattr(retrieval, "QUERIES_AT_ONCE", {True: size, False: size})
    monkeypatch.setattr(module, "SPAN_BYTES", 0)
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", {True: size, False: size})
    blocks = evaluate(regions, labels, **options)
    assert blocks.to_dict() == whole.to_dict()
    for k in rerank_at:
        np.testing.assert_array_equal(blocks.hits[k], whole.hits[k])


def test_more_queries_than_a_block_holds():
    regions, labels = images(300), np.arange(300) % 50
    report = evaluate(regions, labels, rerank_at=(0,))
    later = evaluate(regions, labels, rerank_at=(0,), queries=range(256, 300))
    np.testing.assert_array_equal(report.hits[0][256:], later.hits[0])
    assert report.per_query[0]["map@r"].shape == (300,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_storage_types_agree_on_easy_images(dtype):
    regions, labels = classes(3, 4)
    assert evaluate(regions.to(dtype), labels).rows == evaluate(regions, labels).rows


@pytest.mark.parametrize("convert", [list, tuple, np.int32, np.uint64, torch.tensor])
def test_labels_and_index_sets_may_be_any_integers(convert):
    sides = {"queries": [3, 0, 7], "gallery": [1, 4, 9, 8, 2]}
    report = evaluate(labels=convert(LABELS.tolist()), **{name: convert(rows) for name, rows in sides.items()})
    assert report.to_dict() == evaluate(**sides).to_dict()


def test_inputs_are_left_as_they_were():
    regions, labels = images(), LABELS.copy()
    dense, pooled = regions.dense.clone(), regions.pooled.clone()
    evaluate(regions, labels)
    assert regions.dense.equal(dense)
    assert regions.pooled.equal(pooled)
    np.testing.assert_array_equal(labels, LABELS)


def test_the_settings_are_in_the_report():
    report = evaluate(structural_weight=float("inf"), seed=3, epsilon=0.2, weights="uniform")
    assert report.settings == {
        "matcher": Matcher(epsilon=0.2, weights="uniform").to_dict() | {"structural_weight": "inf"},
        "without_relevant": "exclude",
        "resamples": 5,
        "seed": 3,
    }


def test_settings_reach_the_solver():
    default, other = evaluate(rerank_at=(12,)), evaluate(rerank_at=(12,), weights="uniform", epsilon=5.0)
    assert (default.hits[12] != other.hits[12]).any()


def test_the_seed_decides_the_intervals():
    first, again, other = (evaluate(seed=seed) for seed in (1, 1, 2))
    assert first.to_dict() == again.to_dict()
    assert first.rows == other.rows
    assert first.intervals != other.intervals


@pytest.mark.parametrize("progress", [True, False])
def test_progress_counts_queries_on_standard_error(capsys, progress):
    evaluate(rerank_at=(0,), progress=progress, without_relevant="miss")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("12/12 queries" in printed.err) == progress


# -------------------------------------------------------------------------------- queries with nothing to find


@pytest.mark.parametrize(("option", "counted"), [("exclude", 10), ("miss", 12)])
def test_queries_without_a_relevant_image_are_counted_apart(option, counted):
    report = evaluate(without_relevant=option)
    assert report.without_relevant.tolist() == ALONE
    assert len(report.queries) == counted
    for k in (0, 100):
        for metric in METRICS:
            values = report.per_query[k][metric]
            assert len(values) == counted
            assert report.row(k)[metric] == pytest.approx(values.mean(), abs=1e-15)
            assert (values[np.isin(report.queries, ALONE)] == 0).all()


def test_excluded_or_missed_the_others_score_the_same():
    exclude, miss = (evaluate(without_relevant=option) for option in ("exclude", "miss"))
    for k in (0, 100):
        for metric in METRICS:
            np.testing.assert_array_equal(exclude.per_query[k][metric], np.delete(miss.per_query[k][metric], ALONE))
            assert miss.row(k)[metric] == pytest.approx(exclude.row(k)[metric] * 10 / 12, abs=1e-15)


def test_queries_without_a_relevant_image_may_be_refused():
    with pytest.raises(
        ValueError, match=r"labels: 2 queries .* \(the first is image 5\); use without_relevant='exclude'"
    ):
        evaluate(without_relevant="fail")


def test_nothing_is_refused_where_every_query_has_a_relevant_image():
    report = evaluate(without_relevant="fail", queries=[0, 3, 6])
    assert report.without_relevant.tolist() == []


@pytest.mark.parametrize("sides", [{"labels": range(12)}, {"queries": [0], "gallery": [0]}, {"queries": ALONE}])
def test_a_mean_over_no_query_is_refused(sides):
    with pytest.raises(ValueError, match="no query has a relevant image in the gallery; check labels"):
        evaluate(**sides)


def test_a_query_alone_with_itself_has_no_hit():
    report = evaluate(queries=[0], gallery=[0], without_relevant="miss")
    assert {k: hits.tolist() for k, hits in report.hits.items()} == {0: [[NOTHING]], 100: [[NOTHING]]}


def test_the_place_behind_the_end_is_no_hit():
    alike, alone = evaluate(*classes(3)), evaluate(queries=[5], gallery=[5, 0, 1], without_relevant="miss")
    assert {row["r_precision_self_counted"] for row in alike.rows} == {2 / 3}
    assert {row[metric] for row in alone.rows for metric in METRICS} == {0.0}


# -------------------------------------------------------------------------------------------- unconverged pairs


def unconverged(queries, gallery, **settings) -> int:
    """Candidates of all queries whose pairs stop early, one by one."""
    regions = images()
    pairs = torch.tensor([(q, g) for q in queries for g in gallery if q != g])
    left, right = by_content(regions, *pairs.T)
    return sum(int(not match(regions[q], regions[g], **settings).converged) for q, g in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("queries", "gallery"), [(range(12), range(12)), ([0, 3, 7], [1, 2, 4, 6]), ([2, 0, 1], [1, 2])]
)
@pytest.mark.parametrize("size", [1, 2**20])
def test_unconverged_pairs_are_counted_and_warned_of_once(queries, gallery, size, monkeypatch):
    monkeypatch.setattr(module, "SPAN_BYTES", 0)
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", {True: size, False: size})
    expected = unconverged(queries, gallery, max_iterations=1)
    assert expected > 0
    with pytest.warns(ConvergenceWarning) as caught:
        report = evaluate(queries=queries, gallery=gallery, max_iterations=1, without_relevant="miss")
    assert [warning.message.pairs for warning in caught] == [expected]
    assert caught[0].filename == scores.__file__  # it points at the caller
    assert report.unconverged_pairs == report.to_dict()["unconverged_pairs"] == expected


def test_without_reranking_no_pair_is_solved():
    assert evaluate(rerank_at=(0,), max_iterations=1).unconverged_pairs == 0


def test_filters_of_the_caller_decide_about_the_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert evaluate(rerank_at=(5,), max_iterations=1).unconverged_pairs > 0


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "need"),
    [
        ({"labels": LABELS[:11]}, r"labels: need one class for each of 12 images, got 11"),
        ({"labels": LABELS[:, None]}, r"labels: need one class for each image, shape \(N,\), got \(12, 1\)"),
        ({"labels": 3}, r"labels: need one class for each image, shape \(N,\), got \(\)"),
        ({"labels": LABELS / 2}, "labels: need integers, got torch.float64; convert"),
        ({"labels": torch.zeros(12)}, "labels: need integers, got torch.float32; convert"),
        ({"labels": LABELS > 0}, "labels: need integers, got torch.bool"),
        ({"labels": ["cat"] * 11 + [None]}, "labels: need integers or strings, got object"),
        ({"queries": [0.0, 1.0]}, "queries: need integers, got torch.float64"),
        ({"queries": np.ones(12, bool)}, "queries: need row numbers, got a boolean mask; use numpy.flatnonzero"),
        ({"queries": []}, "queries: need at least one image row"),
        ({"gallery": []}, "gallery: need at least one image row"),
        ({"gallery": np.zeros(0, int)}, r"gallery: need at least one image row, got shape \(0,\)"),
        ({"queries": torch.zeros(1, 2).long()}, r"queries: need at least one image row, got shape \(1, 2\)"),
        ({"queries": 3}, r"queries: need at least one image row, got shape \(\)"),
        ({"queries": [0, 12]}, r"queries: need image rows 0\.\.11, got 0\.\.12"),
        ({"gallery": [3, -1]}, r"gallery: need image rows 0\.\.11, got -1\.\.3"),
        ({"queries": [4, 4, 1, 4]}, "queries: need every image row at most once, got 2 doubled"),
        ({"gallery": [0, 1, 0]}, "gallery: need every image row at most once, got 1 doubled"),
        ({"rerank_at": ()}, r"rerank_at: need at least one K >= 0, got \(\)"),
        ({"rerank_at": (0, -1)}, r"rerank_at: need at least one K >= 0, got \(0, -1\); 0 is the plain ranking"),
        ({"rerank_at": (2.7,)}, "rerank_at: need"),
        ({"resamples": 0}, "resamples: need"),
        ({"structural_weight": -1}, "structural_weight: need a number of at least 0, got -1"),
        ({"structural_weight": float("nan")}, "structural_weight: need a number of at least 0, got nan"),
        ({"without_relevant": "skip"}, r"without_relevant: need one of \('exclude', 'miss', 'fail'\), got 'skip'"),
        ({"weights": "flat"}, r"weights: need one of \('cross_correlation', 'uniform', 'rollout'\), got 'flat'"),
        ({"epsilon": -1.0}, "epsilon: need a finite number of at least 0, got -1.0"),
    ],
)
def test_what_does_not_fit_is_named_with_what_was_needed(options, need):
    with pytest.raises(ValueError, match=need):
        evaluate(**options)


@pytest.mark.parametrize("rerank_at", [(0,), (0, 100)])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"structural_weight": -1}, ValueError),
        ({"weights": "flat"}, ValueError),
        ({"epsilon": -1.0}, ValueError),
        ({"epsilom": 0.1}, TypeError),
    ],
)
def test_a_wrong_setting_is_refused_whether_or_not_it_is_needed(rerank_at, options, error):
    with pytest.raises(error, match=next(iter(options))):
        evaluate(rerank_at=rerank_at, **options)


def test_a_single_k_wants_a_sequence():
    with pytest.raises((TypeError, ValueError), match="rerank_at"):
        evaluate(rerank_at=100)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="labels: need one class for each image"):
        evaluate(images(0), np.zeros(0, int))
