"""The memory and time that `load_image` needs for one image, by format and kind of pixel: the table of docs/images.md.

    python benchmarks/image_memory.py                      # 36 megapixels, the table
    python benchmarks/image_memory.py --megapixels 178     # near the largest image that is read

Each image is read in a process of its own, started by a fork, whose largest resident memory is that of the read beyond
what the process had before. The file is written to a temporary folder and is not counted, as it is read in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from diml.data.images import MAX_PIXELS, load_image

Write = Callable[[Path, int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--megapixels", type=float, default=36.0)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--only", help="only the kinds whose name contains this")
    arguments = parser.parse_args()
    side = int((arguments.megapixels * 1e6) ** 0.5)
    assert side * side <= MAX_PIXELS
    rows = []
    print(f"{'kind':44}{'MB':>8}{'bytes a pixel':>15}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for name, write in KINDS.items():
            if arguments.only and arguments.only not in name:
                continue
            path = Path(folder) / "image"
            in_child(lambda: write(path, side))  # noqa: B023 - it is called at once
            found = in_child(lambda: measure(path))  # noqa: B023
            rows.append({"kind": name, "bytes_per_pixel": found["bytes"] / side**2, **found})
            print(f"{name:44}{found['bytes'] / 2**20:8.0f}{found['bytes'] / side**2:15.1f}{found['seconds']:9.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"side": side, "rows": rows}, indent=1) + "\n")


def measure(path: Path) -> dict[str, float]:
    """Read an image; the largest resident memory beyond that before, and the seconds."""
    warnings.simplefilter("ignore")
    load_image(path.parent / "warm.png")  # what is imported and allocated once
    before, began = resident("VmRSS"), time.perf_counter()
    load_image(path)
    return {"bytes": resident("VmHWM") - before, "seconds": round(time.perf_counter() - began, 2)}


def resident(which: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def in_child(work: Callable[[], object]) -> dict[str, float]:
    """Call a function in a forked process; what it returns."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps(work()).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as stream:
        content = stream.read()
    if status:
        raise RuntimeError(f"the process ended with {status}")
    return json.loads(content) or {}


def saved(kind: str, mode: str, **options: object) -> Write:
    """An image of this mode, saved by Pillow: a smooth pattern, so that files are small."""

    def write(path: Path, side: int) -> None:
        Image.new("RGB", (8, 8)).save(path.parent / "warm.png")
        ramp = Image.linear_gradient("L").resize((side, side))
        wide = {"I;16": "<u2", "I": "<i4", "F": "<f4"}
        if mode in wide:
            row = np.linspace(0, 1 if mode == "F" else 65535, side).astype(wide[mode])
            Image.fromarray(np.broadcast_to(row, (side, side)).copy()).save(path, kind, **options)
        else:
            ramp.convert("RGB").convert(mode).save(path, kind, **options)

    return write


def png(depth: int, colour: int, bands: int, transparent: bytes = b"") -> Write:
    """A PNG that Pillow cannot write, row by row."""

    def write(path: Path, side: int) -> None:
        Image.new("RGB", (8, 8)).save(path.parent / "warm.png")
        row = b"\0" + bytes(side * bands * depth // 8)
        packer = zlib.compressobj(1)
        packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
        header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
        key = [(b"tRNS", transparent)] if transparent else []
        chunks = [(b"IHDR", header), *key, (b"IDAT", packed), (b"IEND", b"")]
        with path.open("wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")
            for name, data in chunks:
                file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))

    return write


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


KINDS: dict[str, Write] = {
    "JPEG, colour": saved("JPEG", "RGB"),
    "JPEG, colour, progressive": saved("JPEG", "RGB", progressive=True),
    "JPEG, colour, turned by EXIF": saved("JPEG", "RGB", exif=turned()),
    "JPEG, grey": saved("JPEG", "L"),
    "JPEG, CMYK": saved("JPEG", "CMYK"),
    "PNG, colour": saved("PNG", "RGB"),
    "PNG, colour with opacity": saved("PNG", "RGBA"),
    "PNG, palette": saved("PNG", "P"),
    "PNG, black and white": saved("PNG", "1"),
    "PNG, 16-bit grey": saved("PNG", "I;16"),
    "PNG, 16-bit grey with a transparent value": png(16, 0, 1, b"\0\7"),
    "PNG, 16-bit grey with opacity": png(16, 4, 2),
    "PNG, 16-bit colour, dark": png(16, 2, 3),
    "PNG, 16-bit colour with opacity, dark": png(16, 6, 4),
    "TIFF, colour, LZW": saved("TIFF", "RGB", compression="tiff_lzw"),
    "TIFF, 16-bit grey": saved("TIFF", "I;16"),
    "TIFF, float grey": saved("TIFF", "F"),
    "TIFF, 32-bit grey": saved("TIFF", "I"),
    "BMP, colour": saved("BMP", "RGB"),
    "GIF": saved("GIF", "P"),
    "PPM, colour": saved("PPM", "RGB"),
    "WebP, colour": saved("WEBP", "RGB", method=0),
    "WebP, colour with opacity": saved("WEBP", "RGBA", method=0),
    "JPEG 2000, colour": saved("JPEG2000", "RGB"),
    "AVIF, colour": saved("AVIF", "RGB", speed=10),
    "TGA, colour": saved("TGA", "RGB"),
}

if __name__ == "__main__":
    main()
