"""Objects pasted on known backgrounds, with their masks, and a network whose regions are the mean colours of cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from diml.data import ImageSet, Preprocess
from diml.matching import Matcher
from diml.models import Embedder, EmbedderConfig

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PLAIN = Preprocess(size=64, resize=64, mean=(0, 0, 0), std=(1, 1, 1))


class Colours(nn.Module):
    """(N, 3, 64, 64) -> (N, 3, 4, 4), the mean colour of each cell."""

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 16)


def colour_embedder(**matcher: object) -> Embedder:
    """4 x 4 regions; pure colours are orthogonal."""
    settings = Matcher(**{"weights": "uniform", **matcher})
    config = EmbedderConfig(backbone="pasted:Colours", preprocess=PLAIN, dim=3, grid=4, matcher=settings)
    return Embedder(Colours(), config=config)


def pasted(
    background: tuple[int, int, int], colour: tuple[int, int, int], box: tuple[int, int, int, int]
) -> tuple[Image.Image, Image.Image]:
    """An image of 64 pixels with an object pasted at (left, top, right, bottom), and its mask."""
    image, mask = Image.new("RGB", (64, 64), background), Image.new("L", (64, 64), 0)
    image.paste(colour, box)
    mask.paste(1, box)
    return image, mask


def save_set(folder: Path, made: list[tuple[Image.Image, Image.Image]], labels: list[str]) -> ImageSet:
    """Images in `images/CLASS/N.png`, masks in `masks/CLASS/N.bmp`."""
    paths = []
    for number, ((image, mask), label) in enumerate(zip(made, labels, strict=True)):
        path = folder / "images" / label / f"{number}.png"
        target = folder / "masks" / label / f"{number}.bmp"
        for place, what in ((path, image), (target, mask)):
            place.parent.mkdir(parents=True, exist_ok=True)
            what.save(place)
        paths.append(path)
    return ImageSet(paths, labels, name="pasted")


def noise(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal numbers."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
