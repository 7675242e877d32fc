"""A pair of drawn images of the same objects in different places, for documents, tests and first experiments.

Coordinates inside an object are in units of its own radius, centre (0, 0), x to the right, y down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

_OVERSAMPLING: Final = 4  # drawn larger by this factor, then scaled down, for smooth edges

Point = tuple[float, float]


@dataclass(frozen=True)
class Place:
    """Where an object is: centre and radius as fractions of the image's side, turn in degrees anticlockwise."""

    x: float
    y: float
    radius: float
    turn: float


#: The place of each object in the first and in the second image of `drawn_pair`.
PLACES: Final[dict[str, tuple[Place, Place]]] = {
    "sunflower": (Place(0.28, 0.29, 0.17, 0), Place(0.72, 0.72, 0.17, 20)),
    "strawberry": (Place(0.73, 0.28, 0.205, 8), Place(0.29, 0.73, 0.205, -18)),
    "fish": (Place(0.27, 0.74, 0.205, 6), Place(0.73, 0.28, 0.205, -10)),
    "melon": (Place(0.73, 0.73, 0.225, 10), Place(0.27, 0.29, 0.225, -14)),
}


def drawn_pair(size: int = 256) -> tuple[Image.Image, Image.Image]:
    """Draw a sunflower, a strawberry, a fish and a slice of melon twice, moved and turned, on different backgrounds.

    Every call returns the same pixels. A good explanation of the pair matches each object with itself.

    Args:
        size: side of both images in pixels, 32 to 2048.

    Returns:
        Two RGB images of size x size.

    Raises:
        ValueError: the size is out of range.
    """
    if not 32 <= size <= 2048:
        raise ValueError(f"size: need 32 to 2048 pixels, got {size}")
    return _image(size, 0, _table), _image(size, 1, _water)


class _Pen:
    """Draws in an object's own units on a transparent layer, which is then turned and pasted on the background."""

    def __init__(self, radius: float) -> None:
        self._unit = radius
        self._half = math.ceil(radius * 1.25)
        self.layer = Image.new("RGBA", (2 * self._half, 2 * self._half))
        self._draw = ImageDraw.Draw(self.layer)

    def shape(self, points: Iterable[Point], fill: str) -> None:
        self._draw.polygon([self._at(point) for point in points], fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: str) -> None:
        self.shape(oval(x, y, radius, radius), fill)

    def stroke(self, points: Iterable[Point], width: float, fill: str) -> None:
        line = [self._at(point) for point in points]
        self._draw.line(line, fill=fill, width=max(1, round(width * self._unit)), joint="curve")

    def _at(self, point: Point) -> Point:
        return self._half + point[0] * self._unit, self._half + point[1] * self._unit


