"""Foregrounds: what is read from masks, alpha channels and boxes, and areas of regions against counted pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diml.audit import Foregrounds
from diml.audit.foregrounds import view_plane
from diml.data import ImageSet, Preprocess
from diml.data.region_coverage import region_coverage, view_box


def random_plane(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random object."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5), dtype=np.uint8)
    return (np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)) > 128).astype(
        np.float32
    )


def one_image(folder: Path, size: tuple[int, int] = (20, 10), name: str = "a.png", **options: object) -> ImageSet:
    """An image set of one image in a class folder."""
    path = folder / "images" / "one" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)
    return ImageSet([path], ["one"])


def write_mask(folder: Path, mask: Image.Image | np.ndarray, name: str = "a.png", **options: object) -> Path:
    path = folder / "masks" / "one" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(path, **options)
    return path


@pytest.mark.parametrize(("scale", "grid"), [(1, 4), (1, 8), (3, 4), (2, 2)])
def test_regions_on_pixel_borders_are_counted_exactly(scale, grid):
    """72 x 90 pixels and multiples: the view of 64 pixels begins at row 4 and column 13."""
    plane = random_plane(72 * scale, 90 * scale)
    box = view_box(Preprocess(size=64, resize=72), (90 * scale, 72 * scale))
    assert box == (13 * scale, 4 * scale, 77 * scale, 68 * scale)
    side = 64 * scale // grid
    view = plane[4 * scale : 68 * scale, 13 * scale : 77 * scale]
    counted = view.reshape(grid, side, grid, side).mean(axis=(1, 3)).flatten()
    np.testing.assert_allclose(region_coverage(plane, box, (grid, grid)), counted, atol=1e-12)


@pytest.mark.parametrize("mode", ["crop", "square"])
@pytest.mark.parametrize(("width", "height"), [(61, 47), (33, 200), (500, 31), (64, 64), (7, 5), (1, 9)])
@pytest.mark.parametrize("resize", [None, 64, 83])
def test_regions_across_pixels_are_counted_by_many_points(mode, width, height, resize):
    preprocess = Preprocess(size=56, resize=resize, mode=mode)
    plane = random_plane(height, width, seed=width)
    left, top, right, bottom = view_box(preprocess, (width, height))
    points = (np.arange(5 * 120) + 0.5) / (5 * 120)
    rows, columns = (top + points * (bottom - top)).astype(int), (left + points * (right - left)).astype(int)
    counted = plane[rows][:, columns].reshape(5, 120, 5, 120).mean(axis=(1, 3)).flatten()
    found = region_coverage(plane, (left, top, right, bottom), (5, 5))
    np.testing.assert_allclose(found, counted, atol=0.02)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("mode", ["crop", "square"])
@pytest.mark.parametrize(("width", "height"), [(120, 90), (90, 120), (201, 64), (77, 250), (50, 50)])
def test_the_view_is_that_of_the_preprocessing(mode, width, height):
    """Pixels coloured by their place tell where the network's view begins and ends."""
    preprocess = Preprocess(size=48, resize=57, mode=mode)
    places = np.zeros((height, width, 3), dtype=np.uint8)
    places[..., 0], places[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    seen = np.asarray(preprocess.view(Image.fromarray(places))).astype(float)[2:-2, 2:-2]
    left, top, right, bottom = view_box(preprocess, (width, height))
    centre = (np.arange(48) + 0.5)[2:-2] / 48
    np.testing.assert_allclose(seen[..., 0], np.tile(left + centre * (right - left) - 0.5, (44, 1)), atol=1.1)
    np.testing.assert_allclose(seen[..., 1].T, np.tile(top + centre * (bottom - top) - 0.5, (44, 1)), atol=1.1)
    plane = random_plane(height, width)
    mask = Image.fromarray((plane * 255).astype(np.uint8)).convert("RGB")
    drawn = np.asarray(preprocess.view(mask))[..., 0] / 255
    box = view_box(preprocess, (width, height))
    regions = region_coverage(plane, box, (3, 3))
    np.testing.assert_allclose(regions, drawn.reshape(3, 16, 3, 16).mean(axis=(1, 3)).flatten(), atol=0.04)
    assert (view_plane(plane, box, 48) != (drawn > 0.5)).mean() < 0.05


def test_an_upright_image_has_an_upright_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 20 x 10, upright 10 x 20
    images = one_image(tmp_path, name="a.jpg", exif=exif)
    upright = np.zeros((20, 10), dtype=np.uint8)
    upright[:5] = 7
    write_mask(tmp_path, upright)
    found = Foregrounds.from_masks(images, tmp_path / "masks").cover(Preprocess(size=8, mode="square"), (2, 1))
    np.testing.assert_allclose(found.values, [[0.5, 0]])
    write_mask(tmp_path, upright.T)
    with pytest.raises(ValueError, match=r"masks.one.a\.png.*images.one.a\.jpg, 10 x 20 pixels, got 20 x 10"):
        Foregrounds.from_masks(images, tmp_path / "masks").cover(Preprocess(), (2, 2))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("1", "png"), ("L", "png"), ("L", "bmp"), ("P", "png"), ("P", "gif"), ("I;16", "png"), ("F", "tiff")),
        *(("RGB", "png"), ("RGBA", "png"), ("LA", "png"), ("L", "jpg"), ("RGB", "webp")),
    ],
)
def test_masks_of_any_format(tmp_path, mode, suffix):
    images = one_image(tmp_path)
    inside = np.zeros((10, 20), dtype=bool)
    inside[2:6, 3:11] = True
    low = inside * (255 if suffix in ("jpg", "webp") else 1)
    if mode == "1":
        mask = Image.fromarray(inside)
    elif mode == "P":
        mask = Image.fromarray(low.astype(np.uint8), mode="L")
        mask = mask.convert("P") if suffix == "gif" else mask
        mask.putpalette([200, 200, 200, 0, 0, 0] + [9] * 762)  # colours say the opposite of the indices
    elif mode in ("I;16", "F"):
        mask = Image.fromarray((low * (300 if mode == "I;16" else 0.2)).astype("u2" if mode == "I;16" else "f4"))
    elif mode in ("RGBA", "LA"):  # nonzero everywhere, transparent outside
        mask = Image.new(mode, (20, 10), (40,) * len(mode))
        mask.putalpha(Image.fromarray((inside * 3).astype(np.uint8)))
    else:
        mask = Image.fromarray(low.astype(np.uint8)).convert(mode)
    write_mask(tmp_path, mask, f"a.{suffix}")
    plane = Foregrounds.from_masks(images, tmp_path / "masks").plane(0)
    wrong = (plane != inside).sum()
    assert wrong <= (4 if suffix in ("jpg", "webp") else 0)


