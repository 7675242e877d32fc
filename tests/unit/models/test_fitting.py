"""A whitening fitted on images that are embedded anyway: the same as in two passes, and in one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diml.models import fitting
from diml.models.embedder import Embedder
from diml.models.fitting import fit_and_embed, projected


@pytest.fixture
def counted(monkeypatch):
    """How many images went through a network."""
    numbers = []
    original = Embedder._infer
    monkeypatch.setattr(
        Embedder, "_infer", lambda self, batch, *more: numbers.append(len(batch)) or original(self, batch, *more)
    )
    return numbers


@pytest.mark.parametrize("pooled", ["backbone", "grid_mean"])
@pytest.mark.parametrize("kept", [2, 3, 5, 100])
@pytest.mark.parametrize("grid", [3, None])
def test_each_image_is_embedded_once_with_the_result_of_two_passes(
    pooled, kept, grid, tiny, images, counted, monkeypatch
):
    embedder = tiny(head="whiten", dim=3, pooled=pooled, grid=grid)
    cells = embedder.backbone(torch.zeros(1, 3, 64, 64)).maps[0, 0].numel() if grid is None else grid**2
    monkeypatch.setattr(fitting, "KEPT_BYTES", kept * 4 * cells * embedder.backbone.channels)
    found = fit_and_embed(embedder, images, rows=range(1, 6))
    assert sum(counted) == len(images) + (grid is None)  # without a grid, a trial image says how many cells there are
    assert (found.images, found.offered) == (min(kept, 5), 5)
    assert found.embedded.kept.tolist() == list(range(7))
    expected = embedder.embed(images)
    torch.testing.assert_close(found.embedded.regions.dense, expected.dense, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.embedded.regions.pooled, expected.pooled, atol=2e-6, rtol=0)
    if kept >= 5:
        twin = tiny(head="whiten", dim=3, pooled=pooled, grid=grid)
        twin.fit_head(images[1:6])
        torch.testing.assert_close(twin.head.weight, embedder.head.weight, atol=1e-4, rtol=1e-4)


def test_other_images_are_fitted_on_and_not_returned(tiny, images, counted):
    embedder, twin = tiny(head="whiten", dim=5), tiny(head="whiten", dim=5)
    found = fit_and_embed(embedder, images[:3], others=images[3:])
    assert sum(counted) == 7
    assert (found.images, len(found.embedded.regions)) == (4, 3)
    twin.fit_head(images[3:])
    torch.testing.assert_close(twin.head.weight, embedder.head.weight, atol=1e-4, rtol=1e-4)
    both = fit_and_embed(tiny(head="whiten", dim=5), images[:3], rows=[0, 2], others=images[3:])
    assert (both.images, both.offered) == (6, 6)


def test_the_cache_serves_another_head(tiny, paths, counted, tmp_path):
    for dim in (5, 7):
        fit_and_embed(tiny(head="whiten", dim=dim), paths, rows=range(7), cache=tmp_path / "cache")
    assert sum(counted) == 7


@pytest.mark.parametrize("kept", [2, 100])
def test_unreadable_images_are_left_out_and_named(kept, tiny, paths, tmp_path, monkeypatch):
    embedder = tiny(head="whiten", dim=3, grid=2)
    monkeypatch.setattr(fitting, "KEPT_BYTES", kept * 16 * embedder.backbone.channels)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    mixed = [*paths[:2], broken, *paths[2:]]
    found = fit_and_embed(embedder, mixed, rows=[0, 2, 5], on_bad_image="skip")
    assert found.embedded.kept.tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert [bad.path for bad in found.embedded.bad] == [str(broken)]
    torch.testing.assert_close(found.embedded.regions.dense, embedder.embed(paths).dense, atol=2e-6, rtol=0)


def test_there_has_to_be_something_to_fit_on(tiny, images):
    with pytest.raises(ValueError, match="need images to fit head 'whiten' on, got none"):
        fit_and_embed(tiny(head="whiten", dim=5), images)


def test_projected_shares_are_those_of_the_projected_vectors(tiny, images):
    raw = tiny(head="identity", grid=3).embed(images, shares=True)
    embedder = tiny(head="whiten", dim=5, grid=3)
    embedder.fit_head(raw)
    found = projected(raw, embedder.head)
    assert found.shares is not None
    np.testing.assert_allclose(found.shares.sum(dim=1), found.pooled, atol=2e-6)
    expected = embedder.embed(images, shares=True)
    torch.testing.assert_close(found.shares, expected.shares, atol=2e-6, rtol=0)
