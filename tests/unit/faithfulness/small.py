"""A small network and an image set of two classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diml.data import ImageSet, Preprocess
from diml.models import Embedder, load_embedder


def tiny_embedder() -> Embedder:
    """The same network every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_embedder("test_resnet", grid=3, pretrained=False, preprocess=Preprocess(size=48, resize=54))


def small_shop(folder: Path) -> ImageSet:
    """Six images of two classes, and a seventh that is alone in its class."""
    generator = np.random.default_rng(2)
    paths = []
    for number in range(7):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC).save(paths[-1])
    return ImageSet(paths, [0, 0, 0, 1, 1, 1, 2], class_names=("a", "b", "c"), name="shop")
