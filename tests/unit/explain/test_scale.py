"""The scale for scores: common to all pairs of a model."""

from __future__ import annotations

import math

import pytest

from diml.calibration.calibrator import Calibrator, fit_calibrator
from diml.explain.scale import common_scale, highest_score, plural
from diml.matching import Matcher
from unit.calibration.conftest import made_up_images


@pytest.fixture(scope="module")
def calibrator() -> Calibrator:
    return fit_calibrator(made_up_images(5000, 0), fingerprint="f" * 64, matcher=Matcher())


@pytest.mark.parametrize(
    ("settings", "high"),
    [
        ({}, 2.0),
        ({"structural_weight": 4.0}, 5.0),
        ({"structural_weight": 0.0}, 1.0),
        ({"structural_weight": math.inf}, 1.0),
        ({"share": 0.75}, 1.75),
        ({"share": "auto"}, 2.0),
    ],
)
def test_without_a_calibration_it_depends_on_the_settings_only(settings: dict[str, float], high: float) -> None:
    matcher = Matcher(**settings)
    scale = common_scale(matcher)
    assert (scale.low, scale.high) == (0, high)
    assert [(mark.value, mark.kind) for mark in scale.marks] == [(high, "itself")]
    assert highest_score(matcher) == high
    assert scale.bands == ()


def test_with_one_it_has_the_landmarks_of_the_model(calibrator: Calibrator) -> None:
    scale = common_scale(Matcher(), calibrator, "product")
    assert [mark.kind for mark in scale.marks] == ["different", "same", "itself"]
    assert [mark.value for mark in scale.marks] == sorted(mark.value for mark in scale.marks)
    assert [mark.label for mark in scale.marks][:2] == ["different products, typically", "the same product, typically"]
    assert scale.marks[0].value == calibrator.landmarks.different[2]
    different, same = scale.bands
    assert (different.low, different.high) == (calibrator.landmarks.different[0], calibrator.landmarks.different[4])
    assert scale.low < different.low < same.high <= scale.marks[2].value <= scale.high


def test_plurals() -> None:
    assert [plural(word) for word in ("class", "product", "category", "toy", "box", "person")] == [
        "classes",
        "products",
        "categories",
        "toys",
        "boxes",
        "persons",
    ]
