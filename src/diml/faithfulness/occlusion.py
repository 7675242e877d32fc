"""Occlusions drawn into images at known places: regions that can have no counterpart in another image of the class.

Everything is drawn on the upright image as it is stored, before it is resized for the network. A generator of the same
state gives the same pixels.

Legend: H x W pixels of an image, R regions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diml.data import Preprocess
from diml.data.region_coverage import region_coverage, view_box
from diml.spelling import did_you_mean

Floats = NDArray[np.float64]
Covered = NDArray[np.bool_]

#: Sunglasses and masks are placed for faces that fill their image, eyes level, as in ORL; fractions of its sides.
_EYES_X, _EYES_Y, _LENS = (0.31, 0.67), 0.47, (0.165, 0.10)
_MASK: Final = ((0.13, 0.62), (0.5, 0.55), (0.87, 0.62), (0.84, 0.86), (0.66, 0.99), (0.34, 0.99), (0.16, 0.86))
_FOLDS: Final = (0.68, 0.76, 0.84)
#: How far, as a fraction of the side, sunglasses and masks are moved at random.
_MOVED: Final = 0.02
#: Fractions: of the side that a border hides, of the area that clutter covers; the largest log of its aspect ratio.
_BORDER: Final = (0.35, 0.5)
_CLUTTER: Final = (0.2, 0.4)
_ASPECT: Final = 0.4
#: The central part of another image, in both directions, from which clutter is cut: its object rather than its edges.
_CENTRE: Final = 0.7


@dataclass(frozen=True, eq=False, repr=False)
class Occluded:
    """An image into which something was drawn.

    Args:
        image: RGB image of H x W pixels.
        covered: (H, W) whether each pixel was drawn over.
    """

    image: Image.Image
    covered: Covered

    def __repr__(self) -> str:
        return f"Occluded({self.image.width} x {self.image.height} pixels, {self.covered.mean():.0%} covered)"

    def regions(self, preprocess: Preprocess, grid: tuple[int, int]) -> Floats:
        """(R,) fraction of the area of each region of the network's view that was drawn over, row-major."""
        return region_coverage(self.covered.astype(np.float32), view_box(preprocess, self.image.size), grid)


#: From an RGB image, random numbers and images of other classes.
Draw = Callable[[Image.Image, np.random.Generator, Sequence[Image.Image]], Occluded]


def occlude(
    kind: str, image: Image.Image, generator: np.random.Generator, others: Sequence[Image.Image] = ()
) -> Occluded:
    """Draw one occlusion.

    Args:
        kind: of `OCCLUSIONS`: "sunglasses" and "mask" for aligned faces that fill the image; "border" and "noise",
            black or coloured noise over 35 to 50 % of the image from one side, as of a crop; "clutter", a rectangle
            over 20 to 40 % of the area cut from the middle of another image.
        image: upright RGB image.
        generator: of place, size and shade.
        others: images of other classes, for "clutter", which takes one of them at random.

    Raises:
        ValueError: an unknown kind, or "clutter" without other images.

    Example:
        >>> found = occlude("border", Image.new("RGB", (92, 112), "white"), np.random.default_rng(0))
        >>> found.regions(Preprocess(), (4, 4)).shape
        (16,)
    """
    if kind not in OCCLUSIONS:
        raise ValueError(f"kind: no occlusion {kind!r}; {did_you_mean(kind, OCCLUSIONS)}")
    return OCCLUSIONS[kind](image, generator, others)


