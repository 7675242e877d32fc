"""Unmatched mass of occluded regions: areas under the ROC curve against an oracle, and cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from diml.data import Preprocess
from diml.faithfulness.unmatched import (
    METHODS,
    area_under_roc,
    measure_unmatched,
    occlusion_areas,
    partial_matchers,
    region_scores,
    unmatched_fraction,
)
from diml.matching import Matcher, Regions

GRID = (4, 4)


def colour_regions(views) -> Regions:
    """A network that sees the mean colour of each cell of 4 x 4, and what is common to all cells."""
    cells = [np.asarray(view.resize((4, 4), Image.Resampling.BOX), dtype=np.float32).reshape(16, 3) for view in views]
    dense = torch.from_numpy(np.stack(cells)) / 255
    return Regions.normalized(dense, dense.mean(dim=1), GRID)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({kind for _, kind in rows}) == 2
    )
)
def test_area_is_that_of_scikit_learn_with_ties(rows):
    scores, kinds = (np.array(values) for values in zip(*rows, strict=True))
    expected = roc_auc_score(kinds, scores)
    assert area_under_roc(scores.astype(float), kinds) == pytest.approx(expected, abs=1e-12)
    assert area_under_roc(-scores.astype(float), ~kinds) == pytest.approx(expected, abs=1e-12)


def test_without_both_kinds_there_is_no_area():
    assert np.isnan(area_under_roc(np.arange(3.0), np.ones(3, dtype=bool)))
    assert np.isnan(area_under_roc(np.arange(3.0), np.zeros(3, dtype=bool)))


def test_regions_that_are_partly_covered_are_left_out():
    scores = np.array([[3.0, 9.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    covered = np.array([[0.51, 0.3, 0.09, 0.0], [1.0, 1.0, 0.2, 0.5]])
    areas = occlusion_areas(scores, covered)
    assert areas[0] == 1
    assert np.isnan(areas[1])


def test_a_region_without_mass_counts_as_unmatched():
    found = unmatched_fraction(torch.tensor([[0.0, 0.1, 0.0]]), torch.tensor([[0.0, 0.2, 0.8]]))
    assert found.tolist() == [[1.0, 0.5, 0.0]]


def test_a_share_of_1_becomes_auto_and_another_is_kept():
    partial, exact = partial_matchers(Matcher())
    assert partial == Matcher(share="auto")
    assert exact == Matcher(share="auto", epsilon=0)
    assert partial_matchers(Matcher(share=0.7, epsilon=0)) == (Matcher(share=0.7, epsilon=0), None)


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
@pytest.mark.parametrize("share", ["auto", 0.5])
def test_regions_that_resemble_nothing_are_found(epsilon, share):
    """Half of the query's regions are those of the gallery image, the other half is orthogonal to all of them."""
    directions = torch.eye(12)
    query = torch.cat([directions[:4], directions[8:12]]).unsqueeze(0)
    gallery = directions[:8].unsqueeze(0)
    sides = [Regions.normalized(dense, dense.mean(dim=1), (2, 4)) for dense in (query, gallery)]
    found = Matcher(share=share, epsilon=epsilon, weights="uniform").match(*sides)
    scores = region_scores(found)
    covered = np.array([[0.0] * 4 + [1.0] * 4])
    assert occlusion_areas(scores["unmatched"], covered) == 1
    assert occlusion_areas(scores["cosine"], covered) == 1
    assert occlusion_areas(scores["weights"], covered) == 0.5


def test_with_all_mass_transported_there_is_nothing_to_measure():
    regions = colour_regions([Image.new("RGB", (8, 8), "red")])
    with pytest.raises(ValueError, match="need a share below 1"):
        region_scores(Matcher().match(regions, regions))


def smooth_image(seed: int) -> Image.Image:
    """Colours of 4 x 4 cells, none of them dark or blue."""
    cells = np.random.default_rng(seed).integers(100, 200, (4, 4, 3), dtype=np.uint8)
    cells[..., 2] //= 10
    return Image.fromarray(cells).resize((64, 64), Image.Resampling.NEAREST)


def measured(kinds, matcher=None, seeds=(0, 1, 2), others=True):
    images = [smooth_image(seed) for seed in seeds]
    blue = [Image.new("RGB", (64, 64), "blue")] * len(images)
    return measure_unmatched(
        colour_regions,
        Preprocess(size=64, resize=None),
        images,
        colour_regions(images),
        Matcher() if matcher is None else matcher,
        kinds,
        [np.random.default_rng(seed) for seed in seeds],
        blue if others else (),
    )


def test_clutter_of_another_colour_is_found_by_all_but_chance():
    found = measured(["clutter", "noise"])
    assert set(found) == {(kind, method) for kind in ("clutter", "noise") for method in METHODS}
    for method in ("unmatched", "exact", "cosine"):
        assert np.nanmean(found["clutter", method]) > 0.95
    assert all(values.shape == (3,) for values in found.values())


def test_what_is_measured_is_reproducible_and_pairs_do_not_depend_on_each_other():
    together, again, alone = measured(["clutter"]), measured(["clutter"]), measured(["clutter"], seeds=(1,))
    for key, values in together.items():
        assert np.array_equal(values, again[key], equal_nan=True)
        assert np.array_equal(values[1:2], alone[key], equal_nan=True)


def test_an_exact_matcher_has_one_plan():
    found = measured(["border"], Matcher(epsilon=0))
    assert {method for _, method in found} == {"unmatched", "cosine", "weights"}


def test_errors_name_what_is_needed():
    with pytest.raises(ValueError, match="clutter needs an image of another class"):
        measured(["clutter"], others=False)
    with pytest.raises(ValueError, match="no occlusion"):
        measured(["hat"])


def test_regions_without_a_grid_are_refused():
    def ungridded(views):
        found = colour_regions(views)
        return Regions.normalized(found.dense[:, :11], found.pooled)

    images = [smooth_image(0)]
    with pytest.raises(ValueError, match="need regions on a known grid"):
        measure_unmatched(
            ungridded,
            Preprocess(size=64, resize=None),
            images,
            colour_regions(images),
            Matcher(),
            ["border"],
            [np.random.default_rng(0)],
        )
