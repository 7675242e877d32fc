"""A box on a query image: the part of it that is searched for, such as one product of a full shelf."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from PIL import Image

from diml.spelling import shown

#: Least width and height of a box in pixels; less shows nothing of an object.
LEAST_SIDE: Final = 16
_FORM: Final = (
    "x0,y0,x1,y1: left, upper, right and lower edge, as fractions of width and height (0 to 1), or in pixels of the "
    "image as displayed"
)
_REMEDY: Final = "for instance 0.25,0.1,0.75,0.9"
_LONGEST: Final = 200


class BoxError(ValueError):
    """A box that is none, or has no place in its image."""


@dataclass(frozen=True)
class QueryBox:
    """A rectangle of an image as it is displayed, that is after its EXIF orientation was applied.

    Values are fractions of width and height where none of them is above 1, else pixels.

    Args:
        left, upper, right, lower: its edges, from the left and from the top.

    Raises:
        BoxError: an edge is negative or not finite, or the box is empty.

    Example:
        >>> QueryBox.read("0.25, 0.1, 0.75, 0.9").pixels((400, 200))
        (100, 20, 300, 180)
    """

    left: float
    upper: float
    right: float
    lower: float

    def __post_init__(self) -> None:
        edges = (self.left, self.upper, self.right, self.lower)
        if not all(math.isfinite(edge) and edge >= 0 for edge in edges):
            raise BoxError(f"box: need edges of 0 or more, got {self}; {_REMEDY}")
        if not (self.left < self.right and self.upper < self.lower):
            raise BoxError(f"box: need x0 < x1 and y0 < y1, got {self}; {_REMEDY}")

    @classmethod
    def read(cls, text: str) -> QueryBox:
        """Read `x0,y0,x1,y1`; BoxError where it is something else."""
        words = text.split(",") if len(text) <= _LONGEST else []
        try:
            left, upper, right, lower = map(float, words)
        except ValueError:
            raise BoxError(f"box: need {_FORM}; got {shown(text)}; {_REMEDY}") from None
        return cls(left, upper, right, lower)

    @property
    def in_pixels(self) -> bool:
        """Whether the edges are pixels rather than fractions."""
        return max(self.right, self.lower) > 1

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the edges in whole pixels of an image of this (width, height).

        Raises:
            BoxError: the box reaches beyond the image, or has fewer than 16 pixels in a direction.
        """
        width, height = size
        if self.in_pixels and (self.right > width or self.lower > height):
            raise BoxError(
                f"box: need edges inside the image of {width} x {height} pixels, got {self} (in pixels, as one of them "
                f"is above 1); {_REMEDY} are fractions"
            )
        across, down = (1, 1) if self.in_pixels else size
        left, upper = round(self.left * across), round(self.upper * down)
        right, lower = round(self.right * across), round(self.lower * down)
        if right - left < LEAST_SIDE or lower - upper < LEAST_SIDE:
            raise BoxError(
                f"box: need {LEAST_SIDE} x {LEAST_SIDE} pixels or more, got {right - left} x {lower - upper} of an "
                f"image of {width} x {height} ({self}); make it larger, or take a larger image"
            )
        return left, upper, right, lower

    def crop(self, image: Image.Image) -> Image.Image:
        """Return this part of an upright image (as of `load_image`); BoxError as of `pixels`."""
        return image.crop(self.pixels(image.size))

    def __str__(self) -> str:
        return ",".join(f"{edge:g}" for edge in (self.left, self.upper, self.right, self.lower))