def _sunglasses(image: Image.Image, generator: np.random.Generator, _: Sequence[Image.Image]) -> Occluded:
    """Two dark lenses, the bridge between them and the temples."""
    width, height = image.size
    right, down = generator.uniform(-_MOVED, _MOVED, 2)
    shape = Image.new("L", image.size)
    pen, middle = ImageDraw.Draw(shape), _EYES_Y + down
    for x in _EYES_X:
        left, top = (x + right - _LENS[0]) * width, (middle - _LENS[1]) * height
        box = (left, top, left + 2 * _LENS[0] * width, top + 2 * _LENS[1] * height)
        pen.rounded_rectangle(box, radius=0.06 * width, fill=255)
    level = (middle - 0.05) * height
    pen.line([(0.02 * width, level), (0.98 * width, level)], fill=255, width=max(1, round(0.03 * width)))
    return _painted(image, np.asarray(shape) > 0, generator.integers(0, 40))


def _mask(image: Image.Image, generator: np.random.Generator, _: Sequence[Image.Image]) -> Occluded:
    """A pale mask with folds from the nose to below the chin."""
    width, height = image.size
    right, down = generator.uniform(-_MOVED, _MOVED, 2)
    shape, shade = Image.new("L", image.size), int(generator.integers(150, 235))
    corners = [((x + right) * width, (y + down) * height) for x, y in _MASK]
    ImageDraw.Draw(shape).polygon(corners, fill=255)
    paint = np.full((height, 1, 1), shade)
    paint[[round((fold + down) * (height - 1)) for fold in _FOLDS]] = shade - 40
    return _painted(image, np.asarray(shape) > 0, paint)


def _border(image: Image.Image, generator: np.random.Generator, _: Sequence[Image.Image]) -> Occluded:
    return _painted(image, _one_side(image, generator), 0)


def _noise(image: Image.Image, generator: np.random.Generator, _: Sequence[Image.Image]) -> Occluded:
    covered = _one_side(image, generator)
    return _painted(image, covered, generator.integers(0, 256, (*covered.shape, 3)))


def _clutter(image: Image.Image, generator: np.random.Generator, others: Sequence[Image.Image]) -> Occluded:
    """A rectangle of any place and similar width and height, filled with the middle of another image."""
    if not others:
        raise ValueError("others: clutter needs an image of another class, got none")
    area, aspect = generator.uniform(*_CLUTTER), np.exp(generator.uniform(-_ASPECT, _ASPECT))
    size = (image.width * np.sqrt(area * aspect), image.height * np.sqrt(area / aspect))
    width, height = (max(1, min(full, round(side))) for full, side in zip(image.size, size, strict=True))
    left = int(generator.integers(0, image.width - width + 1))
    top = int(generator.integers(0, image.height - height + 1))
    other = others[int(generator.integers(len(others)))]
    scale = _CENTRE * min(other.width / width, other.height / height)  # pixels of the other image for one of this
    x, y = (other.width - width * scale) / 2, (other.height - height * scale) / 2
    box = (x, y, x + width * scale, y + height * scale)
    result = image.convert("RGB")
    result.paste(other.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, box=box), (left, top))
    covered = np.zeros((image.height, image.width), dtype=np.bool_)
    covered[top : top + height, left : left + width] = True
    return Occluded(result, covered)


#: The kinds of occlusions by name.
OCCLUSIONS: Final = MappingProxyType(
    {"sunglasses": _sunglasses, "mask": _mask, "border": _border, "noise": _noise, "clutter": _clutter}
)


def _one_side(image: Image.Image, generator: np.random.Generator) -> Covered:
    """(H, W) part of an image along one of its sides."""
    width, height = image.size
    share, side = generator.uniform(*_BORDER), int(generator.integers(4))
    rows, columns = round(share * height), round(share * width)
    hidden: Covered = np.zeros((height, width), dtype=np.bool_)
    hidden[(np.s_[:rows], np.s_[height - rows :], np.s_[:, :columns], np.s_[:, width - columns :])[side]] = True
    return hidden


def _painted(image: Image.Image, covered: Covered, paint: Any) -> Occluded:
    """The image with values 0 to 255 in place of the covered pixels."""
    pixels = np.where(covered[..., None], paint, np.asarray(image.convert("RGB")))
    return Occluded(Image.fromarray(pixels.astype(np.uint8)), covered)
