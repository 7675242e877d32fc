"""Images and files that people really have in their folders: damaged, disguised, unusual, or no files at all."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

#: Writers by name, with what has to become of the file: it is "read", "named" as unreadable, or "left out" in silence
#: or with a count, as it is no image file.
Writer = Callable[[Path], None]


def pixels(number: int, side: int = 40) -> np.ndarray:
    random = np.random.default_rng(number)
    stripes = (np.arange(side)[:, None] // (2 + number % 5)) % 2
    return (
        (stripes[..., None] * random.integers(40, 255, 3) + random.normal(0, 8, (side, side, 3)))
        .clip(0, 255)
        .astype("u1")
    )


def _image(number: int = 0) -> Image.Image:
    return Image.fromarray(pixels(number))


def _truncated(path: Path) -> None:
    Image.fromarray(pixels(1, 200)).save(path)
    path.write_bytes(path.read_bytes()[:1000])


def _bomb(path: Path) -> None:
    """A header that promises 900 million pixels; the pixels themselves are never reached."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    content = zlib.compress(bytes(10**6))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


def _animated(path: Path) -> None:
    frames = [_image(number) for number in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with Image.open(path) as written:
        assert written.n_frames == 3


def _rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _image(2).save(path, exif=exif)


def _cut_exif(path: Path) -> None:
    _image(2).save(path, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")


READ: dict[str, Writer] = {
    "jpeg named.png": lambda path: _image(3).save(path, "JPEG"),
    "cmyk.jpg": lambda path: _image(4).convert("CMYK").save(path),
    "grey16.png": lambda path: Image.fromarray(pixels(5)[..., 0].astype("u2") * 256).save(path),
    "palette.gif": lambda path: _image(6).convert("P").save(path),
    "transparent.png": lambda path: _image(7).convert("RGBA").save(path),
    "bit.png": lambda path: _image(8).convert("1").save(path),
    "animated.gif": _animated,
    "animated.webp": _animated,
    "rotated.jpg": _rotated,
    "cut exif.jpg": _cut_exif,
    "one pixel.png": lambda path: Image.new("RGB", (1, 1), "red").save(path),
    "one column.png": lambda path: Image.new("RGB", (1, 900), "red").save(path),
    "line\nend.png": lambda path: _image(9).save(path),
    "\x1b[31mred.png": lambda path: _image(10).save(path),
    os.fsdecode(b"latin-\xe9.png"): lambda path: _image(11).save(path),
    "-dash 'quote\" $(x) `y` %s {z}.png": lambda path: _image(12).save(path),
    "café.png": lambda path: _image(13).save(path),
    "CAPITAL.PNG": lambda path: _image(14).save(path, "PNG"),
}

NAMED: dict[str, Writer] = {
    "truncated.png": _truncated,
    "truncated.jpg": _truncated,
    "empty.jpg": lambda path: path.write_bytes(b"") and None,
    "zeros.png": lambda path: path.write_bytes(bytes(5000)) and None,
    "text.jpg": lambda path: path.write_text("no image") and None,
    "page.png": lambda path: path.write_text("<html><script>alert(1)</script></html>") and None,
    "postscript.png": lambda path: (
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n") and None
    ),
    "bomb.png": _bomb,
    "header only.gif": lambda path: path.write_bytes(b"GIF89a\xff\xff\xff\xff\xf7\x00\x00") and None,
}

#: No regular files: never opened, so that nothing hangs.
NO_FILES: dict[str, Writer] = {
    "pipe.png": os.mkfifo,
    "loop.png": lambda path: path.symlink_to(path.name),
    "broken.png": lambda path: path.symlink_to("nowhere.png"),
    "folder.png": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to("."),
    "up": lambda path: path.symlink_to(".."),
}


def make_folder(root: Path, *, classes: int, each: int, hostile: bool = True, copies: int = 1) -> list[str]:
    """Classes of sound images, and the hostile ones spread over them; returns the names that have to be named."""
    folders = [root / f"class{number}" for number in range(classes)]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for shot in range(each):
            noise = np.random.default_rng(1000 * number + shot).normal(0, 10, (40, 40, 3))
            Image.fromarray((pixels(number) + noise).clip(0, 255).astype("u1")).save(folder / f"{shot}.png")
    if not hostile:
        return []
    named = []
    every = [*READ.items(), *NAMED.items(), *NO_FILES.items()]
    for number, (name, write) in enumerate(every * copies):
        path = folders[number % classes] / (name if number < len(every) else f"{number} {name}")
        write(path)
        if name in NAMED:
            named.append(path.name)
    if os.geteuid():  # root reads everything
        (folders[0] / "locked.png").write_bytes((folders[0] / "0.png").read_bytes())
        (folders[0] / "locked.png").chmod(0)
        named.append("locked.png")
    return named
