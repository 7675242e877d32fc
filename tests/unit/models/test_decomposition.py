"""Shares of the pooled vector: they sum to it wherever it is a mean of cells, and are refused by name elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from diml.data.transforms import Preprocess
from diml.matching import match
from diml.models import Backbone, Embedder, EmbedderConfig
from diml.models.backbones import Features
from diml.models.decomposition import pooled_shares
from diml.models.grids import area_overlap, divide_over_grid, resize_grid

SMALL = Preprocess(size=64, resize=72)


def batch(count: int = 3, size: int = 64, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3), dtype=dtype)


class Strided(nn.Module):
    """A user's module: 64 pixels become a map of 6 x 6."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 24, 10, 10), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Pooling(Backbone):
    """A user's backbone with a pooling of its own."""

    def __init__(self, pool) -> None:
        super().__init__(Strided(), 24)
        self.pool = pool

    def forward(self, images: torch.Tensor) -> Features:
        maps = self.net(images)
        return Features(maps, self.pool(maps))


def own(backbone: nn.Module, module: nn.Module | None = None, **settings) -> Embedder:
    return Embedder(backbone, module, EmbedderConfig(backbone="mine:net", preprocess=SMALL, dim=1, **settings)).double()


def generalised_mean(maps: torch.Tensor) -> torch.Tensor:
    return maps.pow(3).mean(dim=(2, 3)).pow(1 / 3)


def build(tiny, name: str, head: str, **settings) -> Embedder:
    """An embedder in float64 with random weights, the bias of a linear head included."""
    options = {} if head == "identity" else {"dim": 6}
    if name == "module":
        embedder = tiny(Strided(), head=head, **options, **settings)
    else:
        pooling = {"token_pooling": "mean"} if name == "test_vit" else {}
        embedder = tiny(name, head=head, **options, **pooling, **settings)
    if head == "linear":
        torch.nn.init.normal_(embedder.head.bias)
    if head == "whiten":
        embedder.fit_head(torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(5)))
    return embedder.double().eval()


# -------------------------------------------------------------------------------------------------- the sum


@pytest.mark.parametrize("pooled", ["backbone", "grid_mean"])
@pytest.mark.parametrize("grid", [None, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("head", ["identity", "linear", "whiten"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "module"])
@torch.no_grad()
def test_the_whole_is_one_sum(name, head, grid, pooled, tiny):
    """Maps are 2 x 2, 4 x 4 and 6 x 6 cells: grids that divide them, and grids that do not."""
    embedder = build(tiny, name, head, grid=grid, pooled=pooled)
    plain, regions = embedder(batch()), embedder(batch(), shares=True)
    assert torch.equal(plain.dense, regions.dense)
    assert torch.equal(plain.pooled, regions.pooled)
    torch.testing.assert_close(regions.shares.sum(dim=1), regions.pooled, rtol=0, atol=1e-9)
    found = match(regions, regions[[1, 2, 0]])
    for pair in range(3):
        ledger = found.ledger(pair)
        assert float(ledger.pooled_parts.sum()) == pytest.approx(ledger.pooled, abs=1e-9)
        assert float(ledger.whole.sum()) == pytest.approx(ledger.score, abs=1e-9)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "test_efficientnet"])
@torch.no_grad()
def test_networks_that_pool_their_last_map_are_divided(name, tiny):
    regions = tiny(name, grid=3).eval()(batch(dtype=torch.float32), shares=True)
    ledger = match(regions[:1], regions[1:2]).ledger()
    assert float(ledger.whole.sum()) == pytest.approx(ledger.score, abs=1e-6)


@torch.no_grad()
def test_a_share_is_the_head_of_the_cells_that_a_region_covers(tiny):
    """Cell by cell with W, bias and n, where a grid of 2 divides the 6 x 6 cells, as in the formula."""
    embedder = build(tiny, "module", "linear", grid=2)
    regions, features = embedder(batch(1), shares=True), embedder.backbone(batch(1))
    weight, bias = embedder.head.weight, embedder.head.bias
    length = (weight @ features.pooled[0] + bias).norm()
    for row in range(2):
        for column in range(2):
            expected = sum(
                (weight @ features.maps[0, :, y, x] + bias) / 36 / length
                for y in range(3 * row, 3 * row + 3)
                for x in range(3 * column, 3 * column + 3)
            )
            torch.testing.assert_close(regions.shares[0, 2 * row + column], expected)


@torch.no_grad()
def test_low_precision_is_divided_up_to_its_rounding(tiny, images):
    embedder = tiny(precision="bfloat16", head="linear", dim=8)
    regions = embedder.embed(images, shares=True)
    ledger = match(regions[:1], regions[1:2]).ledger()
    assert float(ledger.whole.sum()) == pytest.approx(ledger.score, abs=1e-6)


def test_embed_computes_shares_on_request_only(tiny, images):
    embedder = tiny()
    plain, divided = embedder.embed(images, batch_size=3), embedder.embed(images, batch_size=3, shares=True)
    assert plain.shares is None
    assert torch.equal(plain.dense, divided.dense)
    torch.testing.assert_close(divided.shares.sum(dim=1), divided.pooled)
    checked = embedder.embed_checked(images, shares=True).regions
    torch.testing.assert_close(checked.shares, divided.shares)
    tensors = torch.stack([embedder.preprocess(image) for image in images])
    loaded = embedder.embed(DataLoader(tensors, batch_size=2), shares=True)
    torch.testing.assert_close(loaded.shares, divided.shares)


