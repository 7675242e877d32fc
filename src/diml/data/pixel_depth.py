"""Pixels of more than 8 bits as 8-bit values, by stated rules; docs/images.md has them as a table.

A file of 16 or 32 bits rarely says which values are black and white, so that this is taken from the values themselves.
The conversion works tile by tile: beside the decoded image and the result it needs a few megabytes, whatever the size.

Legend: H x W pixels, C bands.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diml.data.image_files import BadImageError, printable

#: Values this far outside [0, 1], as resizing overshoots at edges, still count as values in [0, 1] and are clipped.
OVERSHOOT: Final = 0.25
#: Numbers of bits that cameras and scanners use. The fewest that hold all values of an image are taken to be used.
BITS: Final = (8, 10, 12, 14, 16)

_WHITE: Final = 255
_SIDE: Final = 1024  # of a tile, in pixels
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_OTHER: Final = "B" if sys.byteorder == "little" else "L"
#: How Pillow unpacks 16-bit colour, which keeps the upper bytes -> how it would unpack the lower bytes. A pair of grey
#: and opacity has four bytes, which are unpacked as the four bands of RGBA.
_LOWER: Final = {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBA", "RGBX")
    for order, other in (("L", "B"), ("B", "L"), ("N", _OTHER))
} | {"LA;16B": "RGBA"}

Bytes = NDArray[np.uint8]


class PixelDepthWarning(UserWarning):
    """How many bits an image uses was taken from its values; said once for each rule."""


@dataclass(frozen=True)
class DepthScale:
    """Which value becomes black and which white; between them it is linear, beyond them clipped.

    Args:
        black, white: values; equal ones make everything black.
        rule, notice: what was assumed, in a word and as a message; empty where the file leaves no doubt.
    """

    black: float
    white: float
    rule: str = ""
    notice: str = ""

    def __call__(self, values: NDArray[Any]) -> Bytes:
        """Return values of any type as uint8 of the same shape."""
        if values.dtype == np.uint16:
            return np.take(self._table, values)
        if self.white <= self.black:
            return np.zeros(values.shape, dtype=np.uint8)
        scaled = (values.astype(np.float64) - self.black) * (_WHITE / (self.white - self.black))
        return np.rint(np.clip(scaled, 0, _WHITE)).astype(np.uint8)

    @cached_property
    def _table(self) -> Bytes:
        return self(np.arange(2**16, dtype=np.int32))


def scale_of_integers(low: float, high: float, declared: int | None = None) -> DepthScale:
    """The scale of integers: by the bits used if they are within 0 to 65535, else from the lowest to the highest.

    Args:
        low, high: lowest and highest value of the image.
        declared: bits per value according to the file; None or 16 and more say nothing.
    """
    if low < 0 or high > 65535:
        return DepthScale(
            low, high, "integers", f"has integers from {low:.0f} to {high:.0f}, which become black and white"
        )
    if declared is not None and declared < 16 and high < 2**declared:
        return DepthScale(0, 2**declared - 1)
    bits = next(bits for bits in BITS if high < 2**bits)
    white = 2**bits - 1
    said = f"has no 16-bit value above {white}: {bits} bits are taken to be used, and {white} to be white"
    return DepthScale(0, white, "bits", said) if bits < 16 and high > 0 else DepthScale(0, white)


def scale_of_floats(low: float, high: float, *, whole: bool) -> DepthScale:
    """The scale of floating-point values: 0 to 1, whole numbers from 0 to 255, else from the lowest to the highest.

    Args:
        low, high: lowest and highest value of the image.
        whole: whether all values are whole numbers.
    """
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        return DepthScale(0, 1)
    if whole and low >= 0 and high <= _WHITE:
        return DepthScale(0, _WHITE)
    return DepthScale(low, high, "floats", f"has values from {low:g} to {high:g}, which become black and white")


def is_wide_grey(image: Image.Image) -> bool:
    """Whether an image has one band of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def grey_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert a decoded image of one band of 16 or 32 bits to 8-bit RGB, its transparent value to white.

    Raises:
        BadImageError: values are not finite.
    """
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (None,))[0]
    unsigned = bits == 32 and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED
    view = np.uint32 if image.mode == "I" and unsigned else None
    found = _range_of(image, name, view)
    if image.mode == "F":
        scale = scale_of_floats(found.low, found.high, whole=found.whole)
    else:
        scale = scale_of_integers(found.low, found.high, bits)
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    transparent = image.info.get("transparency")
    rgb = Image.new("RGB", image.size)
    for box in _tiles(image.size):
        values = _values(image, box, view)
        shown = _WHITE - scale(values) if inverted else scale(values)
        if isinstance(transparent, int):
            shown[values == transparent] = _WHITE
        rgb.paste(Image.fromarray(shown), box[:2])
    _notice(scale, name)
    return rgb


def unpacking(image: Image.Image) -> str | None:
    """How Pillow will unpack the values of an image that is not decoded yet; None where that is not one way."""
    ways = {tile[3] if isinstance(tile[3], str) else next(iter(tile[3] or ()), None) for tile in image.tile}  # type: ignore[attr-defined]
    return ways.pop() if len(ways) == 1 else None


def needs_lower_bytes(image: Image.Image, way: str | None) -> bool:
    """Whether 16-bit colour needs more than the upper bytes.

    It does if it is so dark that 14 bits suffice, and if one colour is transparent, which only whole values tell.

    Args:
        image: decoded.
        way: `unpacking` before it was decoded.
    """
    if way not in _LOWER:
        return False
    return isinstance(image.info.get("transparency"), tuple) or _is_dark(image)


def unpack_lower_bytes(image: Image.Image, way: str | None) -> None:
    """Make an image that is not decoded yet decode the lower bytes of its values."""
    assert way is not None
    lower = _LOWER[way]
    tiles = []
    for tile in image.tile:  # type: ignore[attr-defined]
        codec, extents, offset, old = tile
        new = lower if isinstance(old, str) else (lower, *old[1:])
        tiles.append(tile._replace(args=new) if hasattr(tile, "_replace") else (codec, extents, offset, new))
    image.tile = tiles  # type: ignore[attr-defined]


def colour_to_rgb(upper: Image.Image, lower: Image.Image, way: str | None, name: str) -> Image.Image:
    """Convert 16-bit colour or grey with opacity to 8-bit RGB on white, from the decoded upper and lower bytes."""
    pairs = way == "LA;16B"  # then `lower` has grey, grey, opacity, opacity: upper and lower bytes in turn
    dark, key = _is_dark(upper), upper.info.get("transparency")
    most, rest = ([highest for _, highest in _extrema(image)] for image in (upper, lower))
    colours = _scale_of_bytes(max(most[:3]), rest[1] if pairs else max(rest[:3]))
    opacity = _scale_of_bytes(most[-1], rest[-1])
    rgb = Image.new("RGB", upper.size)
    for box in _tiles(upper.size):
        values = _pairs(upper, lower, box, pairs=pairs)
        shown = colours(np.ascontiguousarray(values[..., :3])) if dark else np.asarray(upper.crop(box))[..., :3].copy()
        if isinstance(key, tuple):
            shown[(values[..., :3] == np.array(key[:3])).all(axis=2)] = _WHITE
        tile = Image.fromarray(shown)
        if upper.mode == "RGBA":
            tile.putalpha(Image.fromarray(opacity(np.ascontiguousarray(values[..., 3]))))
            tile = on_white(tile)
        rgb.paste(tile, box[:2])
    if dark:
        _notice(colours, name)
    return rgb


def flatten(image: Image.Image) -> Image.Image:
    """Convert an image of up to 8 bits with transparent parts to RGB on white."""
    rgb = Image.new("RGB", image.size)
    for box in _tiles(image.size):
        tile = image.crop(box)
        rgb.paste(on_white((tile.convert("LA") if tile.mode == "La" else tile).convert("RGBA")), box[:2])
    return rgb


def on_white(image: Image.Image) -> Image.Image:
    """Compose RGBA onto white; mode RGB."""
    white = Image.new("RGBA", image.size, (_WHITE, _WHITE, _WHITE, _WHITE))
    return Image.alpha_composite(white, image).convert("RGB")


class _Range(NamedTuple):
    low: float
    high: float
    whole: bool


def _range_of(image: Image.Image, name: str, view: type[np.uint32] | None) -> _Range:
    low, high, whole = np.inf, -np.inf, image.mode == "F"
    for box in _tiles(image.size):
        values = _values(image, box, view)
        if image.mode == "F" and not np.isfinite(values).all():
            raise BadImageError(name, "has values that are not finite")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        whole = whole and bool((values == np.rint(values)).all())
    return _Range(low, high, whole)


def _values(image: Image.Image, box: tuple[int, int, int, int], view: type[np.uint32] | None) -> NDArray[Any]:
    """The values of a tile (H, W) in the byte order of this machine."""
    values = np.asarray(image.crop(box))
    values = values.astype(values.dtype.newbyteorder("="))
    return values if view is None else values.view(view)


def _pairs(
    upper: Image.Image, lower: Image.Image, box: tuple[int, int, int, int], *, pairs: bool
) -> NDArray[np.uint16]:
    """The 16-bit values of a tile (H, W, C)."""
    low = np.asarray(lower.crop(box), dtype=np.uint16)
    if pairs:
        both = low[..., 0::2] * np.uint16(256) + low[..., 1::2]
        return both[..., [0, 0, 0, 1]]
    return np.asarray(upper.crop(box), dtype=np.uint16) * np.uint16(256) + low


def _scale_of_bytes(upper: int, lower: int) -> DepthScale:
    """The scale of values by their highest upper and their highest lower byte, which may be of different values."""
    # the number of bits used does not depend on the lower byte of the highest value
    return scale_of_integers(0, 256 * upper + 255 if upper else lower)


def _is_dark(image: Image.Image) -> bool:
    """Whether the upper bytes of all colours leave the upper two bits unused."""
    return max(highest for _, highest in _extrema(image)[:3]) < 2**6


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    """The lowest and highest value of each band of an 8-bit image of several bands."""
    return list(image.getextrema())  # type: ignore[arg-type]


def _tiles(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    width, height = size
    for top in range(0, height, _SIDE):
        for left in range(0, width, _SIDE):
            yield left, top, min(left + _SIDE, width), min(top + _SIDE, height)


class Notice(NamedTuple):
    """What had to be assumed of an image: the rule, and the message."""

    rule: str
    message: str


_said: Final[set[str]] = set()
_said_lock: Final = threading.Lock()
_collected: Final[ContextVar[list[Notice] | None]] = ContextVar("_collected", default=None)


def say(notice: Notice) -> None:
    """Warn of what was assumed, once in this process for each rule; inside `collected_notices`, collect it instead."""
    collected = _collected.get()
    if collected is not None:
        collected.append(notice)
        return
    with _said_lock:
        if notice.rule in _said:
            return
        _said.add(notice.rule)
    warnings.warn(notice.message, PixelDepthWarning, stacklevel=3)


@contextmanager
def collected_notices() -> Iterator[list[Notice]]:
    """Collect what `say` would warn of, to be said later or by another process: once for all worker processes."""
    collected: list[Notice] = []
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


def _notice(scale: DepthScale, name: str) -> None:
    if scale.notice:
        rest = "docs/images.md has the rules. Further images are converted by the same rules without a message. Save "
        say(
            Notice(
                scale.rule, f"{printable(name)} {scale.notice}; {rest}them with 8 bits if that is not what they mean"
            )
        )