def test_missing_and_unreadable_masks_are_named_and_left_out(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(one_image(tmp_path).paths[0].with_name(f"{number}.png"))
    folder = tmp_path / "images" / "one"
    images = ImageSet([folder / f"{number}.png" for number in range(3)], ["one"] * 3)
    write_mask(tmp_path, Image.new("L", (8, 8), 1), "1.png")
    (tmp_path / "masks" / "one" / "2.png").write_bytes(b"no image")
    found = Foregrounds.from_masks(images, tmp_path / "masks").cover(Preprocess(), (2, 2))
    assert found.kept.tolist() == [1]
    assert [Path(image.path).name for image in found.left_out] == ["0.png", "2.png"]
    assert "has no mask" in found.left_out[0].reason
    assert "one/2.png cannot be read" in found.left_out[1].reason
    np.testing.assert_array_equal(found.values, np.ones((1, 4)))
    (tmp_path / "masks" / "one" / "1.png").unlink()
    with pytest.raises(ValueError, match="none of the 3 images has one"):
        Foregrounds.from_masks(images, tmp_path / "masks").cover(Preprocess(), (2, 2))


def test_masks_that_are_doubled_or_the_images_or_nowhere(tmp_path):
    images = one_image(tmp_path)
    with pytest.raises(ValueError, match="need other files than the images"):
        Foregrounds.from_masks(images, tmp_path / "images").cover(Preprocess(), (2, 2))
    write_mask(tmp_path, Image.new("L", (20, 10)))
    empty = Foregrounds.from_masks(images, tmp_path / "masks").cover(Preprocess(), (2, 2))
    assert empty.empty == 1
    write_mask(tmp_path, Image.new("L", (20, 10)), "a.bmp")
    with pytest.raises(ValueError, match="need one file for each image"):
        Foregrounds.from_masks(images, tmp_path / "masks")
    with pytest.raises(FileNotFoundError, match="need a folder"):
        Foregrounds.from_masks(images, tmp_path / "nowhere")


def test_a_mask_folder_may_mirror_a_parent_of_the_images(tmp_path):
    images = one_image(tmp_path)
    mirrored = tmp_path / "other" / "images" / "one" / "a.png"
    mirrored.parent.mkdir(parents=True)
    Image.new("L", (20, 10), 1).save(mirrored)
    assert Foregrounds.from_masks(images, tmp_path / "other").plane(0).all()


def test_alpha_is_a_fraction(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    opaque = np.full((4, 4, 4), 255, dtype=np.uint8)
    opaque[:2, :, 3] = 0
    opaque[2, :, 3] = 51
    Image.fromarray(opaque).save(folder / "a.png")
    Image.new("RGB", (4, 4)).save(folder / "b.png")
    images = ImageSet([folder / "a.png", folder / "b.png"], ["x", "x"])
    found = Foregrounds.from_alpha(images).cover(Preprocess(size=8, mode="square"), (2, 1))
    np.testing.assert_allclose(found.values, [[0, 0.6]], atol=1e-6)
    assert found.left_out[0].reason == "has no alpha channel"


def test_boxes_of_cub(tmp_path):
    images = one_image(tmp_path)
    (tmp_path / "images.txt").write_text("1 two/b.jpg\n7 one/a.png\n")
    file = tmp_path / "bounding_boxes.txt"
    file.write_text("1 0.0 0.0 3.0 3.0\n7 2.5 5.0 10.0 5.0\n")
    for given in (file, tmp_path):
        foregrounds = Foregrounds.from_boxes(images, given)
        assert foregrounds.plane(0).sum() == 50
        found = foregrounds.cover(Preprocess(size=8, mode="square"), (2, 4))
        np.testing.assert_allclose(found.values, [[0, 0, 0, 0, 0.5, 1, 0.5, 0]], atol=1e-6)
        assert found.clipped == 0
    file.write_text("7 2.5 5.0 10.0\n")
    with pytest.raises(ValueError, match="line 1: need 5 words"):
        Foregrounds.from_boxes(images, file)
    file.write_text("9 2.5 5.0 10.0 5.0\n")
    with pytest.raises(ValueError, match="image 9 is not in"):
        Foregrounds.from_boxes(images, file)


def test_boxes_of_csv_are_united_and_clipped_with_a_count(tmp_path):
    images = one_image(tmp_path)
    file = tmp_path / "boxes.csv"
    head = "path,label,x0,y0,x1,y1\n"
    file.write_text(head + "images/one/a.png,one,-5,0,10,5\nimages/one/a.png,one,5,0,10,10\nimages/one/b.png,,,,,\n")
    foregrounds = Foregrounds.from_boxes(images, file)
    assert foregrounds.plane(0).sum() == 75
    assert foregrounds.cover(Preprocess(size=8, mode="square"), (2, 2)).clipped == 1
    file.write_text(head + "images/one/a.png,one,30,0,40,5\n")
    with pytest.raises(ValueError, match="outside of the image"):
        Foregrounds.from_boxes(images, file).cover(Preprocess(), (2, 2))
    for bad, message in (("5,0,5,5", "need x0 < x1"), ("a,0,5,5", "need four numbers"), ("0,0,nan,5", "need x0 < x1")):
        file.write_text(head + f"images/one/a.png,one,{bad}\n")
        with pytest.raises(ValueError, match=f"line 2: {message}"):
            Foregrounds.from_boxes(images, file)
    file.write_text("path,x0\n")
    with pytest.raises(ValueError, match="needs the columns path,x0,y0,x1,y1"):
        Foregrounds.from_boxes(images, file)
