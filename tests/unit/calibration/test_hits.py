"""The judgement of hits: probabilities among the others, and whether the query is in the gallery, never silently."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from diml.calibration.calibrator import fit_calibrator
from diml.calibration.hits import judge_hits
from diml.calibration.rates import RateTable
from diml.matching import Matcher

SCORES = (1.7, 1.4, *(1.1 - 0.002 * place for place in range(98)))  # as many as the calibration saw of a query


def test_hits_are_seen_among_the_others_at_the_depth_of_the_calibration(calibrator):
    judged = judge_hits(calibrator, SCORES, depth=100, gallery_images=490)
    assert judged.probabilities == pytest.approx(calibrator.hit_probability(np.array(SCORES)).tolist())
    assert judged.notices == ()
    for depth, scores in ((20, SCORES[:20]), (100, SCORES[:60])):  # fewer re-ranked; a smaller gallery
        alone = judge_hits(calibrator, scores, depth=depth, gallery_images=490)
        assert alone.probabilities == pytest.approx(calibrator.probability(np.array(scores)).tolist())
        assert f"100 nearest images of each query, got {len(scores)}" in alone.notices[0]
    assert judge_hits(calibrator, (), depth=100, gallery_images=490).probabilities == ()


def test_the_verdict_is_that_of_the_threshold(calibrator):
    for best in (1.2, 1.7):
        for rate in (0.05, 0.2):
            verdict = judge_hits(calibrator, (best, 1.0), depth=100, gallery_images=600, false_accept_rate=rate).gallery
            assert verdict.promised
            assert verdict.threshold == calibrator.not_in_gallery_threshold(rate, gallery_images=600)
            assert verdict.likely == (best >= verdict.threshold)
            assert f"at most {100 * rate:g} %" in str(verdict)
            assert "600 images" in str(verdict)
            assert verdict.to_dict()["sentence"] == str(verdict)
    with pytest.raises(ValueError, match="false_accept_rate"):
        judge_hits(calibrator, (1.0,), depth=100, gallery_images=600, false_accept_rate=1)


def test_what_cannot_be_promised_is_estimated_and_what_cannot_be_estimated_is_left_open(calibrator):
    table = RateTable(scores=(1.9, 1.5), rates=(0.0, 0.02), bounds=(0.04, 0.06), count=200)
    few = dataclasses.replace(calibrator, not_in_gallery=table)
    verdict = judge_hits(few, (1.6,), depth=100, gallery_images=490, false_accept_rate=0.02).gallery
    assert (verdict.promised, verdict.threshold, verdict.likely) == (False, 1.5, True)
    assert "about 2 % (estimated, too few classes to promise it)" in str(verdict)
    judged = judge_hits(few, (1.6,), depth=100, gallery_images=10_000, false_accept_rate=0.02)
    assert judged.gallery is None
    assert "too few queries for a rate of 2 % among 10,000 images" in judged.notices[-1]


def test_how_many_of_those_there_are_recognised_decides_the_words(scored):
    present = np.random.default_rng(0).normal(1.6, 0.1, 400)
    found = fit_calibrator(
        dataclasses.replace(scored, present=present), fingerprint="f" * 64, matcher=Matcher(), kind="person"
    )
    assert found.detected(1.6) == pytest.approx(0.5, abs=0.06)
    assert found.detected(float(present.min())) == 1
    assert found.detected(9.0) == 0
    assert type(found).from_dict(found.to_dict()) == found
    words = {}
    for level in (0.5, 1.3):
        table = RateTable(scores=(1.3 + level / 5,), rates=(0.001,), bounds=(0.01,), count=2000)
        told = judge_hits(
            dataclasses.replace(found, not_in_gallery=table), (1.2,), depth=100, gallery_images=490
        ).gallery
        words[level] = str(told)
    assert words[0.5].startswith("Probably not in the gallery")
    assert "whose person is missing" in words[0.5]
    assert words[1.3].startswith("Perhaps not in the gallery")
    unknown = dataclasses.replace(found, present=())
    assert unknown.detected(1.6) is None
    told = judge_hits(unknown, (1.0,), depth=100, gallery_images=490).gallery
    assert str(told).startswith("Not recognised in the gallery")
