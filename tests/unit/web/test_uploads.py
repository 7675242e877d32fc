"""Images from strangers: what is taken, what is refused, and that nothing is written down unasked."""

from __future__ import annotations

import asyncio
import io
import struct
import tempfile
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from starlette.requests import Request

from diml.web.errors import ApiError
from diml.web.limits import Limits
from diml.web.uploads import Upload, UploadedFile, clean_name, open_upload, read_files
from served import content_of, drawn

LIMITS = Limits(pixels=100_000)


def opened_upload(file: UploadedFile, keep: Path | None = None) -> Upload:
    """As the server opens one, with the whole image as what is shown of it."""
    return open_upload(file, LIMITS, lambda image: (torch.zeros(3, 1, 1), image), decoding=nullcontext, keep=keep)


def sent(content: bytes, name: str = "a.png") -> UploadedFile:
    return UploadedFile("query", name, content)


def bomb(side: int) -> bytes:
    """A PNG of some hundred bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    lines = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_images_of_common_formats_are_taken(kind: str) -> None:
    opened = opened_upload(sent(content_of(drawn(1), kind)))
    assert opened.view.mode == "RGB"
    assert opened.view.size == (96, 96)
    if kind == "PNG":
        assert np.array_equal(np.asarray(opened.view), np.asarray(drawn(1).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_cameras_is_honoured(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = drawn(1).crop((0, 0, 96, 60))
    opened = opened_upload(sent(content_of(image, "PNG", exif=exif))).view
    told = Image.open(io.BytesIO(content_of(image, "PNG", exif=exif)))
    assert np.array_equal(np.asarray(opened), np.asarray(ImageOps.exif_transpose(told).convert("RGB")))
    assert opened.size == ((96, 60) if orientation < 5 else (60, 96))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"some words in a file", "is not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not an image of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image of a known format"),
        (content_of(drawn(1))[:900], "cannot be decoded"),
        (content_of(drawn(1))[:30], "is not an image"),
        (bomb(400), "400 x 400 pixels, more than the 100,000 allowed"),
        (bomb(30_000), "too large to be decoded safely"),
        (bomb(2_000_000), "a.png"),
    ],
    ids=["empty", "words", "eps", "svg", "torn", "header only", "400 pixels", "30000 pixels", "2000000 pixels"],
)
def test_what_is_no_good_image_is_refused_by_name(content: bytes, told: str) -> None:
    with pytest.raises(ApiError) as refused:
        opened_upload(sent(content))
    assert refused.value.status == 422
    assert refused.value.code == "bad_image"
    assert told in refused.value.message
    assert "a.png" in refused.value.message
    assert "100,000 pixels" in refused.value.remedy


def test_images_are_kept_only_where_that_was_asked_for(tmp_path: Path) -> None:
    content = content_of(drawn(1), "JPEG")
    for _ in range(2):
        opened_upload(sent(content, "../../evil.sh"), tmp_path / "kept")
    with pytest.raises(ApiError):
        opened_upload(sent(b"words", "words.txt"), tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.suffix == ".jpg"
    assert kept.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("a.png", "a.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\ä b.jpg", "ä b.jpg"),
        ("a\x00\n\u202eb.png", "ab.png"),
        ("", "image"),
        ("..", ".."),
        ("x" * 500 + ".png", "…" + "x" * 115 + ".png"),
        ("\ud800.png", ".png"),
    ],
)
def test_names_are_cleaned(name: str, clean: str) -> None:
    assert clean_name(name) == clean


@given(st.text())
def test_a_clean_name_is_short_visible_and_stays_itself(name: str) -> None:
    clean = clean_name(name)
    assert 0 < len(clean) <= 120
    assert "/" not in clean
    assert "\\" not in clean
    assert clean.encode()
    assert clean_name(clean) == clean


def form(parts: list[tuple[str, str | None, bytes]], kind: str = "multipart/form-data; boundary=xx") -> Request:
    body = b""
    for field, name, content in parts:
        told = f'form-data; name="{field}"' + (f'; filename="{name}"' if name is not None else "")
        body += f"--xx\r\nContent-Disposition: {told}\r\n\r\n".encode() + content + b"\r\n"
    body += b"--xx--\r\n"
    pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)]

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    headers = [(b"content-type", kind.encode())] if kind else []
    return Request({"type": "http", "method": "POST", "headers": headers, "query_string": b""}, receive)


def test_a_large_file_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was opened")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    content = np.random.default_rng(0).bytes(5_000_000)
    found = asyncio.run(read_files(form([("query", "a.png", content)]), ("query", "gallery")))
    assert found == {"query": UploadedFile("query", "a.png", content)}


@pytest.mark.parametrize(
    ("request_", "status", "told"),
    [
        (form([], "application/json"), 415, "got 'application/json'"),
        (form([], "multipart/form-data"), 400, "boundary"),
        (form([("other", "a.png", b"1")]), 422, "Unknown field 'other': Known: query, gallery"),
        (form([("qeury", "a.png", b"1")]), 422, "did you mean 'query'"),
        (form([("query", "a.png", b"1"), ("query", "b.png", b"2")]), 422, "field query twice"),
        (form([("query", None, b"1")]), 422, "field query without a file"),
        (form([(f"f{n}", None, b"1") for n in range(9)]), 400, "Too many fields"),
        (form([(f"f{n}", "a", b"1") for n in range(9)]), 400, "Too many files"),
    ],
)
def test_forms_that_are_none_of_ours_are_refused(request_: Request, status: int, told: str) -> None:
    with pytest.raises(ApiError) as refused:
        asyncio.run(read_files(request_, ("query", "gallery")))
    assert refused.value.status == status
    assert told in refused.value.message
    assert "curl -F query=@image.jpg" in refused.value.remedy


def test_no_body_is_no_file() -> None:
    assert asyncio.run(read_files(form([], ""), ("query",))) == {}
