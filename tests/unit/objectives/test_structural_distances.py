"""Structural similarity and distance against `match`, one pair at a time, and the laws they keep."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import losses

from diml.matching import Regions, match
from diml.objectives import StructuralDistance, StructuralSimilarity, pack_regions, unpack_regions

TIGHT = {"epsilon": 0.2, "tolerance": 1e-10}  # enough entropy to converge fast, and tightly


def _by_match(kind, query, gallery, **settings):
    """The matrix, one call of `match` for each pair, straight from the definition."""
    matrix = torch.zeros(len(query), len(gallery), dtype=query.dense.dtype)
    for i in range(len(query)):
        for j in range(len(gallery)):
            found = match(query[i], gallery[j], **settings)
            if kind is StructuralSimilarity:
                matrix[i, j] = (found.structural + found.pooled)[0] / 2
            else:
                norms = (query.dense[i, :, None] - gallery.dense[j]).square().sum(-1).add(1e-6).sqrt()
                pooled = (query.pooled[i] - gallery.pooled[j]).square().sum().add(1e-6).sqrt()
                matrix[i, j] = ((found.plan[0] * norms).sum() + pooled) / 2
    return matrix


@pytest.fixture
def regions(make_maps):
    return Regions.from_maps(make_maps()[0].detach().double())


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
@pytest.mark.parametrize("marginals", ["cross_correlation", "uniform"])
def test_the_matrix_is_that_of_match_on_all_pairs(kind, marginals, regions):
    settings = {"marginals": marginals, **TIGHT}
    packed = pack_regions(regions)
    expected = _by_match(kind, regions, regions, **settings)
    torch.testing.assert_close(kind(4, **settings)(packed), expected, rtol=0, atol=1e-8)
    other = regions[2:5]
    torch.testing.assert_close(
        kind(4, **settings)(packed, pack_regions(other)), _by_match(kind, regions, other, **settings), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
def test_row_by_row_is_the_diagonal(kind, regions):
    a, b = pack_regions(regions[:6]), pack_regions(regions[6:])
    distance = kind(4, **TIGHT)
    torch.testing.assert_close(distance.pairwise_distance(a, b), distance(a, b).diagonal(), rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="as many rows"):
        distance.pairwise_distance(a, b[:2])


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
def test_swapping_the_sides_transposes(kind, regions):
    a, b = pack_regions(regions[:5]), pack_regions(regions[5:])
    distance = kind(4, **TIGHT)
    torch.testing.assert_close(distance(a, b), distance(b, a).T, rtol=0, atol=1e-8)
    whole = distance(pack_regions(regions))
    torch.testing.assert_close(whole, whole.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole[:5, 5:], distance(a, b), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
def test_block_size_does_not_matter(kind, regions):
    packed = pack_regions(regions)
    torch.testing.assert_close(kind(4, block_bytes=1)(packed), kind(4)(packed), rtol=0, atol=1e-12)


def test_gradient_flows_through_the_cosines_only(make_maps):
    maps, _ = make_maps(dim=6)
    maps = maps.detach().double()[:4].requires_grad_()
    regions = Regions.from_maps(maps)
    StructuralSimilarity(4, **TIGHT)(pack_regions(regions)).triu(1).sum().backward()
    ours, maps.grad = maps.grad, None
    again = Regions.from_maps(maps)
    for i in range(4):
        for j in range(i + 1, 4):
            found = match(again[i].to(torch.float64), again[j], **TIGHT)
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
        expected = kind(4, **TIGHT)(pack_regions(regions), pack_regions(gallery))
        torch.testing.assert_close(kind(4, **TIGHT)(pack_regions(regions), raw), expected, rtol=0, atol=1e-8)


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
        expected = _by_match(kind, regions, regions)
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
    distance = StructuralDistance(4, max_iterations=1)
    assert distance(pack_regions(regions)).isfinite().all()
    assert distance.unconverged_pairs > 0


def test_power_applies_to_the_matrix(regions):
    packed = pack_regions(regions)
    torch.testing.assert_close(StructuralDistance(4, power=2)(packed), StructuralDistance(4)(packed) ** 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_regions": 0}, "num_regions"),
        ({"num_regions": 4, "epsilon": 0}, "epsilon"),
        ({"num_regions": 4, "tolerance": -1}, "tolerance"),
        ({"num_regions": 4, "marginals": "both"}, "marginals"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StructuralSimilarity(**arguments)


def test_vectors_that_do_not_fit_are_refused(regions):
    packed = pack_regions(regions)
    with pytest.raises(ValueError, match="num_regions: unknown"):
        StructuralSimilarity()(packed)
    with pytest.raises(ValueError, match="check num_regions"):
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
        distance, leaf = kind(4, **TIGHT), maps.detach().double().requires_grad_()
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
