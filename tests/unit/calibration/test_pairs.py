"""The pairs that a calibration is fitted on: those of retrieval, random ones, and first hits of absent classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diml.calibration.pairs import best_scores, score_images
from diml.matching import Matcher, nearest

UNIFORM = Matcher(weights="uniform", epsilon=0.5)


def scores_of(regions, left, right):
    left, right = torch.as_tensor(left), torch.as_tensor(right).unsqueeze(1)
    return UNIFORM.score_unique_pairs(regions, left, right).scores.squeeze(1).numpy()


def test_candidates_are_those_of_stage_one(labelled):
    regions, labels = labelled
    found = score_images(regions, labels, matcher=UNIFORM, depth=10)
    order = nearest(regions, regions, 10, exclude=torch.arange(60)).order
    rows = np.repeat(np.arange(60), 10)
    assert np.array_equal(found.candidates.class_q, labels[rows])
    assert np.array_equal(found.candidates.class_g, labels[order.flatten().numpy()])
    assert found.candidates.scores == pytest.approx(scores_of(regions, rows, order.flatten()))
    assert (found.images, found.classes, found.absent_gallery, found.unconverged) == (60, 12, 55.0, 0)


def test_the_whole_gallery_is_used_where_it_is_smaller_than_k(labelled):
    regions, labels = labelled
    found = score_images(regions, labels, matcher=UNIFORM, depth=1000)
    assert len(found.candidates) == 60 * 59
    assert found.candidates.prior == pytest.approx(60 * 4 / (60 * 59))


def test_random_pairs_stand_for_the_population(labelled):
    regions, labels = labelled
    found = score_images(regions, labels, matcher=UNIFORM, random_pairs=100, seed=3).random
    assert len(found) == 200
    assert int(found.same.sum()) == 100
    assert found.prior == pytest.approx(60 * 4 / (60 * 59))
    assert found.weights.sum() == pytest.approx(200)
    again = score_images(regions, labels, matcher=UNIFORM, random_pairs=100, seed=3).random
    assert np.array_equal(found.scores, again.scores)


def test_no_random_pair_is_an_image_with_itself(labelled):
    regions, labels = labelled
    found = score_images(regions, labels, matcher=UNIFORM)
    assert int(found.random.same.sum()) == 60 * 4
    assert found.random.scores[found.random.same].max() < found.self_match


def test_absent_scores_are_those_of_a_gallery_without_the_class(labelled):
    regions, labels = labelled
    found = score_images(regions, labels, matcher=UNIFORM, depth=7).absent
    for query in (0, 17, 59):
        gallery = np.flatnonzero(labels != labels[query])
        alone = best_scores(regions, labels, [query], gallery, matcher=UNIFORM, depth=7)
        assert found.scores[query] == pytest.approx(alone.scores[0])
        assert found.class_g[query] == alone.class_g[0] != labels[query]


def test_queries_and_gallery_are_respected(labelled):
    regions, labels = labelled
    queries, gallery = np.arange(0, 60, 5), np.setdiff1d(np.arange(60), np.arange(0, 60, 5))
    found = score_images(regions, labels, matcher=UNIFORM, queries=queries, gallery=gallery)
    assert len(found.candidates) == 12 * 48
    assert len(found.absent) == 12
    assert found.absent_gallery == 44.0
    assert int(found.random.same.sum()) == 12 * 4


def test_too_few_classes_or_images_are_errors(labelled):
    regions, labels = labelled
    with pytest.raises(ValueError, match="at least 2 classes"):
        score_images(regions[:5], labels[:5], matcher=UNIFORM)
    with pytest.raises(ValueError, match="no query has another image of its class"):
        score_images(regions[::5], labels[::5], matcher=UNIFORM)


def test_first_hits_of_queries_that_are_there(labelled):
    regions, labels = labelled
    found = score_images(regions, labels, matcher=Matcher(), depth=20)
    assert found.present == pytest.approx(found.lists.max(axis=1))
    gallery = np.flatnonzero(labels != 3)
    split = score_images(regions, labels, matcher=Matcher(), depth=20, queries=np.arange(60), gallery=gallery)
    assert len(split.present) == 55


def test_cameras_that_all_differ_change_nothing(labelled):
    regions, labels = labelled
    without = score_images(regions, labels, matcher=UNIFORM, depth=9, random_pairs=50)
    found = score_images(regions, labels, matcher=UNIFORM, depth=9, random_pairs=50, cameras=np.arange(60))
    for name in ("candidates", "random", "absent"):
        assert np.array_equal(getattr(found, name).scores, getattr(without, name).scores)
        assert np.array_equal(getattr(found, name).class_g, getattr(without, name).class_g)
    assert np.array_equal(found.random.weights, without.random.weights)
    assert (found.absent_gallery, found.self_match) == (without.absent_gallery, without.self_match)


def test_pairs_of_one_class_and_camera_are_ignored(labelled):
    regions, labels = labelled
    cameras = np.arange(60) % 3
    found = score_images(regions, labels, matcher=UNIFORM, cameras=cameras, depth=100)
    same = labels[:, None] == labels
    ignored = same & (cameras[:, None] == cameras)
    left, right = np.nonzero(~ignored)
    assert len(found.candidates) == len(left)
    assert int(found.candidates.same.sum()) == int((same & ~ignored).sum())
    expected = scores_of(regions, left, right)
    assert np.sort(found.candidates.scores) == pytest.approx(np.sort(expected))
    # random pairs: all of one class that count, weighted to their share of all that count
    assert int(found.random.same.sum()) == int((same & ~ignored).sum())
    assert found.random.prior == pytest.approx((same & ~ignored).sum() / (~ignored).sum())
    paired = scores_of(regions, *np.nonzero(same & ~ignored))
    assert np.sort(found.random.scores[found.random.same]) == pytest.approx(np.sort(paired))
    assert found.absent_gallery == 55.0


def test_a_first_hit_is_none_that_the_query_ignores(labelled):
    regions, labels = labelled
    cameras = np.arange(60) % 2
    found = best_scores(regions, labels, np.arange(60), np.arange(60), matcher=UNIFORM, cameras=cameras)
    allowed = ~((labels[:, None] == labels) & (cameras[:, None] == cameras))
    for query in (0, 7, 33):
        gallery = np.flatnonzero(allowed[query])
        expected = scores_of(regions, np.full(len(gallery), query), gallery)
        assert found.scores[query] == pytest.approx(expected.max())
        assert found.class_g[query] == labels[gallery[expected.argmax()]]
