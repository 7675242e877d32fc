"""The benchmark of unmatched mass: areas over all regions with intervals over pairs, and how many are flagged."""

from __future__ import annotations

import numpy as np
import pytest

import unmatched
from diml.data import ImageSet
from diml.faithfulness.unmatched import area_under_roc


def test_the_area_over_all_regions_and_its_interval():
    generator = np.random.default_rng(0)
    covered = generator.choice([0.0, 0.3, 1.0], (60, 9))
    scores = generator.normal(size=(60, 9)) + covered
    found = unmatched.area_over_all(scores, covered, 0)
    clear = covered != 0.3
    assert found["value"] == area_under_roc(scores[clear], covered[clear] > 0.5)
    assert found["low"] < found["value"] < found["high"]
    assert found["pairs"] == 60


def test_regions_of_which_more_than_half_is_unmatched_are_flagged():
    covered = np.array([[1.0, 1.0, 0.0, 0.3], [0.0, 0.0, 0.0, 0.0]])
    part = np.array([[0.6, 0.4, 0.5, 1.0], [0.9, 0.0, 0.0, 0.0]])
    found = unmatched.flagged(part, covered, 0)
    assert found["found"]["value"] == 0.5
    assert found["found"]["pairs"] == 1
    assert found["false"]["value"] == pytest.approx(1 / 8)


def test_a_partner_is_another_image_of_the_class_in_the_gallery():
    labels = [0, 0, 0, 1, 1, 2]
    images = ImageSet([np.zeros((4, 4, 3), dtype=np.uint8)] * 6, labels)
    drawn = unmatched.Images.of(images, 10, 0)
    assert drawn.queries.tolist() == [0, 1, 2, 3, 4]  # the image that is alone in its class has no partner
    for query, place in zip(drawn.queries, drawn.partners, strict=True):
        assert drawn.gallery[place] != query
        assert labels[drawn.gallery[place]] == labels[query]
    assert len(unmatched.Images.of(images, 2, 0).queries) <= 2
