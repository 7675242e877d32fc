"""Which files are opened, as which formats, and what that needs at most."""

from __future__ import annotations

import ast
import io
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diml.data import BadImageError, image_files, load_image
from diml.data.image_files import (
    IMAGE_ENDINGS,
    IMAGE_FORMATS,
    opened_file,
    printable,
    read_file,
)

SOURCES = Path(image_files.__file__).parents[1]
#: Formats that Pillow can read and that are not allowed: they run programs, open what they contain as any format, or
#: decode before their size can be checked, or in Python.
REFUSED = (
    "EPS",
    "WMF",
    "IPTC",
    "BUFR",
    "GRIB",
    "HDF5",
    "ICO",
    "ICNS",
    "CUR",
    "FITS",
    "BLP",
    "DDS",
    "FTEX",
    "QOI",
    "XPM",
)


def saved(kind: str, size: tuple[int, int] = (9, 7), mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", [kind for kind in IMAGE_FORMATS if kind not in ("SUN", "PSD", "HEIF")])
def test_every_allowed_format_is_read_from_files_of_all_its_endings(kind: str, tmp_path: Path) -> None:
    if kind not in Image.SAVE and kind == "AVIF":
        pytest.skip("this Pillow has no AVIF")
    content = saved(kind)
    assert load_image(content).size == (9, 7)
    for ending in IMAGE_FORMATS[kind]:
        path = tmp_path / f"image{ending}"
        path.write_bytes(content)
        assert load_image(path).size == (9, 7)


def test_heif_is_read_with_its_extra_upright_and_refused_with_the_remedy_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed; it is in the extra `heif`")
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(stream, exif=exif.tobytes())
    content = stream.getvalue()
    loaded = load_image(content)
    assert loaded.size == (48, 64)
    assert np.abs(np.asarray(loaded)[0, 0].astype(int) - [255, 0, 0]).max() < 9
    monkeypatch.setattr(image_files, "_heif_is_installed", lambda: False)
    with pytest.raises(BadImageError, match=r"is HEIF; to read it, pip install 'diml\[heif\]'"):
        load_image(content)


def test_a_sun_raster_and_a_photoshop_file_are_read() -> None:
    sun = struct.pack(">8L", 0x59A66A95, 2, 1, 24, 6, 1, 0, 0) + bytes([1, 2, 3, 4, 5, 6])
    assert load_image(sun).size == (2, 1)
    photoshop = b"8BPS" + struct.pack(">H6xHLLHH", 1, 3, 1, 2, 8, 3) + bytes(12) + struct.pack(">H", 0) + bytes(6)
    assert load_image(photoshop).size == (2, 1)


@pytest.mark.parametrize("kind", REFUSED)
def test_no_format_that_is_refused_is_tried(kind: str) -> None:
    assert kind not in IMAGE_FORMATS
    assert kind not in image_files._pillow_formats()


@pytest.mark.parametrize("ending", [".png", ".jpg", ".eps"])
def test_postscript_runs_nothing_under_any_name(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    for image in (path, path.read_bytes()):
        with pytest.raises(BadImageError, match="not an image of a known format"):
            load_image(image)


@pytest.mark.parametrize("kind", ["ICO", "ICNS", "DDS"])
def test_other_formats_of_pillow_are_no_images(kind: str) -> None:
    with pytest.raises(BadImageError, match="not an image of a known format"):
        load_image(saved(kind, size=(16, 16), mode="RGBA"))


def test_only_one_place_opens_images() -> None:
    """`Image.open` tries every format, unless it is told which."""
    texts = {path: path.read_text() for path in SOURCES.rglob("*.py")}
    nodes = ((path, node) for path, text in texts.items() if "Image.open" in text for node in ast.walk(ast.parse(text)))
    found = [
        path for path, node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open")
    ]
    assert found == [SOURCES / "data" / "image_files.py"]


def test_endings_are_lower_case_and_belong_to_one_format() -> None:
    every = [ending for endings in IMAGE_FORMATS.values() for ending in endings]
    assert all(ending.startswith(".") and ending == ending.lower() for ending in every)
    assert len(every) == len(set(every)) == len(IMAGE_ENDINGS)


@pytest.fixture
def special(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Files that are no regular ones, one of each kind, also behind links."""
    paths = {name: tmp_path / f"{name}.png" for name in ("pipe", "socket", "folder")}
    os.mkfifo(paths["pipe"])
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(paths["socket"]))
        paths["folder"].mkdir()
        paths["terminal"], paths["null"] = Path("/dev/tty"), Path("/dev/null")
        for name in ("pipe", "null"):
            paths[f"link to {name}"] = tmp_path / f"link to {name}.png"
            paths[f"link to {name}"].symlink_to(paths[name])
        yield paths


def test_special_files_are_refused_at_once(special: dict[str, Path]) -> None:
    for path in special.values():
        for read in (load_image, opened_file, read_file):
            with pytest.raises(BadImageError, match=r"is not a regular file|is a folder") as refused:
                read(path)
            assert refused.value.path == str(path)


def test_a_file_that_becomes_a_pipe_before_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    os.mkfifo(path)
    regular = os.stat(__file__)  # noqa: PTH116
    assert stat.S_ISREG(regular.st_mode)
    monkeypatch.setattr(image_files.os, "stat", lambda *_: regular)  # what it was when it was checked
    finished = threading.Event()

    def read() -> None:
        with pytest.raises(BadImageError, match="is not a regular file"):
            opened_file(path)
        finished.set()

    threading.Thread(target=read, daemon=True).start()
    assert finished.wait(10)


def test_no_descriptor_is_left_open(special: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(saved("PNG")[:40])
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    for path in [*special.values(), tmp_path / "torn.png"] * 5:
        with pytest.raises(BadImageError):
            load_image(path)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_files_of_too_many_bytes_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(saved("PNG"))
    os.truncate(path, 3 * 2**30)  # a file with a hole
    with pytest.raises(BadImageError, match=r"has 3,221,225,472 bytes, more than the 2,147,483,648 allowed"):
        load_image(path)
    for image in (saved("PNG"), tmp_path / "small.png"):
        if isinstance(image, Path):
            image.write_bytes(saved("PNG"))
        with pytest.raises(BadImageError, match=r"bytes, more than the 20 allowed"):
            load_image(image, max_bytes=20)
    with pytest.raises(BadImageError, match="more than the 20 allowed"):
        read_file(tmp_path / "small.png", max_bytes=20)


def test_a_small_tiff_in_huge_tiles_is_refused() -> None:
    tags = [
        (256, 4, 64),
        (257, 4, 64),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (277, 3, 1),
        (322, 4, 60_000),
        (323, 4, 60_000),
    ]
    tags += [(324, 4, 8), (325, 4, 8)]
    entries = b"".join(struct.pack("<HHLL", number, kind, 1, value) for number, kind, value in tags)
    content = b"II*\0" + struct.pack("<L", 16) + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    with pytest.raises(BadImageError, match="is stored in tiles of 60000 x 60000 pixels"):
        load_image(content)


def test_a_draft_has_at_least_the_wanted_sides_and_only_jpeg_has_one() -> None:
    jpeg = saved("JPEG", size=(800, 400))
    assert load_image(jpeg, at_least=100).size == (200, 100)
    assert load_image(jpeg, at_least=101).size == (400, 200)
    assert load_image(jpeg, at_least=5000).size == (800, 400)
    assert load_image(saved("JPEG", size=(800, 400), mode="CMYK"), at_least=100).mode == "RGB"
    assert load_image(saved("PNG", size=(800, 400)), at_least=100).size == (800, 400)


def test_the_result_has_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    loaded = load_image(saved("JPEG", exif=exif.tobytes(), dpi=(300, 300)))
    assert loaded.info == {}
    assert not loaded.getexif()


def test_threads_that_decode_together_leave_the_filters_of_warnings_as_they_were() -> None:
    before, content = warnings.filters[:], saved("PNG", size=(200, 200))

    def read() -> None:
        for _ in range(50):
            load_image(content)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


@pytest.mark.parametrize("name", ["plain.png", "ü.png", "日本.png"])
def test_text_is_printable_as_it_is(name: str) -> None:
    assert printable(name) == name


def test_bytes_that_are_no_text_are_printed_by_their_numbers(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert printable(name) == printable(Path(name)) == "caf\\xe9.png"
    path = tmp_path / name
    try:
        path.write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(BadImageError) as refused:
        load_image(path)
    assert str(refused.value).encode() == f"{tmp_path}/caf\\xe9.png: is not an image of a known format".encode()
    path.write_bytes(saved("PNG"))
    assert load_image(path).size == (9, 7)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_an_image_of_16_bits_needs_no_more_memory_than_stated() -> None:
    """A 16-bit image of 3,000 x 3,000 pixels: 2 bytes a pixel decoded, 4 as the result, and tiles."""
    code = """
import io, re, warnings, zlib
import numpy as np
from pathlib import Path
from PIL import Image
from diml.data.images import load_image
warnings.simplefilter("ignore")
now = lambda which: int(re.search(which + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
def png(side):
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side), 4095, dtype=np.uint16)).save(stream, "PNG")
    return stream.getvalue()
small, content = png(64), png(3000)
load_image(small)
before = now("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
load_image(content)
print((now("VmHWM") - before) / 3000**2)
"""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the peak cannot be reset here ({error.stderr[-200:]})")
    assert float(done.stdout) < 9.0
