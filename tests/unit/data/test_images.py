"""Images of every kind are read as upright RGB, or reported with the reason."""

import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diml.data import BadImageError, load_image

GRADIENT = np.arange(12 * 8 * 3, dtype=np.uint8).reshape(12, 8, 3)  # H 12, W 8


def as_bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(image) -> np.ndarray:
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


def test_the_same_image_by_every_way_in(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.fromarray(GRADIENT)
    image.save(path)
    tensor = torch.from_numpy(GRADIENT).permute(2, 0, 1)
    ways = [path, str(path), path.read_bytes(), image, GRADIENT, tensor, tensor.float() / 255, GRADIENT / 255.0]
    for way in ways:
        assert np.array_equal(pixels(way), GRADIENT)


def test_an_image_passed_in_is_never_the_one_that_comes_out() -> None:
    image = Image.fromarray(GRADIENT)
    load_image(image).putpixel((0, 0), (9, 9, 9))
    assert image.getpixel((0, 0)) == (0, 1, 2)


def test_grey_tensors_and_arrays() -> None:
    grey = GRADIENT[:, :, 0]
    wanted = np.repeat(grey[:, :, None], 3, axis=2)
    for way in (grey, grey[:, :, None], torch.from_numpy(grey)[None], torch.from_numpy(grey)[None].bfloat16() / 256):
        tolerance = 2 if isinstance(way, torch.Tensor) and way.is_floating_point() else 0
        assert np.abs(pixels(way).astype(int) - wanted).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    wide = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert pixels(as_bytes(Image.fromarray(wide), kind))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.filterwarnings("ignore::diml.data.pixel_depth.PixelDepthWarning")
@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 100, 200]], dtype=np.float32), [0, 100, 200]),
        (np.array([[-1000, 0, 1000]], dtype=np.float32), [0, 128, 255]),
        (np.array([[5000, 5000, 5000]], dtype=np.float32), [0, 0, 0]),
        (np.array([[0, 65535 * 2, 65535 * 4]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 32896, 65535]], dtype=np.int32), [0, 128, 255]),
    ],
)
def test_float_and_32_bit_grey_by_its_range(values: np.ndarray, wanted: list[int]) -> None:
    assert pixels(as_bytes(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == wanted


def test_float_grey_that_is_not_finite_is_rejected() -> None:
    values = np.array([[0, np.nan]], dtype=np.float32)
    with pytest.raises(BadImageError, match="not finite"):
        load_image(as_bytes(Image.fromarray(values), "TIFF"))


def test_transparency_lies_on_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    rgba.putpixel((1, 0), (0, 0, 0, 128))
    assert pixels(as_bytes(rgba))[0].tolist() == [[255, 255, 255], [127, 127, 127]]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert pixels(as_bytes(grey))[0, 0].tolist() == [255, 255, 255]
    assert pixels(np.zeros((1, 1, 4), dtype=np.uint8))[0, 0].tolist() == [255, 255, 255]
    assert pixels(Image.new("RGBa", (1, 1), (0, 0, 0, 0)))[0, 0].tolist() == [255, 255, 255]
    assert pixels(Image.new("La", (1, 1), (0, 0)))[0, 0].tolist() == [255, 255, 255]


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(as_bytes(image))[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    for transparency in (0, b"\x00\xff"):
        data = as_bytes(image, transparency=transparency)
        assert pixels(data)[0].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_a_grey_image_with_a_transparent_value() -> None:
    image = Image.fromarray(np.array([[0, 7]], dtype=np.uint8))
    assert pixels(as_bytes(image, transparency=7))[0, :, 0].tolist() == [0, 255]


def test_cmyk_and_other_modes() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(as_bytes(cmyk, "JPEG", quality=100))[4, 4].astype(int) - [255, 0, 0]).max() <= 3
    for mode, value, wanted in [("1", 1, 255), ("L", 77, 77)]:
        assert pixels(Image.new(mode, (1, 1), value))[0, 0].tolist() == [wanted] * 3
    for mode in ("YCbCr", "HSV", "LAB", "RGBX", "PA", "I;16B"):
        assert pixels(Image.new(mode, (3, 2))).shape == (2, 3, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = Image.fromarray(GRADIENT)
    turns = Image.Transpose
    # What a camera stores, by the meaning of each value in the EXIF standard.
    stored = {
        1: None,
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }[orientation]
    image = upright if stored is None else upright.transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(as_bytes(image, kind, exif=exif.tobytes())), GRADIENT)


def test_damaged_exif_spoils_nothing() -> None:
    data = as_bytes(Image.fromarray(GRADIENT), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f", quality=100)
    assert pixels(data).shape == GRADIENT.shape


def test_of_an_animation_the_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = as_bytes(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
        assert pixels(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM", "BMP"])
def test_truncated_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"half.{kind.lower()}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path.write_bytes(as_bytes(Image.fromarray(noise), kind)[:2000])
    with pytest.raises(BadImageError, match="cannot be decoded") as caught:
        load_image(path)
    assert caught.value.path == str(path)


def png_of_size(width: int, height: int) -> bytes:
    """A file of a few dozen bytes that claims to be an image of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_rejected_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    for side in (12_000, 60_000):  # Pillow warns of the first and raises for the second
        path.write_bytes(png_of_size(side, side))
        with pytest.raises(BadImageError, match=r"bomb\.png: .*(pixels|too large)"):
            load_image(path, max_pixels=100_000_000)
    # Under the limit it is decoded, without a warning, and found to have no data.
    path.write_bytes(png_of_size(10_000, 10_000))
    with pytest.raises(BadImageError, match="cannot be decoded"):
        load_image(path)


def test_max_pixels_holds_for_images_in_memory_and_at_the_border() -> None:
    assert load_image(GRADIENT, max_pixels=96).size == (8, 12)
    with pytest.raises(BadImageError, match="8 x 12 pixels, more than the 95 allowed"):
        load_image(GRADIENT, max_pixels=95)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.touch()
    text.write_text("no image")
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    for path, reason in [
        (empty, "is empty"),
        (text, "not an image of a known format"),
        (tmp_path, "is a folder"),
        (fifo, "not a regular file"),
        ("with\0zero.jpg", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
    ]:
        with pytest.raises(BadImageError, match=reason) as caught:
            load_image(path)
        assert caught.value.path == str(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        load_image(tmp_path / "nowhere.jpg")
    with pytest.raises(BadImageError, match="<image 3>: is empty"):
        load_image(b"", name="<image 3>")
    with pytest.raises(TypeError, match="got int"):
        load_image(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (torch.zeros(2, 4, 4), "expected"),
        (torch.zeros(4, 4), "expected"),
        (torch.zeros(3, 0, 4), "no pixels"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "expected uint8"),
        (torch.full((3, 4, 4), 1.5), r"outside \[0, 1\]"),
        (torch.full((3, 4, 4), float("nan")), r"outside \[0, 1\]"),
        (np.zeros((3, 4, 5)), "expected"),
        (Image.new("RGB", (0, 4)), "no pixels"),
    ],
)
def test_tensors_and_arrays_out_of_shape_or_range(values, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        load_image(values)


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(BadImageError("a.jpg", "is empty")))
    assert (type(error), error.path, error.reason, str(error)) == (
        BadImageError,
        "a.jpg",
        "is empty",
        "a.jpg: is empty",
    )
