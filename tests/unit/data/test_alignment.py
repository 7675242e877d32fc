"""Copies of one photograph agree, whatever was done to them; other photographs, and other labels on them, do not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from diml.data.alignment import SMALL, Agreement, agreement, align, small_image

COPY, OTHER = 0.985, 0.95


def photo(seed: int, size: tuple[int, int] = (200, 160)) -> Image.Image:
    """Coloured spots of several sizes, none of them black or white."""
    generator = np.random.default_rng(seed)
    total = np.full((size[1], size[0], 3), 128.0)
    for cells, colours, strength in ((4, 3, 1.0), (10, 3, 0.5), (30, 1, 0.7)):
        cell = np.repeat(generator.integers(0, 256, (cells, cells, colours)), 3 // colours, axis=2).astype(np.uint8)
        layer = Image.fromarray(cell).resize(size, Image.Resampling.BICUBIC)
        total += strength * (np.asarray(layer, dtype=float) - 128) * 0.6
    return Image.fromarray(np.clip(total, 10, 240).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def crop(image: Image.Image, share: float, x: float = 0.5, y: float = 0.5) -> Image.Image:
    width, height = round(share * image.width), round(share * image.height)
    left, top = round(x * (image.width - width)), round(y * (image.height - height))
    return image.crop((left, top, left + width, top + height))


def compared(a: Image.Image, b: Image.Image) -> Agreement:
    laid = align(small_image(a)[None], small_image(b)[None])
    if not laid.alike[0]:
        return Agreement(0.0, 1.0, False)
    return agreement(a, b, bool(laid.mirrored[0]), laid.view[0])


CHANGES = {
    "nothing": (lambda image: image.copy(), False, 1.0),
    "jpeg": (lambda image: jpeg(image, 50), False, 1.0),
    "darker": (lambda image: ImageEnhance.Brightness(image).enhance(0.6), False, 1.0),
    "half": (lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS), False, 1.0),
    "wider": (lambda image: image.resize((300, 100), Image.Resampling.LANCZOS), False, 1.0),
    "mirror": (ImageOps.mirror, True, 1.0),
    "crop": (lambda image: crop(image, 0.9, 0.2, 0.9), False, 0.9),
    "smaller crop": (lambda image: crop(image, 0.8, 1.0, 0.3), False, 0.8),
    "mirrored crop": (lambda image: ImageOps.mirror(crop(image, 0.85, 0.1, 0.1)), True, 0.85),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_agree_in_both_directions(change):
    changed, mirrored, scale = CHANGES[change]
    original = photo(1)
    copy = changed(original)
    for found, expected in ((compared(original, copy), scale), (compared(copy, original), 1 / scale)):
        assert found.value >= COPY
        assert found.mirrored == mirrored
        assert found.scale == pytest.approx(expected, abs=0.01)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 50), st.floats(0.78, 1), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_crops_anywhere_are_found(seed, share, x, y, mirrored):
    original = photo(seed)
    copy = crop(original, share, x, y)
    found = compared(original, ImageOps.mirror(copy) if mirrored else copy)
    assert found.value >= COPY
    assert found.mirrored == mirrored
    assert found.scale == pytest.approx(share, abs=0.02)


def test_what_became_white_is_no_disagreement():
    original = ImageEnhance.Brightness(photo(4)).enhance(1.2)
    lighter = ImageEnhance.Brightness(original).enhance(1.4)
    assert (np.asarray(lighter) == 255).mean() > 0.1
    assert compared(original, lighter).value >= COPY
    assert compared(lighter, original).value >= COPY


def test_other_photographs_do_not_agree():
    small = np.stack([small_image(photo(seed)) for seed in range(12)])
    a, b = np.triu_indices(12, 1)
    assert not align(small[a], small[b]).alike.any()


def test_another_label_on_the_same_package_does_not_agree():
    package = photo(2)
    label = photo(3).resize((40, 30))
    other = package.copy()
    other.paste(label, (80, 60))
    laid = align(small_image(package)[None], small_image(other)[None])
    assert laid.correlation[0] > 0.9  # most of it is the same
    assert compared(package, other).value < OTHER


def test_other_colours_do_not_agree():
    """A product in another colour has the same grey values where only colour differs."""
    shirt = photo(5)
    pixels = np.asarray(shirt)
    other = Image.fromarray(np.ascontiguousarray(pixels[:, :, [2, 1, 0]]))
    assert compared(shirt, other).value < OTHER


def test_correlation_is_that_of_numpy():
    original = photo(6)
    noisy = Image.fromarray(
        (np.asarray(original) * 0.8 + np.random.default_rng(0).normal(20, 6, (160, 200, 3))).astype(np.uint8)
    )
    a, b = small_image(original), small_image(noisy)
    expected = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert align(a[None], b[None]).correlation[0] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_even_images_have_no_copies(level):
    flat = np.full((1, SMALL, SMALL), level, dtype=np.uint8)
    for other in (flat, small_image(photo(1))[None]):
        laid = align(flat, other)
        assert laid.correlation.tolist() == [0.0]
        assert np.isfinite(laid.view).all()
    image = Image.new("RGB", (50, 50), (level,) * 3)
    assert agreement(image, image, False, np.array([1, 0, 1, 0], dtype=np.float32)).value == 0


def test_pairs_do_not_depend_on_their_companions():
    small = np.stack([small_image(crop(photo(seed), 0.9)) for seed in range(5)])
    whole = np.stack([small_image(photo(seed)) for seed in range(5)])
    together = align(whole, small)
    for row in range(5):
        alone = align(whole[row : row + 1], small[row : row + 1])
        assert alone.correlation[0] == pytest.approx(together.correlation[row], abs=1e-4)
        np.testing.assert_allclose(alone.view[0], together.view[row], atol=1e-3)


def test_no_pairs_and_wrong_shapes():
    none = np.zeros((0, SMALL, SMALL), dtype=np.uint8)
    assert align(none, none).correlation.shape == (0,)
    with pytest.raises(ValueError, match="first: need uint8"):
        align(none.astype(float), none)
    with pytest.raises(ValueError, match="second: need uint8"):
        align(none, none[:, :8])
    with pytest.raises(ValueError, match="as many images"):
        align(none, np.zeros((1, SMALL, SMALL), dtype=np.uint8))


def test_views_that_share_almost_nothing_do_not_agree():
    image = photo(1)
    for view in ([1, 1.8, 1, 0], [-1, 0, 1, 0], [5, 0, 5, 0], [1, 5, 1, 0]):
        assert agreement(image, image, False, np.array(view, dtype=np.float32)).value == 0
