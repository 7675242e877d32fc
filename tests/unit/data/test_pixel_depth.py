"""Pixels of more than 8 bits: every kind that Pillow can read, by the rules of docs/images.md."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diml.data import BadImageError, Preprocess, load_image, pixel_depth
from diml.data.loading import iterate_batches
from diml.data.pixel_depth import BITS, OVERSHOOT, PixelDepthWarning, scale_of_floats, scale_of_integers

ROOT = Path(__file__).parents[3]
TIFF_TYPES = {"H": 3, "L": 4}


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The rules that were said, none at the start of a test."""
    fresh: set[str] = set()
    monkeypatch.setattr(pixel_depth, "_said", fresh)
    return fresh


def png(values: np.ndarray, colour: int, *, transparent: tuple[int, ...] = (), interlaced: bool = False) -> bytes:
    """A 16-bit PNG of a colour type: 0 grey, 2 colour, 4 grey with opacity, 6 colour with opacity."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    key = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def tiff(values: np.ndarray, *, order: str = "<", photometric: int | None = None, extra: int | None = None) -> bytes:
    """An uncompressed TIFF of any type of values (H, W) or (H, W, C), written by hand."""
    height, width = values.shape[:2]
    bands = 1 if values.ndim == 2 else values.shape[2]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits, sample = values.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    shown = (1 if bands < 3 else 2) if photometric is None else photometric
    tags = [
        (256, [width]), (257, [height]), (258, [bits] * bands), (259, [1]), (262, [shown]), (273, [8]),
        (277, [bands]), (278, [height]), (279, [len(data)]), (339, [sample] * bands),
    ]  # fmt: skip
    if extra is not None:
        tags.append((338, [extra]))
    tags.sort()
    entries, tail, after = b"", b"", 8 + len(data) + 2 + 12 * len(tags) + 4
    for number, numbers in tags:
        kind = "L" if number in (273, 279) else "H"
        packed = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            where, tail = struct.pack(f"{order}L", after + len(tail)), tail + packed
        else:
            where = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHL", number, TIFF_TYPES[kind], len(numbers)) + where
    start = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}L", 0)
    return start + struct.pack(f"{order}L", 8 + len(data)) + data + directory + tail


def pillow(values: np.ndarray, kind: str = "TIFF", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind, **options)
    return stream.getvalue()


def grey(image: Any) -> list[int]:
    loaded = np.asarray(load_image(image))
    assert (loaded == loaded[..., :1]).all()
    return loaded[0, :, 0].tolist()


def quietly(image: Any) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PixelDepthWarning)
        return grey(image)


def row(*values: float, dtype: str = "u2") -> np.ndarray:
    return np.array([values], dtype=dtype)


def colours(*values: int) -> np.ndarray:
    return np.repeat(row(*values)[:, :, None], 3, axis=2)


# What fills 16 bits needs no assumption.
FULL = {
    "PNG, grey": png(row(0, 257, 32896, 65535), 0),
    "PNG, grey with opacity": png(np.stack([row(0, 257, 32896, 65535), row(*[65535] * 4)], axis=2), 4),
    "PNG, colour": png(colours(0, 257, 32896, 65535), 2),
    "PNG, colour with opacity": png(np.dstack([colours(0, 257, 32896, 65535), row(*[65535] * 4)]), 6),
    "TIFF, grey": tiff(row(0, 257, 32896, 65535)),
    "TIFF, grey, big-endian": tiff(row(0, 257, 32896, 65535), order=">"),
    "TIFF, grey, LZW": pillow(row(0, 257, 32896, 65535), compression="tiff_lzw"),
    "TIFF, colour": tiff(colours(0, 257, 32896, 65535)),
    "TIFF, colour, big-endian": tiff(colours(0, 257, 32896, 65535), order=">"),
    "TIFF, 32-bit grey": tiff(row(0, 257, 32896, 65535, dtype="i4")),
    "TIFF, 32-bit unsigned grey": tiff(row(0, 257, 32896, 65535, dtype="u4")),
    "PGM": b"P5 4 1 65535\n" + row(0, 257, 32896, 65535).astype(">u2").tobytes(),
    "JPEG 2000": pillow(row(0, 257, 32896, 65535), "JPEG2000", irreversible=False),
}


@pytest.mark.parametrize("image", FULL.values(), ids=FULL)
def test_values_that_fill_their_bits(image: bytes) -> None:
    assert grey(image) == [0, 1, 128, 255]


@pytest.mark.parametrize("most", [1, 255, 1023, 4095, 16383])
@pytest.mark.parametrize(
    "kind", ["png 0", "png 2", "png 4", "png 6", "tiff", "tiff >", "tiff 3", "tiff 3 >", "tiff 4", "i4", "lzw"]
)
def test_fewer_bits_in_a_container_of_16(kind: str, most: int) -> None:
    bits = max(most, 255)
    values = [0, most // 3, most]
    full = row(65535, 65535, 65535)
    images = {
        "png 0": lambda: png(row(*values), 0),
        "png 2": lambda: png(colours(*values), 2),
        "png 4": lambda: png(np.dstack([row(*values), full]), 4),
        "png 6": lambda: png(np.dstack([colours(*values), full]), 6),
        "tiff": lambda: tiff(row(*values)),
        "tiff >": lambda: tiff(row(*values), order=">"),
        "tiff 3": lambda: tiff(colours(*values)),
        "tiff 3 >": lambda: tiff(colours(*values), order=">"),
        "tiff 4": lambda: tiff(np.dstack([colours(*values), full]), extra=2),
        "i4": lambda: tiff(row(*values, dtype="i4")),
        "lzw": lambda: pillow(row(*values), compression="tiff_lzw"),
    }
    with pytest.warns(PixelDepthWarning, match=rf"no 16-bit value above {bits}: .* {bits} to be white"):
        found = grey(images[kind]())
    assert found == np.rint(np.array(values) * 255 / bits).astype(int).tolist()


def test_black_is_black_and_nothing_is_said() -> None:
    for image in (png(row(0, 0), 0), png(colours(0, 0), 2), tiff(row(0, 0)), tiff(row(0, 0, dtype="f4"))):
        assert grey(image) == [0, 0]


def test_opacity_has_bits_of_its_own() -> None:
    values = np.dstack([colours(0, 4095, 0), row(4095, 4095, 0)])
    assert quietly(png(values, 6)) == [0, 255, 255]
    assert quietly(png(np.dstack([colours(0, 255, 0), row(255, 255, 0)]), 6)) == [0, 255, 255]
    assert quietly(png(np.dstack([row(0, 255, 0), row(255, 255, 0)]), 4)) == [0, 255, 255]
    assert grey(png(np.dstack([colours(0, 65535, 0), row(65535, 65535, 0)]), 6)) == [0, 255, 255]
    assert grey(png(np.dstack([colours(0, 0, 0), row(0, 0, 0)]), 6)) == [255, 255, 255]


def test_a_transparent_value_of_16_bits_is_white_and_its_neighbours_are_not() -> None:
    assert grey(png(row(40000, 40001, 65535), 0, transparent=(40000,))) == [255, 156, 255]
    assert grey(png(colours(40000, 40001, 65535), 2, transparent=(40000,) * 3)) == [255, 156, 255]
    assert quietly(png(colours(300, 301, 1023), 2, transparent=(300,) * 3)) == [255, 75, 255]


def test_white_is_zero() -> None:
    assert grey(tiff(row(0, 32896, 65535), photometric=0)) == [255, 127, 0]
    assert grey(tiff(row(0, 0.5, 1, dtype="f4"), photometric=0)) == [255, 127, 0]


def test_twelve_bits_that_the_file_declares_need_no_assumption() -> None:
    packed = bytes([0x00, 0x08, 0x00, 0x7F, 0xF0, 0x00])  # 0, 0x800, 0x7ff, 0 in 12 bits each
    content = bytearray(tiff(np.zeros((1, 3), dtype="u2")))
    content[8:14] = packed
    at = content.index(struct.pack("<HHL", 258, 3, 1)) + 8
    content[at : at + 2] = struct.pack("<H", 12)
    at = content.index(struct.pack("<HHL", 256, 3, 1)) + 8
    content[at : at + 2] = struct.pack("<H", 4)
    assert grey(bytes(content)) == [0, 128, 127, 0]


FLOATS = {
    "0 to 1": ([0, 0.5, 1], [0, 128, 255], False),
    "overshoot": ([-0.003, 0.5, 1.003], [0, 128, 255], False),
    "whole numbers to 255": ([0, 100, 255], [0, 100, 255], False),
    "beyond": ([0, 1, 2], [0, 1, 2], False),  # whole numbers
    "a range": ([0, 0.75, 1.5], [0, 128, 255], True),
    "negative": ([-1000, 0, 1000], [0, 128, 255], True),
    "even": ([7.5, 7.5, 7.5], [0, 0, 0], True),
}


@pytest.mark.parametrize(("values", "wanted", "warned"), FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("order", "<>")
def test_floating_point(values: list[float], wanted: list[int], warned: bool, order: str) -> None:
    image = tiff(row(*values, dtype="f4"), order=order)
    if warned:
        with pytest.warns(PixelDepthWarning, match="become black and white"):
            assert grey(image) == wanted
    else:
        assert grey(image) == wanted


def test_what_resizing_overshoots_is_within_the_tolerance() -> None:
    corner = np.zeros((64, 64), dtype=np.float32)
    corner[:32, :32] = 1
    for resample in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
        for side in (40, 100, 200):
            resized = np.asarray(Image.fromarray(corner).resize((side, side), resample))
            assert resized.max() > 1
            assert resized.max() < 1 + OVERSHOOT
            assert resized.min() > -OVERSHOOT


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(BadImageError, match="not finite"):
        load_image(tiff(row(0, value, dtype="f4")))


def test_integers_beyond_16_bits_by_their_range() -> None:
    with pytest.warns(PixelDepthWarning, match="from 0 to 4294967295"):
        assert grey(tiff(row(0, 2**31, 2**32 - 1, dtype="u4"))) == [0, 128, 255]  # beyond 2^31 is not negative
    assert quietly(tiff(row(-(2**31), 0, 2**31 - 1, dtype="i4"))) == [0, 128, 255]
    assert quietly(tiff(row(-1000, 0, 1000, dtype="i2"))) == [0, 128, 255]


def test_each_rule_is_said_once_with_the_first_image(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(row(0, 4095), 0))
        load_image(tmp_path / f"{number}.png")
    load_image(tiff(row(-5, 9, dtype="i4")))
    told = [str(one.message) for one in recwarn if issubclass(one.category, PixelDepthWarning)]
    assert len(told) == 2
    assert "0.png has no 16-bit value above 4095: 12 bits are taken to be used" in told[0]
    assert "docs/images.md" in told[0]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loader_says_it_once_whatever_its_workers(
    tmp_path: Path, workers: int, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    warnings.simplefilter("always")
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        path.write_bytes(png(np.full((9, 9), 4095), 0))
    batches = list(iterate_batches(paths, Preprocess(size=8, resize=8), batch_size=2, workers=workers))
    assert sum(len(batch.images) for batch in batches) == 6
    told = [str(one.message) for one in recwarn if issubclass(one.category, PixelDepthWarning)]
    assert len(told) == 1
    assert "0.png has no 16-bit value above" in told[0]
    assert "16-bit" not in capfd.readouterr().err  # the workers say nothing


def test_under_warnings_as_errors_the_warning_is_not_taken_for_a_damaged_file() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PixelDepthWarning):
            load_image(png(row(0, 4095), 0))
    assert grey(png(row(0, 4095), 0)) == [0, 255]


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_integers_keep_their_order_and_the_largest_is_bright(low: int, high: int) -> None:
    low, high = sorted((low, high))
    scale = scale_of_integers(low, high)
    black, white = scale(np.array([low, high], dtype=np.uint16)).tolist()
    assert black <= white
    assert scale.white in [2**bits - 1 for bits in BITS]
    assert white >= 63 or high <= 63  # at most two bits are unused, but for images of 8 bits
    assert np.array_equal(scale(np.array([low, high], dtype=np.int64)), [black, white])


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30))
def test_floats_stay_in_range_and_order(first: float, second: float) -> None:
    low, high = sorted((first, second))
    values = scale_of_floats(low, high, whole=False)(np.array([low, high]))
    assert values[0] <= values[1]


@given(st.integers(1, 2100), st.integers(1, 40), st.sampled_from([1023, 65535]))
def test_tiles_are_seamless(width: int, height: int, most: int) -> None:
    generator = np.random.default_rng(width * 41 + height)
    values = generator.integers(0, most + 1, (height, width), dtype=np.uint16)
    values[0, 0] = most
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PixelDepthWarning)
        found = np.asarray(load_image(Image.fromarray(values)))
    assert np.array_equal(found[..., 0], np.rint(values * (255 / most)).astype(np.uint8))


def test_the_document_lists_every_mode() -> None:
    text = (ROOT / "docs/images.md").read_text()
    listed = set(re.findall(r"`([A-Za-z0-9;]+)`", text))
    assert {
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "F",
    } <= listed
    assert {"I;16", "I;16B"} <= listed
