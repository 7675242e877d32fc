"""Structural similarity and distance against `Matcher.match`, one pair at a time, and the laws they obey."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning import losses

from diml.matching import Matcher, Regions
from diml.objectives import StructuralDistance, StructuralSimilarity, distances, pack_regions
from diml.objectives.distances import unpack_regions

TIGHT = Matcher(epsilon=0.2, tolerance=1e-10)  # enough entropy to converge fast, and tightly


def _by_match(kind, query, gallery, matcher):
    """The matrix by the definition, one call of `Matcher.match` for each pair."""
    weight = matcher.structural_weight
    matrix = torch.zeros(len(query), len(gallery), dtype=query.dense.dtype)
    for i in range(len(query)):
        for j in range(len(gallery)):
            found = matcher.match(query[i], gallery[j])
            if kind is StructuralSimilarity:
                structural, pooled = found.structural[0], found.pooled[0]
            else:
                norms = (query.dense[i, :, None] - gallery.dense[j]).square().sum(-1).add(1e-6).sqrt()
                pooled = (query.pooled[i] - gallery.pooled[j]).square().sum().add(1e-6).sqrt()
                structural = (found.plan[0] * norms).sum()
            matrix[i, j] = structural if weight == math.inf else (weight * structural + pooled) / (weight + 1)
    return matrix


@pytest.fixture
def regions(make_maps):
    return Regions.from_maps(make_maps()[0].detach().double())


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
@pytest.mark.parametrize("weights", ["cross_correlation", "uniform"])
def test_the_matrix_is_that_of_match_on_all_pairs(kind, weights, regions):
    matcher = replace(TIGHT, weights=weights)
    packed = pack_regions(regions)
    expected = _by_match(kind, regions, regions, matcher)
    torch.testing.assert_close(kind(4, matcher)(packed), expected, rtol=0, atol=1e-8)
    other = regions[2:5]
    torch.testing.assert_close(
        kind(4, matcher)(packed, pack_regions(other)), _by_match(kind, regions, other, matcher), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0, math.inf])
def test_the_structural_weight_is_that_of_the_score(kind, weight, regions):
    """(weight * structural + pooled) / (weight + 1): proportional to the score of evaluation."""
    matcher = replace(TIGHT, structural_weight=weight)
    found = kind(4, matcher)(pack_regions(regions))
    torch.testing.assert_close(found, _by_match(kind, regions, regions, matcher), rtol=0, atol=1e-8)
    if kind is StructuralSimilarity:
        score = matcher.match(regions[:1], regions).score
        torch.testing.assert_close(found[0] * (1 if weight == math.inf else weight + 1), score, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
def test_row_by_row_is_the_diagonal(kind, regions):
    a, b = pack_regions(regions[:6]), pack_regions(regions[6:])
    distance = kind(4, TIGHT)
    torch.testing.assert_close(distance.pairwise_distance(a, b), distance(a, b).diagonal(), rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="as many rows"):
        distance.pairwise_distance(a, b[:2])


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
def test_swapping_the_sides_transposes(kind, regions):
    a, b = pack_regions(regions[:5]), pack_regions(regions[5:])
    distance = kind(4, TIGHT)
    torch.testing.assert_close(distance(a, b), distance(b, a).T, rtol=0, atol=1e-8)
    whole = distance(pack_regions(regions))
    torch.testing.assert_close(whole, whole.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole[:5, 5:], distance(a, b), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
def test_block_size_does_not_matter(kind, regions, monkeypatch):
    packed = pack_regions(regions)
    whole = kind(4)(packed)
    monkeypatch.setattr(distances, "BLOCK_BYTES", 1)
    torch.testing.assert_close(kind(4)(packed), whole, rtol=0, atol=1e-12)


def test_gradient_flows_through_the_cosines_only(make_maps):
    maps, _ = make_maps(dim=6)
    maps = maps.detach().double()[:4].requires_grad_()
    regions = Regions.from_maps(maps)
    StructuralSimilarity(4, TIGHT)(pack_regions(regions)).triu(1).sum().backward()
    ours, maps.grad = maps.grad, None
    again = Regions.from_maps(maps)
    for i in range(4):
        for j in range(i + 1, 4):
            found = TIGHT.match(again[i].to(torch.float64), again[j])
            assert not found.plan.requires_grad
            (((found.plan * found.cosine).sum() + found.pooled[0]) / 2).backward(retain_graph=True)
    torch.testing.assert_close(ours, maps.grad, rtol=1e-6, atol=1e-9)


def test_packing_comes_back(regions):
    again = unpack_regions(pack_regions(regions), 4)
    assert torch.equal(again.dense, regions.dense)
    assert torch.equal(again.pooled, regions.pooled)
    assert pack_regions(regions.to(torch.float16)).dtype == torch.float32


def test_a_map_on_one_side_is_pooled_here(regions):
    raw = regions.dense.flatten(1) * 3.0  # R * D columns, any length
    gallery = Regions.normalized(regions.dense, regions.dense.mean(dim=1))
    for kind in (StructuralSimilarity, StructuralDistance):
        expected = kind(4, TIGHT)(pack_regions(regions), pack_regions(gallery))
        torch.testing.assert_close(kind(4, TIGHT)(pack_regions(regions), raw), expected, rtol=0, atol=1e-8)


def test_blank_and_equal_images_stay_finite(make_maps):
    maps, _ = make_maps()
    maps = maps.detach().clone()
    maps[0] = 0
    maps[1, :, 0, 0] = 0
    maps[3] = maps[2]
    for kind in (StructuralSimilarity, StructuralDistance):
        leaf = maps.clone().requires_grad_()
        regions = Regions.from_maps(leaf)
        matrix = kind(4)(pack_regions(regions))
        matrix.sum().backward()
        assert matrix.isfinite().all()
        assert leaf.grad.isfinite().all()
        expected = _by_match(kind, regions, regions, Matcher())
        torch.testing.assert_close(matrix, expected.detach(), rtol=0, atol=2e-4)


def test_sharing_computes_once_and_survives_editing(regions, monkeypatch):
    distance, packed = StructuralSimilarity(4), pack_regions(regions)
    calls = []
    solve = distance._plans
    monkeypatch.setattr(distance, "_plans", lambda *args, **kwargs: calls.append(1) or solve(*args, **kwargs))
    with distance.sharing():
        with torch.no_grad():
            first = distance(packed)
        expected = first.clone()
        first.fill_(7)
        assert torch.equal(distance(packed), expected)
        distance(packed[:3])
    assert len(calls) == 2
    distance(packed)
    assert len(calls) == 3


def test_under_autocast_the_matrix_is_float32(regions):
    packed = pack_regions(regions.to(torch.float32))
    expected = StructuralSimilarity(4)(packed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(StructuralSimilarity(4)(packed), expected)


def test_unconverged_pairs_are_counted(regions):
    distance = StructuralDistance(4, Matcher(max_iterations=1))
    assert distance(pack_regions(regions)).isfinite().all()
    assert distance.unconverged_pairs > 0


def test_power_applies_to_the_matrix(regions):
    packed = pack_regions(regions)
    torch.testing.assert_close(StructuralDistance(4, power=2)(packed), StructuralDistance(4)(packed) ** 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regions": 0}, "regions"),
        ({"regions": "16"}, "regions"),
        ({"regions": 4, "matcher": {"epsilon": 1}}, "Matcher"),
        ({"regions": 4, "matcher": Matcher(weights="rollout")}, "weights 'rollout' are for ranking"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        StructuralSimilarity(**arguments)


def test_print_names_regions_and_matcher():
    shown = repr(StructuralDistance(16, Matcher(epsilon=0.02)))
    assert "regions=16" in shown
    assert "epsilon=0.02" in shown


def test_vectors_that_do_not_fit_are_refused(regions):
    packed = pack_regions(regions)
    with pytest.raises(ValueError, match="regions: unknown"):
        StructuralSimilarity()(packed)
    with pytest.raises(ValueError, match="check the number of regions"):
        StructuralSimilarity(6)(packed)
    with pytest.raises(ValueError, match=r"R \* D"):
        StructuralSimilarity(4)(packed, packed[:, :50])
    with pytest.raises(ValueError, match="unit"):
        losses.MultiSimilarityLoss(distance=StructuralSimilarity(4))(3 * packed, torch.arange(12) // 3)


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
def test_few_pairs_are_solved_alone_and_the_rest_is_nan(kind, make_maps):
    maps, _ = make_maps()
    pairs = torch.tensor([[0, 5, 5, 7, 0], [3, 1, 1, 7, 3]])
    gradients = []
    for some in (False, True):
        distance, leaf = kind(4, TIGHT), maps.detach().double().requires_grad_()
        packed = pack_regions(Regions.from_maps(leaf))
        with distance.sharing():
            if some:
                distance.only(pairs)
            matrix = distance(packed)
        values = matrix[pairs[0], pairs[1]]
        values.square().sum().backward()
        gradients.append((leaf.grad, values.detach(), matrix.detach()))
    (full, expected, _), (alone, values, matrix) = gradients
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(alone, full, rtol=1e-6, atol=1e-8)
    assert int(matrix.isfinite().sum()) == 5  # (0, 3), (5, 1), their mirror images and (7, 7)
    assert distance(packed).isfinite().all()  # outside of `sharing` again all