def oval(x: float, y: float, wide: float, high: float, lean: float = 0.0) -> list[Point]:
    """An ellipse with half axes `wide` and `high`, rotated by degrees."""
    cos, sin = math.cos(math.radians(lean)), math.sin(math.radians(lean))
    around = [(wide * math.cos(t), high * math.sin(t)) for t in (math.tau * k / 72 for k in range(72))]
    return [(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in around]


def _image(size: int, which: int, background: Callable[[int], Image.Image]) -> Image.Image:
    side = size * _OVERSAMPLING
    image = background(side)
    for name, draw in (("sunflower", _sunflower), ("strawberry", _strawberry), ("fish", _fish), ("melon", _melon)):
        place = PLACES[name][which]
        pen = _Pen(place.radius * side)
        draw(pen)
        layer = pen.layer.rotate(place.turn, Image.Resampling.BICUBIC)
        left, top = (round(at * side - layer.width / 2) for at in (place.x, place.y))
        shadow = Image.new("RGBA", layer.size, (20, 20, 40, 255))
        shadow.putalpha(layer.getchannel("A").point([value // 4 for value in range(256)]))
        image.paste(shadow, (left + side // 90, top + side // 60), shadow)
        image.paste(layer, (left, top), layer)
    return image.resize((size, size), Image.Resampling.BOX)


def _table(side: int) -> Image.Image:
    """A table of warm planks."""
    image = Image.new("RGB", (side, side), "#ead9bd")
    draw = ImageDraw.Draw(image)
    for plank in range(5):
        top = plank * side // 5
        draw.rectangle((0, top, side, top + side // 5), fill=("#ead9bd", "#e3cfae")[plank % 2])
        for grain in range(3):
            y = top + (grain + 1) * side // 20
            wave = [(x, y + side / 160 * math.sin(9 * x / side + 2 * plank + grain)) for x in range(0, side + 1, 16)]
            draw.line(wave, fill="#d8c09a", width=side // 300 + 1)
        draw.line((0, top, side, top), fill="#c4a67a", width=side // 180 + 1)
    return image


def _water(side: int) -> Image.Image:
    """Water with cool waves."""
    image = Image.new("RGB", (side, side), "#cfe6e4")
    draw = ImageDraw.Draw(image)
    for row in range(9):
        y = (row + 0.6) * side / 9
        wave = [
            (x, y + side / 70 * math.sin(math.tau * (3.5 * x / side + 0.37 * row))) for x in range(-16, side + 16, 8)
        ]
        draw.line(wave, fill="#b3d5d3", width=side // 70, joint="curve")
    return image


def _sunflower(pen: _Pen) -> None:
    for ring, (count, fill, reach) in enumerate(((16, "#e39a12", 0.62), (16, "#f9c62b", 0.58))):
        for petal in range(count):
            turn = math.tau * (petal + ring / 2) / count
            x, y = reach * math.cos(turn), reach * math.sin(turn)
            pen.shape(oval(x, y, 0.40, 0.13, math.degrees(turn)), fill)
    pen.disc(0, 0, 0.47, "#3d2210")
    pen.disc(0, 0, 0.43, "#5b3416")
    for seed in range(90):  # in the spiral of a real sunflower
        turn, away = seed * 2.39996, 0.041 * math.sqrt(seed)
        pen.disc(away * math.cos(turn), away * math.sin(turn), 0.022, "#a8702c" if seed > 30 else "#2b180a")


def _strawberry(pen: _Pen) -> None:
    def half_width(y: float) -> float:
        return (
            0.78 * math.sqrt(max(0.0, 1 - ((y + 0.25) / 0.62) ** 2))
            if y < -0.25
            else 0.78 * (1 - (y + 0.25) / 1.25) ** 0.62
        )

    heights = [-0.6 + 1.6 * k / 60 for k in range(61)]
    for inset, fill in ((1.0, "#b3122a"), (0.93, "#dc2338")):
        outline = [(inset * half_width(y), y * inset) for y in heights]
        pen.shape(outline + [(-x, y) for x, y in reversed(outline)], fill)
    for row in range(6):
        y = -0.36 + 0.21 * row
        reach = 0.8 * half_width(y)
        count = max(1, int(reach / 0.14))
        for seed in range(count):
            x = 0 if count == 1 else -reach + 2 * reach * (seed + 0.5 * (row % 2)) / count
            if abs(x) < 0.88 * half_width(y):
                pen.shape(oval(x, y, 0.03, 0.05), "#ffe08a")
    for leaf in range(7):
        turn = math.radians(180 + leaf * 30)
        lean = math.degrees(turn)
        pen.shape(oval(0.3 * math.cos(turn), -0.58 - 0.12 * math.sin(turn), 0.34, 0.11, -lean), "#2f8a34")
    pen.stroke([(0, -0.6), (0.05, -0.8), (0.14, -0.95)], 0.09, "#3f7d2c")


def _fish(pen: _Pen) -> None:
    pen.shape([(0.48, 0), (0.98, -0.48), (0.86, 0), (0.98, 0.48)], "#e9681b")
    pen.shape([(-0.2, -0.42), (0.15, -0.80), (0.45, -0.34)], "#e9681b")
    pen.shape([(-0.1, 0.42), (0.1, 0.72), (0.32, 0.36)], "#e9681b")
    pen.shape(oval(-0.15, 0, 0.80, 0.50), "#1f5fae")
    pen.shape(oval(-0.15, 0.03, 0.74, 0.43), "#2f7fd6")
    for stripe in (-0.28, 0.05, 0.36):
        high = 0.47 * math.sqrt(1 - ((stripe + 0.15) / 0.80) ** 2)
        pen.shape(oval(stripe, 0, 0.075, high), "#f4f7fb")
    for row in range(4):
        for scale in range(5):
            x, y = -0.16 + 0.16 * scale + 0.08 * (row % 2), -0.2 + 0.14 * row
            if ((x + 0.21) / 0.74) ** 2 + (y / 0.43) ** 2 < 0.8:
                pen.stroke(oval(x, y, 0.055, 0.055)[-18:] + oval(x, y, 0.055, 0.055)[:18], 0.016, "#174a8c")
    pen.disc(-0.62, -0.10, 0.135, "#ffffff")
    pen.disc(-0.64, -0.10, 0.07, "#101820")
    pen.stroke([(-0.93, 0.12), (-0.82, 0.17), (-0.72, 0.15)], 0.035, "#123a70")


def _melon(pen: _Pen) -> None:
    def half_disc(radius: float) -> list[Point]:
        return [(radius * math.cos(t), -0.42 + radius * math.sin(t)) for t in (math.pi * k / 60 for k in range(61))]

    for radius, fill in ((1.0, "#1c6b33"), (0.92, "#57b25a"), (0.84, "#eaf6cf"), (0.77, "#f0526b")):
        pen.shape(half_disc(radius), fill)
    for stripe in range(9):
        turn = math.pi * (stripe + 0.5) / 9
        pen.stroke([(r * math.cos(turn), -0.42 + r * math.sin(turn)) for r in (0.925, 0.995)], 0.07, "#0d4a20")
    for ring, count in ((0.30, 3), (0.56, 5)):
        for seed in range(count):
            turn = math.pi * (seed + 0.5) / count
            x, y = ring * math.cos(turn), -0.42 + ring * math.sin(turn)
            pen.shape(oval(x, y, 0.075, 0.04, math.degrees(turn)), "#2a1410")
