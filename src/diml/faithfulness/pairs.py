"""Which pairs of a data set are measured, and how their images become regions.

Legend: B pairs, N images, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diml.data import ImageSet
from diml.matching import Regions
from diml.models import Embedder
from diml.models.backbones import inference

#: Images per batch; on the CPU few, whose feature maps stay in the cache: half the time of 64 with MobileNetV2.
BATCH, BATCH_CPU = 64, 4


def choose_pairs(images: ImageSet, count: int, seed: int) -> list[tuple[int, int]]:
    """Random pairs (query, gallery image) of one class, each query once.

    Args:
        images: labelled; their queries and gallery if they have them, else all.
        count: number of pairs; fewer if there are fewer queries with another image of their class.
        seed: of the random choice.

    Raises:
        ValueError: `count` is below 1, or no query has another image of its class in the gallery.
    """
    if count < 1:
        raise ValueError(f"pairs: need at least 1, got {count}")
    everything = np.arange(len(images))
    queries = everything if images.queries is None else images.queries
    gallery = everything if images.gallery is None else images.gallery
    generator = np.random.default_rng(seed)
    chosen: list[tuple[int, int]] = []
    for query in generator.permutation(queries):
        others = gallery[(images.labels[gallery] == images.labels[query]) & (gallery != query)]
        if len(others):
            chosen.append((int(query), int(generator.choice(others))))
        if len(chosen) == count:
            break
    if not chosen:
        raise ValueError(f"pairs: no query of {images.name} has another image of its class in the gallery")
    return chosen


def other_classes(images: ImageSet, pairs: Sequence[tuple[int, int]], seed: int) -> list[int]:
    """A random image of another class for each pair; none where there is one class only."""
    chosen = []
    for query, _ in pairs:
        others = np.flatnonzero(images.labels != images.labels[query])
        if len(others):
            chosen.append(int(np.random.default_rng([seed, 7, query]).choice(others)))
    return chosen


def to_input(embedder: Embedder, views: Sequence[Image.Image]) -> Tensor:
    """(N, 3, S, S) network input from images that are cropped and scaled already."""
    return torch.stack([embedder.preprocess.normalize(view) for view in views]).to(embedder.device)


def embed_views(
    embedder: Embedder,
    views: Sequence[Image.Image],
    advance: Callable[[int], None] = lambda _: None,
    *,
    shares: bool = False,
) -> Regions:
    """Regions of N images that are cropped and scaled already; `advance` is called with the number embedded.

    With `shares`, also the shares of the pooled vector, which the ledger of the whole score needs.
    """
    parts = []
    batch = BATCH_CPU if embedder.device.type == "cpu" else BATCH
    for start in range(0, len(views), batch):
        some = views[start : start + batch]
        with inference(embedder, embedder.device, embedder.autocast_type()):
            parts.append(embedder(to_input(embedder, some), **({"shares": True} if shares else {})))
        advance(len(some))
    return Regions.cat(parts)
