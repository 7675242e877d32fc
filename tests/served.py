"""Shared by the tests of the server: a tiny embedder, and a shop of drawn images."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image

from diml.data import Preprocess
from diml.matching import Matcher
from diml.models import Embedder, load_embedder
from drawn_pair import drawn_pair

MATCHER = Matcher(epsilon=0.04)


def small_embedder() -> Embedder:
    """A network of some thousand weights, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_embedder("test_resnet", pretrained=False, preprocess=Preprocess(size=64, resize=72), grid=4)


def drawn(number: int) -> Image.Image:
    """One of many images, all different."""
    return drawn_pair(96)[number % 2].rotate(37 * number, expand=False)


def write_shop(folder: Path, count: int = 10) -> Path:
    """A folder with two classes of images, one of them with a space and an umlaut in its name."""
    for number in range(count):
        place = folder / ("left" if number % 2 else "right hand") / f"{number:02}{' ü' if number == 4 else ''}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        drawn(number).save(place)
    return folder


def content_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
