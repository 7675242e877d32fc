"""Regions: what is accepted, what is refused in which words, and that vectors survive every handling."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from diml.matching import Regions

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


class Elsewhere(torch.Tensor):
    """A tensor that says it lives on another device."""

    device = torch.device("cuda", 1)


def raw(images=5, regions=4, dim=3):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(images, regions, dim, generator=generator)
    return dense, torch.randn(images, dim, generator=generator)


@pytest.fixture
def regions():
    return Regions.normalized(*raw())


def same(actual, expected):
    assert torch.equal(actual.dense, expected.dense)
    assert torch.equal(actual.pooled, expected.pooled)
    assert actual.grid == expected.grid


# -------------------------------------------------------------------------------------------------- building


def test_normalized_vectors_have_unit_length_and_their_direction():
    dense, pooled = raw()
    regions = Regions.normalized(dense, pooled)
    for vectors, source in ((regions.dense, dense), (regions.pooled, pooled)):
        torch.testing.assert_close(vectors * source.norm(dim=-1, keepdim=True), source)
    same(Regions(regions.dense, regions.pooled), regions)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_normalized_does_not_overflow(scale):
    dense, pooled = (tensor.sign() + 0.5 for tensor in raw())
    scaled, plain = Regions.normalized(dense * scale, pooled * scale), Regions.normalized(dense, pooled)
    torch.testing.assert_close(scaled.dense, plain.dense)
    torch.testing.assert_close(scaled.pooled, plain.pooled)


def test_zero_vectors_stay_zero():
    dense, pooled = raw()
    dense[0, 1] = pooled[2] = 0
    regions = Regions.normalized(dense, pooled)
    assert (regions.dense[0, 1] == 0).all()
    assert (regions.pooled[2] == 0).all()
    same(Regions(regions.dense, regions.pooled), regions)


def test_from_maps_is_row_major_with_the_mean_of_the_cells_as_pooled():
    maps = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    regions = Regions.from_maps(maps)
    assert regions.grid == (2, 3)
    for image in range(2):
        for row in range(2):
            for column in range(3):
                cell = maps[image, :, row, column]
                torch.testing.assert_close(regions.dense[image, 3 * row + column], cell / cell.norm())
        mean = maps[image].mean(dim=(1, 2))
        torch.testing.assert_close(regions.pooled[image], mean / mean.norm())


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (4, (2, 2)), (196, (14, 14)), (6, None)])
def test_a_square_grid_is_recognised(count, grid):
    assert Regions.normalized(*raw(regions=count)).grid == grid


def test_a_grid_that_is_given_is_kept():
    assert Regions.normalized(*raw(regions=4), grid=(1, 4)).grid == (1, 4)
    assert Regions.normalized(*raw(regions=6), grid=(3, 2)).grid == (3, 2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [1, 3, 128, 2048])
def test_vectors_rounded_to_any_float_type_are_accepted(dtype, dim):
    stored = Regions.normalized(*raw(images=20, dim=dim)).to(dtype)
    assert Regions(stored.dense, stored.pooled).dense.dtype == dtype
    direct = Regions.normalized(*(part.to(dtype) for part in raw(images=20, dim=dim)))
    assert Regions(direct.dense, direct.pooled).dense.dtype == dtype


def test_no_images_are_fine():
    regions = Regions(torch.zeros(0, 4, 3), torch.zeros(0, 3))
    assert len(regions) == 0
    assert (regions.num_regions, regions.dim) == (4, 3)


def test_sizes_and_text(regions):
    assert (len(regions), regions.num_regions, regions.dim) == (5, 4, 3)
    for part in ("5 images", "2 x 2 regions", "D 3", "float32", "cpu"):
        assert part in repr(regions)


@pytest.mark.parametrize("name", ["dense", "pooled", "grid"])
def test_fields_are_frozen(regions, name):
    with pytest.raises(FrozenInstanceError):
        setattr(regions, name, None)


# --------------------------------------------------------------------------------------------------- refusals


def spoiled(name, change):
    """Good tensors with one of them changed."""
    good = Regions.normalized(*raw())
    parts = {"dense": good.dense.clone(), "pooled": good.pooled.clone()}
    parts[name] = change(parts[name])
    return parts


@pytest.mark.parametrize("build", [Regions, Regions.normalized])
@pytest.mark.parametrize("name", ["dense", "pooled"])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda t: t.numpy(), TypeError, r"{name}: need a floating-point tensor .*got ndarray.*float\(\)"),
        (lambda t: t.long(), TypeError, r"{name}: need a floating-point tensor .*got torch.int64.*float\(\)"),
        (lambda t: t[0], ValueError, r"{name}: need shape \(N, .*got \("),
        (lambda t: t[..., None], ValueError, r"{name}: need shape \(N, .*got \(5, "),
        (lambda t: t[..., :0], ValueError, r"{name}: need shape .*D >= 1, got \(5, .*0\)"),
        (lambda t: t[:2], ValueError, r"dense, pooled: need the same .*N.*got \([25], .* and \([25], "),
        (lambda t: t[..., :2], ValueError, r"dense, pooled: need the same .*D.*got "),
        (lambda t: t.double(), ValueError, r"dense, pooled: need the same .*dtype.*got .*float64"),
        (lambda t: t.as_subclass(Elsewhere), ValueError, r"dense, pooled: need the same .*device.*got .*cuda:1"),
    ],
)
def test_unfit_tensors_are_refused(build, name, change, error, words):
    with pytest.raises(error, match=words.format(name=name)):
        build(**spoiled(name, change))


def test_no_regions_are_refused():
    with pytest.raises(ValueError, match=r"dense: need shape .*R, D >= 1, got \(5, 0, 3\)"):
        Regions(torch.zeros(5, 0, 3), torch.zeros(5, 3))


@pytest.mark.parametrize("build", [Regions, Regions.normalized])
@pytest.mark.parametrize("name", ["dense", "pooled"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_refused_with_their_image(build, name, value):
    def spoil(tensor):
        tensor[3].view(-1)[0] = value
        return tensor

    with pytest.raises(ValueError, match=rf"{name}: need finite values, got NaN or infinity in 1 of 5.*first 3"):
        build(**spoiled(name, spoil))


@pytest.mark.parametrize("name", ["dense", "pooled"])
@pytest.mark.parametrize(("factor", "length"), [(0.9, "0.9"), (2.0, "2"), (1e-3, "0.001")])
def test_vectors_of_other_length_are_refused(name, factor, length):
    def stretch(tensor):
        tensor[2:] *= factor
        return tensor

    with pytest.raises(ValueError, match=rf"{name}: need unit .*length {length} in 3 of 5.*first 2.*normalized"):
        Regions(**spoiled(name, stretch))


@pytest.mark.parametrize("build", [Regions, Regions.normalized])
@pytest.mark.parametrize("grid", [(2, 3), (4,), (1, 2, 2), (-2, -2), (0, 4)])
def test_a_grid_that_does_not_fit_is_refused(build, grid):
    with pytest.raises(ValueError, match=r"grid: need \(rows, columns\).*= 4 regions, got \("):
        build(**spoiled("dense", torch.clone), grid=grid)


@pytest.mark.parametrize("shape", [(5, 3, 3), (1, 2, 5, 3, 3)])
def test_maps_without_four_axes_are_refused(shape):
    with pytest.raises(ValueError, match=r"maps: need shape \(N, D, H, W\), got \(.*batch axis"):
        Regions.from_maps(torch.ones(shape))


@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (2, 0, 4, 4)])
def test_maps_without_cells_or_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"need shape .*got"):
        Regions.from_maps(torch.ones(shape))


# -------------------------------------------------------------------------------------------------- handling

INDICES = {
    "first": (0, [0]),
    "last": (-1, [4]),
    "lowest": (-5, [0]),
    "numpy integer": (np.int64(3), [3]),
    "tensor integer": (torch.tensor(3), [3]),
    "slice": (slice(1, 3), [1, 2]),
    "stepped slice": (slice(None, None, 2), [0, 2, 4]),
    "empty slice": (slice(3, 3), []),
    "list": ([3, 0, 3], [3, 0, 3]),
    "negative list": ([-1, 1], [4, 1]),
    "empty list": ([], []),
    "tensor": (torch.tensor([2, 1]), [2, 1]),
    "array": (np.array([2, 1]), [2, 1]),
    "mask": (torch.tensor([True, False, False, True, False]), [0, 3]),
}


@pytest.mark.parametrize(("index", "rows"), INDICES.values(), ids=INDICES.keys())
def test_indexing_picks_images(regions, index, rows):
    picked = regions[index]
    assert len(picked) == len(rows)
    same(picked, Regions(regions.dense[rows], regions.pooled[rows], regions.grid))


@pytest.mark.parametrize("index", [5, -6, [5], torch.tensor([0, -6])])
def test_indices_outside_are_refused(regions, index):
    with pytest.raises(IndexError, match=r"out of (range|bounds)"):
        regions[index]


@pytest.mark.parametrize("index", [(0, 1), None, ..., 1.0, torch.zeros(2, 2).long()], ids=str)
def test_no_index_gives_misshapen_regions(regions, index):
    try:
        picked = regions[index]
    except (TypeError, ValueError, IndexError):
        return
    same(Regions(picked.dense, picked.pooled, picked.grid), picked)


def test_iteration_ends(regions):
    assert [len(one) for one in regions] == [1] * 5


def test_an_odd_grid_survives_indexing_and_conversion():
    regions = Regions.normalized(*raw(regions=4), grid=(4, 1))
    assert regions[2].grid == regions.to(torch.float64).grid == (4, 1)
    assert Regions.cat([regions, regions]).grid == (4, 1)


def test_cat_joins_by_content(regions):
    same(Regions.cat([regions[3:], regions[:0], regions[:3]]), regions[[3, 4, 0, 1, 2]])


@pytest.mark.parametrize(
    "other",
    [
        Regions.normalized(*raw(regions=4), grid=(1, 4)),
        Regions.normalized(*raw(regions=9)),
        Regions.normalized(*raw(dim=2)),
    ],
    ids=["grid", "R", "D"],
)
def test_cat_refuses_unlike_parts(regions, other):
    with pytest.raises(ValueError, match=r"parts: need Regions with one grid, R and D, got .*grid .*grid .*one model"):
        Regions.cat([regions, other])


def test_cat_refuses_nothing():
    with pytest.raises(ValueError, match="parts: need Regions with one grid, R and D, got none"):
        Regions.cat([])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 5e-4), (torch.bfloat16, 4e-3)])
def test_half_precision_and_back_stays_close(regions, dtype, atol):
    half = regions.to(dtype)
    assert half.dense.dtype == half.pooled.dtype == dtype
    back = half.to(torch.float32)
    torch.testing.assert_close(back.dense, regions.dense, rtol=0, atol=atol)
    torch.testing.assert_close(back.pooled, regions.pooled, rtol=0, atol=atol)


def test_conversion_leaves_the_original_alone(regions):
    before = regions.dense.clone()
    regions.to(torch.float16)
    assert regions.dense.dtype == torch.float32
    assert torch.equal(regions.dense, before)


@pytest.mark.parametrize("build", [Regions.normalized, lambda d, p: Regions.from_maps(d.mT.reshape(5, 3, 2, 2))])
def test_building_is_differentiable_and_zero_vectors_get_zero_gradient(build):
    dense, pooled = raw()
    dense[0] = 0
    leaf = dense.requires_grad_()
    regions = build(leaf, pooled)
    regions.dense[..., 0].sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert (leaf.grad[1:].flatten(1).abs().amax(dim=1) > 0).all()
