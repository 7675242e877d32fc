"""The map from score to probability: right, monotone, saved, and refused for another model or matcher."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import norm

from diml.calibration import load_calibration
from diml.calibration.calibrator import FILE, auc, auc_with_interval, fit_calibrator
from diml.calibration.evaluate import expected_calibration_error
from diml.calibration.pairs import LabelledScores
from diml.matching import Matcher
from unit.calibration.conftest import made_up_images, made_up_pairs, true_probability

ABOUT = {"fingerprint": "f" * 64, "matcher": Matcher(), "model": "tiny", "data": "made up"}


@pytest.mark.parametrize("method", ["isotonic", "logistic"])
def test_probabilities_are_the_true_ones(method):
    found = fit_calibrator(made_up_images(20_000, 4), method=method, **ABOUT)
    fresh = made_up_pairs(20_000, 9)
    error, _, _ = expected_calibration_error(found.probability(fresh.scores), fresh.same, fresh.weights)
    assert error < 0.015
    scores = np.linspace(0.8, 1.7, 30)
    assert np.abs(found.probability(scores) - true_probability(scores)).max() < 0.09


@pytest.mark.parametrize("method", ["isotonic", "logistic"])
@pytest.mark.parametrize("count", [60, 20_000])
def test_they_never_decrease_and_are_never_0_or_1(method, count):
    found = fit_calibrator(made_up_images(count, 5), method=method, **ABOUT)
    chances = found.probability(np.linspace(-5, 5, 2001))
    assert (np.diff(chances) >= 0).all()
    assert 0 < chances[0] < chances[-1] < 1
    least = 1 / (count + 3)
    assert least <= chances[0]
    assert chances[-1] <= 1 - least


def test_perfectly_separated_pairs_get_laplace_ends():
    scores = np.r_[np.linspace(0, 1, 8), np.linspace(2, 3, 4)]
    classes = np.r_[np.arange(8) + 1, np.zeros(4)].astype(int)
    pairs = LabelledScores(scores, np.zeros(12, dtype=int), classes, np.ones(12))
    scored = dataclasses.replace(made_up_images(60, 1), candidates=pairs, lists=pairs.scores[None])
    found = fit_calibrator(scored, method="isotonic", **ABOUT)
    assert found.probability(-1.0) == pytest.approx(1 / 9)
    assert found.probability(9.0) == pytest.approx(4 / 5)


def test_the_method_follows_the_number_of_pairs(calibrator):
    assert calibrator.method == "isotonic"
    assert fit_calibrator(made_up_images(500, 0), **ABOUT).method == "logistic"


def test_another_prior_multiplies_the_odds(calibrator):
    moved = calibrator.with_prior(0.5)
    scores = np.linspace(0.9, 1.5, 7)
    odds = {one: one.probability(scores) / (1 - one.probability(scores)) for one in (calibrator, moved)}
    factor = (1 - calibrator.prior) / calibrator.prior
    assert odds[moved] == pytest.approx(odds[calibrator] * factor)
    assert moved.with_prior(calibrator.prior).probability(1.2) == pytest.approx(calibrator.probability(1.2))
    assert np.abs(moved.probability(scores) - true_probability(scores, 0.5)).max() < 0.1
    with pytest.raises(ValueError, match="prior: need a fraction"):
        calibrator.with_prior(1.0)


def test_it_is_saved_and_read_back(calibrator, tmp_path):
    path = calibrator.save(tmp_path / "new" / "index", measured={"ece": 0.01})
    assert path.name == FILE
    assert load_calibration(path.parent) == load_calibration(path) == calibrator
    assert json.loads(path.read_text())["measured"] == {"ece": 0.01}
    infinite = dataclasses.replace(calibrator, matcher=Matcher(structural_weight=float("inf")))
    infinite.save(tmp_path)
    assert load_calibration(tmp_path) == infinite


def test_another_model_or_matcher_is_refused(calibrator, tmp_path):
    calibrator.save(tmp_path)
    load_calibration(tmp_path, fingerprint="f" * 64, matcher=Matcher(max_iterations=50, tolerance=1e-3))
    with pytest.raises(ValueError, match=r"belongs to tiny .*ffff.*got an embedder with 0000.*diml calibrate"):
        load_calibration(tmp_path, fingerprint="0" * 64)
    with pytest.raises(ValueError, match=r"another matcher, got epsilon 0\.5 instead of"):
        load_calibration(tmp_path, matcher=Matcher(epsilon=0.5))
    with pytest.raises(ValueError, match="weights uniform"):
        calibrator.check("f" * 64, Matcher(weights="uniform"))


def test_a_missing_or_damaged_file_is_an_error(calibrator, tmp_path):
    with pytest.raises(FileNotFoundError, match="diml calibrate DATASET --output"):
        load_calibration(tmp_path)
    path = calibrator.save(tmp_path)
    document = json.loads(path.read_text())
    for damage in ({"format": 2}, {"calibration": {}}, {"calibration": document["calibration"] | {"method": "guess"}}):
        path.write_text(json.dumps(document | damage))
        with pytest.raises(ValueError, match="not a calibration"):
            load_calibration(tmp_path)
    changed = document["calibration"] | {"self_match": document["calibration"].get("self_match", 0) + 0.125}
    path.write_text(json.dumps(document | {"calibration": changed}))
    with pytest.raises(ValueError, match=r"damaged or changed .*run diml calibrate again"):
        load_calibration(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not a calibration"):
        load_calibration(tmp_path)


def test_thresholds(calibrator, scored):
    others = scored.candidates.subset(~scored.candidates.same)
    assert (others.scores >= calibrator.threshold(0.01)).mean() <= 0.01
    assert calibrator.threshold(0.01) == pytest.approx(norm.isf(0.01, 1, 0.2), abs=0.06)
    assert (scored.absent.scores >= calibrator.not_in_gallery_threshold(0.05)).mean() <= 0.05


def test_a_larger_gallery_needs_a_higher_threshold(calibrator):
    own = calibrator.not_in_gallery_threshold(0.1)
    assert calibrator.not_in_gallery_threshold(0.1, gallery_images=490) == own
    assert calibrator.not_in_gallery_threshold(0.1, gallery_images=1500) > own
    assert calibrator.not_in_gallery_threshold(0.1, gallery_images=100) < own
    with pytest.raises(ValueError, match="at least"):
        calibrator.not_in_gallery_threshold(0.1, gallery_images=10**6)


def test_the_area_under_roc_and_whether_the_model_separates(calibrator):
    pairs = made_up_pairs(4000, 2)
    area, (low, high) = auc_with_interval(pairs)
    assert area == auc(pairs)
    assert low < norm.cdf(0.5 / (0.2 * np.sqrt(2))) < high
    assert high - low < 0.05
    assert calibrator.separates
    random = np.random.default_rng(0)
    noise = LabelledScores(random.normal(size=4000), pairs.class_q, pairs.class_g, pairs.weights)
    scored = dataclasses.replace(made_up_images(500, 0), random=noise)
    assert not fit_calibrator(scored, **ABOUT).separates


def test_a_model_that_ranks_the_wrong_way_round_gets_a_constant():
    pairs = made_up_pairs(5000, 3)
    wrong = LabelledScores(-pairs.scores, pairs.class_q, pairs.class_g, pairs.weights)
    scored = dataclasses.replace(made_up_images(500, 0), candidates=wrong, lists=wrong.scores.reshape(-1, 20))
    for method in ("isotonic", "logistic"):
        chances = fit_calibrator(scored, method=method, **ABOUT).probability(np.linspace(-2, 0, 50))
        assert np.ptp(chances[5:-5]) < 0.02
        assert chances[25] == pytest.approx(pairs.prior, abs=0.02)


def test_landmarks(calibrator, scored):
    same = scored.random.scores[scored.random.same]
    assert calibrator.landmarks.same == pytest.approx(np.quantile(same, [0.05, 0.25, 0.5, 0.75, 0.95]))
    assert calibrator.landmarks.different[2] == pytest.approx(1.0, abs=0.02)
    assert calibrator.landmarks.self_match == 2.0


def test_its_repr_is_short(calibrator):
    assert len(repr(calibrator)) < 250
    assert "P(same class)" in calibrator._repr_html_()


def test_pairs_of_one_kind_only_are_an_error():
    pairs = made_up_pairs(100, 0)
    scored = dataclasses.replace(made_up_images(100, 0), candidates=pairs.subset(pairs.same))
    with pytest.raises(ValueError, match="same-class and different-class pairs"):
        fit_calibrator(scored, **ABOUT)


def test_a_hit_is_seen_among_the_other_hits_of_its_query():
    """Queries whose scores are all shifted: one score alone says less than the score among the others."""
    random = np.random.default_rng(0)

    def sample(seed):
        pairs = made_up_pairs(20_000, seed)
        shifted = pairs.scores + np.repeat(random.normal(0, 0.5, 1000), 20)
        pairs = dataclasses.replace(pairs, scores=shifted)
        return dataclasses.replace(made_up_images(20_000, 0), candidates=pairs, lists=shifted.reshape(-1, 20))

    found, fresh = fit_calibrator(sample(1), **ABOUT), sample(2)
    chances = found.hit_probability(fresh.lists)
    error = expected_calibration_error(chances.ravel(), fresh.candidates.same, fresh.candidates.weights)[0]
    assert error < 0.02
    alone = found.probability(fresh.candidates.scores)
    same = fresh.candidates.same
    assert ((chances.ravel() - same) ** 2).mean() < 0.7 * ((alone - same) ** 2).mean()
    for scores, row in zip(fresh.lists[:50], chances, strict=False):
        assert (np.diff(row[np.argsort(scores)]) >= 0).all()
        assert found.hit_probability(scores) == pytest.approx(row)
        assert found.hit_probability(scores[::-1]) == pytest.approx(row[::-1])


def test_missing_candidates_do_not_change_the_others(calibrator):
    scores = np.array([1.2, 1.5, 0.9])
    padded = calibrator.hit_probability(np.r_[scores, -np.inf, -np.inf])
    assert padded[:3] == pytest.approx(calibrator.hit_probability(scores))
    assert (padded[3:] == 0).all()