@torch.no_grad()
def test_blank_cells_have_no_share_and_blank_images_none():
    embedder = own(Strided(), grid=3)
    embedder.backbone.net.layers[0].bias.zero_()
    images = batch(2)
    images[0] = 0
    images[1, :, :32] = 0
    regions = embedder(images, shares=True)
    assert (regions.shares[0] == 0).all()
    assert (regions.shares[1, :3] == 0).all()
    assert (regions.shares[1, 6:] != 0).any()


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test_vit", r"backbone 'test_vit' pools by its class token.*token_pooling='mean'.*grid_mean"),
        ("test_convnext", r"backbone 'test_convnext' has further layers after the mean.*grid_mean"),
        ("mobilenetv3_small_050", r"backbone 'mobilenetv3_small_050' has further layers after the mean.*grid_mean"),
    ],
)
def test_known_networks_without_a_mean_are_refused_by_name(name, words, tiny, images):
    regions = tiny(name).embed(images[:2], shares=True)
    assert regions.shares is None
    ledger = match(regions[0], regions[1]).ledger()
    assert ledger.pooled_parts is None
    with pytest.raises(ValueError, match=f"whole: need pooled_parts, got none: {words}"):
        _ = ledger.whole
    divided = tiny(name, pooled="grid_mean").embed(images[:2], shares=True)  # the remedy
    assert match(divided[0], divided[1]).ledger().has_whole


@torch.no_grad()
def test_a_norm_after_the_mean_of_tokens_is_refused(tiny):
    embedder = build(tiny, "test_vit", "identity")
    embedder.backbone.net.fc_norm = nn.LayerNorm(64).double()
    regions = embedder(batch(), shares=True)
    assert regions.shares is None
    assert "'test_vit' normalises the mean of its cells (LayerNorm)" in regions.undivided


@pytest.mark.parametrize("pool", [generalised_mean, lambda maps: maps.amax(dim=(2, 3)), lambda maps: maps[..., 0, 0]])
@torch.no_grad()
def test_other_poolings_of_a_users_backbone_are_found(pool):
    regions = own(Pooling(pool))(batch(), shares=True)
    assert regions.shares is None
    assert "backbone 'mine:net' pools by something else than the mean of its cells" in regions.undivided


@torch.no_grad()
def test_a_pooled_feature_of_unit_length_is_still_a_mean():
    def pool(maps: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(maps.mean(dim=(2, 3)))

    regions = own(Pooling(pool))(batch(), shares=True)
    torch.testing.assert_close(regions.shares.sum(dim=1), regions.pooled)


class Rectified(nn.Linear):
    """A head that is not affine."""

    dim = 6

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features).relu()


@torch.no_grad()
def test_a_head_that_is_not_affine_is_found():
    regions = own(Strided(), Rectified(24, 6), head="linear")(batch(), shares=True)
    assert regions.shares is None
    assert "head 'linear' on 'mine:net' is not affine" in regions.undivided


@torch.no_grad()
def test_one_batch_without_shares_leaves_none():
    embedder = own(Pooling(lambda maps: maps.amax(dim=(2, 3)))).float()
    flat = torch.full((3, 64, 64), 0.5)  # all cells equal, so that the maximum is the mean
    noisy = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert embedder.embed([flat], shares=True).shares is not None
    for order in ([flat, noisy, flat], [noisy, flat, flat]):
        regions = embedder.embed(order, batch_size=1, shares=True)
        assert regions.shares is None
        assert "pools by something else" in regions.undivided


def test_cells_that_cancel_are_refused_rather_than_rounded_away():
    maps = torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(1, 1, 1, 2).repeat(1, 3, 1, 1)
    assert pooled_shares(maps, torch.ones(1, 3, dtype=torch.float64), None, torch.float64) is None
    none = torch.zeros(1, 3, dtype=torch.float64)
    assert torch.equal(pooled_shares(maps, none, None, torch.float64), torch.zeros(1, 2, 3, dtype=torch.float64))


# ------------------------------------------------------------------------------------------------------ areas


@pytest.mark.parametrize(("cells", "regions"), [(7, 4), (4, 7), (6, 2), (1, 3), (5, 1), (7, 7), (14, 3)])
def test_overlaps_are_fractions_of_cells(cells, regions):
    overlap = area_overlap(cells, regions)
    assert overlap.shape == (regions, cells)
    torch.testing.assert_close(overlap.sum(dim=0), torch.ones(cells, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(overlap.sum(dim=1), torch.full((regions,), cells / regions, dtype=torch.float64))
    for region in range(regions):
        for cell in range(cells):
            shared = min((cell + 1) / cells, (region + 1) / regions) - max(cell / cells, region / regions)
            assert float(overlap[region, cell]) == pytest.approx(max(0.0, shared) * cells, abs=1e-12)


def test_dividing_keeps_the_sum_and_is_averaging_where_the_grid_divides_the_map():
    maps = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    for grid in range(1, 15):
        torch.testing.assert_close(divide_over_grid(maps, grid).sum(dim=(2, 3)), maps.sum(dim=(2, 3)))
    torch.testing.assert_close(divide_over_grid(maps, 2), resize_grid(maps, 2) * 12)
    torch.testing.assert_close(divide_over_grid(maps.mT, 3), divide_over_grid(maps, 3).mT)
