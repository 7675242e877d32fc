"""The whole score as one sum over pairs of regions: shares, parts of the pooled cosine, ledger, contrast."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from diml.matching import Ledger, Matcher, Regions, match

NOT_COMPUTED = r"not computed.*embed\(images, shares=True\)"


def maps(images=3, dim=8, rows=3, columns=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, dim, rows, columns, generator=generator, dtype=torch.float64) + 0.3


@pytest.fixture
def query():
    return Regions.from_maps(maps(), shares=True)


@pytest.fixture
def gallery():
    return Regions.from_maps(maps(rows=2, columns=5, seed=1), shares=True)


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# ---------------------------------------------------------------------------------------------------- shares


def test_shares_of_maps_are_their_cells_over_the_length_of_the_sum(query):
    cells = maps().flatten(2).transpose(1, 2)
    for image in range(3):
        total = cells[image].sum(dim=0)
        for region in range(12):
            close(query.shares[image, region], cells[image, region] / total.norm())
    close(query.shares.sum(dim=1), query.pooled)


def test_shares_change_nothing_else(query):
    plain = Regions.from_maps(maps())
    assert plain.shares is None
    assert torch.equal(plain.dense, query.dense)
    assert torch.equal(plain.pooled, query.pooled)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_the_scale_of_features_does_not_matter(scale):
    scaled = Regions.from_maps(maps() * scale, shares=True)
    close(scaled.shares, Regions.from_maps(maps(), shares=True).shares)


def test_blank_images_have_no_shares_to_speak_of():
    features = maps()
    features[1] = 0
    regions = Regions.from_maps(features, shares=True)
    assert (regions.shares[1] == 0).all()
    assert float(match(regions, regions).ledger(1).whole.abs().sum()) == 0


def test_shares_are_free_of_gradient():
    leaf = maps().requires_grad_()
    regions = Regions.from_maps(leaf, shares=True)
    assert not regions.shares.requires_grad
    found = match(regions, regions)
    assert not found.pooled_parts.requires_grad
    assert found.pooled.requires_grad


@pytest.mark.parametrize("index", [1, slice(0, 2), [2, 0], torch.tensor([True, False, True])])
def test_shares_follow_their_images(query, index):
    picked = query[index]
    close(picked.shares.sum(dim=1), picked.pooled)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_shares_are_converted(query, dtype):
    stored = query.to(dtype)
    assert stored.shares.dtype == dtype
    Regions(stored.dense, stored.pooled, stored.grid, stored.shares)  # passes its checks


def test_cat_keeps_shares_where_all_parts_have_them(query):
    joined = Regions.cat([query[2:], query[:2]])
    assert torch.equal(joined.shares, query.shares[[2, 0, 1]])
    why = Regions.normalized(query.dense, query.pooled, query.grid, undivided="no mean")
    mixed = Regions.cat([query, why])
    assert mixed.shares is None
    assert mixed.undivided == "no mean"


def test_quantized_regions_have_no_shares(query):
    assert query.to(torch.float32).quantized()[0].shares is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shares: shares[:, :2], r"shares: need shape, dtype and device of dense"),
        (lambda shares: shares.float(), r"shares: need shape, dtype and device of dense"),
        (
            lambda shares: shares * 1.1,
            r"shares: need vectors that sum to the pooled vector.*3 of 3 images, the first 0",
        ),
        (lambda shares: shares * float("nan"), r"shares: need vectors that sum to the pooled vector.*nan"),
    ],
)
def test_shares_that_do_not_fit_are_refused(query, change, words):
    with pytest.raises(ValueError, match=words):
        Regions(query.dense, query.pooled, query.grid, change(query.shares))
    with pytest.raises(ValueError, match=words):
        Regions.normalized(query.dense, query.pooled, query.grid, shares=change(query.shares))


# ------------------------------------------------------------------------------------------- match and ledger


def test_each_part_of_the_pooled_cosine_is_a_product_of_two_shares(query, gallery):
    parts = match(query, gallery).pooled_parts
    for image in range(3):
        for i in range(12):
            for j in range(10):
                naive = sum(
                    a * b
                    for a, b in zip(
                        *(s.tolist() for s in (query.shares[image, i], gallery.shares[image, j])), strict=True
                    )
                )
                assert float(parts[image, i, j]) == pytest.approx(naive, abs=1e-14)
    close(parts.sum(dim=(1, 2)), match(query, gallery).pooled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0, math.inf])
def test_the_whole_sums_to_the_score(query, gallery, weight, dtype):
    found = match(query.to(dtype), gallery.to(dtype), structural_weight=weight)
    for pair in range(3):
        ledger = found.ledger(pair)
        assert ledger.has_whole
        assert ledger.whole.dtype == torch.float64
        assert float(ledger.whole.sum()) == pytest.approx(ledger.score, abs=1e-6 if dtype == torch.float32 else 1e-12)
        assert float(ledger.whole.sum()) == pytest.approx(float(found.score[pair]), abs=2e-6)


def test_one_against_many_has_the_parts_of_each(query, gallery):
    many = match(query[0], gallery)
    close(many.pooled_parts[2], match(query[0], gallery[2]).pooled_parts[0])
    close(match(gallery, query[0]).pooled_parts, many.pooled_parts.mT)


def test_swapping_the_sides_transposes_the_whole(query, gallery):
    settings = {"epsilon": 0.5, "tolerance": 1e-12, "max_iterations": 10_000}
    there, back = match(query, gallery, **settings), match(gallery, query, **settings)
    close(back.ledger(1).whole, there.ledger(1).whole.mT, 1e-9)


def test_without_shares_the_numbers_are_the_same_and_the_whole_is_refused(query, gallery):
    plain = [Regions(side.dense, side.pooled, side.grid) for side in (query, gallery)]
    found, divided = match(*plain), match(query, gallery)
    for name in ("plan", "cosine", "structural", "pooled", "score", "weight_q", "weight_g"):
        assert torch.equal(getattr(found, name), getattr(divided, name)), name
    assert found.pooled_parts is None
    ledger = found.ledger(0)
    assert ledger.pooled_parts is None
    assert not ledger.has_whole
    with pytest.raises(ValueError, match=f"whole: need pooled_parts, got none: .*{NOT_COMPUTED}"):
        _ = ledger.whole


def test_the_reason_is_that_of_the_side_without_shares(query, gallery):
    why = Regions.normalized(gallery.dense, gallery.pooled, gallery.grid, undivided="backbone 'vit' has no mean")
    for sides in ((query, why), (why, query)):
        assert match(*sides).undivided == match(*sides).ledger().undivided == "backbone 'vit' has no mean"
    assert match(query, gallery).undivided == ""


def test_by_the_structural_score_alone_the_whole_is_the_structural_score():
    regions = Regions.from_maps(maps())
    ledger = match(regions, regions, structural_weight=math.inf).ledger()
    assert ledger.has_whole
    assert torch.equal(ledger.whole, ledger.contributions)


def test_json_holds_the_totals_of_the_pooled_parts(query, gallery):
    ledger = match(query, gallery).ledger(1)
    written = json.loads(ledger.to_json())
    assert written["pooled_parts"] == {
        "total_q": ledger.pooled_parts.sum(dim=1).tolist(),
        "total_g": ledger.pooled_parts.sum(dim=0).tolist(),
    }
    assert sum(written["pooled_parts"]["total_g"]) == pytest.approx(written["pooled"])
    assert "undivided" not in written
    plain = Ledger(ledger.plan, ledger.cosine, ledger.pooled)
    assert not {"pooled_parts", "undivided"} & set(plain.to_dict())
    assert replace(plain, undivided="no mean").to_dict()["undivided"] == "no mean"


# --------------------------------------------------------------------------------------------------- contrast


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0, math.inf])
def test_a_contrast_of_wholes_sums_to_the_difference_of_the_scores(query, gallery, weight):
    found = Matcher(structural_weight=weight).match(query[0], gallery)
    contrast = found.contrast(found, 1, 2)
    assert float(contrast.whole.sum()) == pytest.approx(contrast.score, abs=1e-12)
    close(contrast.whole, found.ledger(1).whole.sum(dim=1) - found.ledger(2).whole.sum(dim=1))
    assert contrast.to_dict()["whole"] == contrast.whole.tolist()
    assert contrast.top(12) == sorted(range(12), key=lambda region: -abs(float(contrast.whole[region])))


def test_a_contrast_has_no_whole_where_one_side_has_none(query, gallery):
    plain = Regions(gallery.dense, gallery.pooled, gallery.grid)
    whole, part = match(query[0], gallery), match(query[0], plain)
    for contrast in (whole.contrast(part), part.contrast(whole), part.contrast(part, 0, 1)):
        assert contrast.whole is None
        assert "whole" not in contrast.to_dict()
    assert part.contrast(part, 0, 1).score == whole.contrast(whole, 0, 1).score
