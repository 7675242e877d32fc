"""Measures of a calibration: against naive loops, and on classes held out."""

from __future__ import annotations

import numpy as np
import pytest

from diml.calibration.evaluate import calibrate, expected_calibration_error, reliability
from diml.data import ImageSet
from diml.data.judgements import Judgements
from diml.matching import Matcher
from diml.models import load_embedder
from tiny_model import save_tiny_model
from unit.calibration.conftest import made_up_pairs, true_probability


def test_the_error_is_that_of_a_naive_loop():
    random = np.random.default_rng(0)
    chances, same = random.random(3000), random.random(3000) < 0.4
    order = np.argsort(chances)
    expected = sum(
        len(part) * abs(chances[part].mean() - same[part].mean()) for part in np.array_split(order, 15)
    ) / len(chances)
    error, predicted, observed = expected_calibration_error(chances, same, np.ones(3000))
    assert error == pytest.approx(expected, rel=1e-2)
    assert len(predicted) == len(observed) == 15
    # a pair of weight 2 counts as two pairs
    twice = np.r_[np.arange(3000), np.arange(500)]
    weights = np.r_[np.full(500, 2.0), np.ones(2500)]
    one = expected_calibration_error(chances, same, weights)[0]
    assert one == pytest.approx(expected_calibration_error(chances[twice], same[twice], np.ones(3500))[0])


def test_the_order_of_equal_probabilities_does_not_matter():
    chances = np.repeat([0.1, 0.8], [70, 30])
    same = np.r_[np.arange(70) < 7, np.arange(30) < 24]
    assert expected_calibration_error(chances, same, np.ones(100))[0] == pytest.approx(0)
    assert expected_calibration_error(chances, same[::-1][np.r_[30:100, :30]], np.ones(100))[0] == pytest.approx(0)


def test_reliability_of_the_true_probabilities(calibrator):
    pairs = made_up_pairs(20_000, 11)
    found = reliability(calibrator, pairs)
    true = true_probability(pairs.scores)
    assert found.ece < 0.015
    assert found.brier == pytest.approx(((true - pairs.same) ** 2).mean(), abs=0.002)
    assert found.prior == pairs.prior


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return load_embedder(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", matcher=Matcher(epsilon=0.5)))


@pytest.fixture(scope="module")
def images(labelled):
    blank = np.zeros((8, 8, 3), dtype=np.uint8)
    return ImageSet([blank] * 60, labelled[1], name="made up")


def test_classes_are_split_and_every_rate_is_measured(embedder, images, labelled, tmp_path):
    found = calibrate(embedder, images, regions=labelled[0], false_accept_rates=(0.1, 0.4), seeds=(0, 1))
    first, second = found.reports
    assert (found.calibrator.classes, first.classes, first.absent_classes) == (6, 6, 3)
    assert first.images == found.calibrator.images == 30
    assert first != second
    assert [row.named for row in first.pairs] == [row.named for row in first.open_set] == [0.1, 0.4]
    for row in (*first.pairs, *first.open_set):
        assert row.interval[0] <= row.false_accept <= row.interval[1]
    assert first.open_set_auc > 0.9
    assert first.gallery_images == 15
    assert found.calibrator.fingerprint == embedder.fingerprint()
    again = calibrate(embedder, images, regions=labelled[0], false_accept_rates=(0.1, 0.4), seeds=(0, 1))
    assert again.to_dict() == found.to_dict()
    assert again.calibrator == found.calibrator
    found.save(tmp_path, more={"config": {}})
    assert (tmp_path / "calibration.json").is_file()


def test_all_classes_promise_more(embedder, images, labelled):
    half = calibrate(embedder, images, regions=labelled[0])
    whole = calibrate(embedder, images, regions=labelled[0], fit_on="all", prior=0.5, pairs="random")
    assert (whole.calibrator.classes, whole.calibrator.prior) == (12, 0.5)
    assert whole.calibrator.false_accept.smallest_rate < half.calibrator.false_accept.smallest_rate
    assert whole.reports[0].random.prior != 0.5


def test_the_embedders_matcher_is_used_and_another_can_be_given(embedder, images, labelled):
    assert calibrate(embedder, images, regions=labelled[0]).calibrator.matcher == embedder.matcher
    plain = Matcher(structural_weight=0)
    assert calibrate(embedder, images, regions=labelled[0], matcher=plain).calibrator.matcher == plain


def test_queries_and_gallery_that_do_not_overlap(embedder, images, labelled):
    sides = {"queries": np.arange(0, 60, 5), "gallery": np.setdiff1d(np.arange(60), np.arange(0, 60, 5))}
    found = calibrate(embedder, ImageSet(images.images, images.labels, **sides), regions=labelled[0])
    assert found.reports[0].gallery_images == 12
    assert found.calibrator.gallery_images == 20


def test_errors_name_the_argument(embedder, images, labelled):
    few = images.classes([0, 1, 2])
    for changes, message in (
        ({"images": few, "regions": labelled[0][:15]}, "images: need 4 classes"),
        ({"false_accept_rates": (1.0,)}, "false_accept_rate: need fractions"),
        ({"fit_on": "third"}, "fit_on, seeds"),
        ({"seeds": ()}, "fit_on, seeds"),
        ({"depth": 0}, "depth: need at least 1"),
        ({"pairs": "all"}, "pairs, method"),
    ):
        given = {"images": images, "regions": labelled[0]} | changes
        with pytest.raises(ValueError, match=message):
            calibrate(embedder, **given)


def test_cameras_are_followed_in_both_halves(embedder, images, labelled):
    blank = np.zeros((8, 8, 3), dtype=np.uint8)
    settings = {"regions": labelled[0], "false_accept_rates": (0.4,)}
    apart = ImageSet([blank] * 60, labelled[1], cameras=np.arange(60), name="made up")
    assert calibrate(embedder, apart, **settings).to_dict() == calibrate(embedder, images, **settings).to_dict()
    # images 4, 9, 14 ... of each class are seen by camera 1, all others by camera 0: four of five see one right image
    seen = ImageSet([blank] * 60, labelled[1], cameras=np.arange(60) % 5 // 4, name="made up")
    found = calibrate(embedder, seen, **settings)
    assert found.reports[0].candidates.prior == pytest.approx(8 / (8 + 5 * 25))
    assert found.reports[0].gallery_images == 15


def test_images_that_are_judged_one_by_one_are_refused(embedder):
    blank = np.zeros((8, 8, 3), dtype=np.uint8)
    sides = {"queries": [0], "gallery": [1, 2, 3], "judgements": Judgements([[1]])}
    with pytest.raises(ValueError, match="need images with classes, got images with judgements"):
        calibrate(embedder, ImageSet([blank] * 4, list("abcd"), **sides))
