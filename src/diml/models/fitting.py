"""A whitening fitted on images that are embedded anyway, so that none goes through the network twice.

A head "whiten" is linear: the regions of an image under it are those under the head "identity", projected. So the
images that it is fitted on are embedded with the head "identity", kept, and projected once it is fitted.

Legend: N images, M images to fit on, C channels of the backbone, D of the head.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from diml.data.image_sets import DatasetImages
from diml.data.images import ImageLike
from diml.matching import Regions
from diml.models.cache import embed_cached
from diml.models.embedder import Embedded, Embedder
from diml.models.inputs import Images, as_images
from diml.progress import ShowProgress

#: Regions with the backbone's own channels that are kept until a head is fitted, bytes; of more images some are drawn.
KEPT_BYTES: Final = 2**30


@dataclass(frozen=True, eq=False)
class Fitted:
    """Result of `fit_and_embed`.

    Attributes:
        embedded: the regions of the N images under the fitted head.
        images: how many images the head was fitted on.
        offered: how many there were to fit on, M; more than `images` where some were drawn or cannot be read.
    """

    embedded: Embedded
    images: int
    offered: int


def fit_and_embed(
    embedder: Embedder,
    images: Images,
    *,
    rows: ArrayLike = (),
    others: Images | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: ShowProgress = False,
    **loading: Any,
) -> Fitted:
    """Fit the head "whiten" of an embedder, in place, and embed images with it; each image is embedded once.

    Args:
        embedder: with head "whiten".
        images: N images to embed.
        rows: those of them that the head is fitted on; no labels are used.
        others: further images to fit on, which are not among `images`.
        cache: folder of embeddings by content; none when omitted.
        progress: show progress bars, or a function, as of `Embedder.embed`.
        loading: `batch_size`, `workers`, `on_bad_image`, as of `Embedder.embed_checked`.

    Raises:
        BadImageError, ValueError: as `Embedder.embed_checked` and `Embedder.fit_head`; nothing to fit on.
    """
    listed, own = as_images(images), np.asarray(rows, dtype=np.int64)
    further = () if others is None else as_images(others)
    raw = embedder.without_head()
    most = max(1, KEPT_BYTES // (4 * cells_of(raw) * raw.backbone.channels))
    own_drawn, further_drawn = _drawn(own, len(further), most)
    embed = _Embedding(cache, progress, loading)
    parts = [embed(raw, some_images(further, further_drawn)).regions] if len(further_drawn) else []
    # Where all images can be kept, all are embedded without head: the cache then serves other heads, too.
    kept = np.arange(len(listed)) if len(own) and len(listed) <= most else np.sort(own_drawn)
    first = embed(raw, some_images(listed, kept)) if len(kept) else None
    if first is not None:
        wanted = np.isin(kept[first.kept.numpy()], own_drawn)
        parts.append(first.regions[torch.from_numpy(np.flatnonzero(wanted)).to(raw.device)])
    if not sum(map(len, parts)):
        raise ValueError("rows, others: need images to fit head 'whiten' on, got none")
    embedder.fit_head(Regions.cat(parts) if len(parts) > 1 else parts[0])
    left = np.setdiff1d(np.arange(len(listed)), kept)
    found = (
        [] if first is None else [(kept, dataclasses.replace(first, regions=projected(first.regions, embedder.head)))]
    )
    if len(left):
        found.append((left, embed(embedder, some_images(listed, left))))
    return Fitted(_joined(found), sum(map(len, parts)), len(own) + len(further))


def projected(regions: Regions, head: nn.Module) -> Regions:
    """Regions of a backbone with head "identity" as its linear head `head` would have given them, up to rounding."""
    shares = None if regions.shares is None else head(regions.shares)
    return Regions.normalized(
        head(regions.dense),
        head(regions.pooled),
        regions.grid,
        shares=shares,
        undivided=regions.undivided,
        masses=regions.masses,
        massless=regions.massless,
    )


@dataclass(frozen=True)
class _Embedding:
    """How images are embedded: through the cache or not."""

    cache: str | os.PathLike[str] | None
    progress: ShowProgress
    loading: dict[str, Any]

    def __call__(self, embedder: Embedder, images: Sequence[ImageLike]) -> Embedded:
        if self.cache is None:
            return embedder.embed_checked(images, progress=self.progress, **self.loading)
        return embed_cached(embedder, images, cache_dir=self.cache, progress=self.progress, **self.loading)


def cells_of(embedder: Embedder) -> int:
    """R, regions of an image; where these are the backbone's own cells, those of a trial image."""
    if embedder.grid is not None:
        return embedder.grid**2
    size = embedder.preprocess.size
    return embedder.embed(torch.zeros(3, size, size)).num_regions


def _drawn(own: NDArray[np.int64], further: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most `most` of the rows `own` and of 0 to `further` - 1 together, drawn with a fixed seed."""
    chosen = np.arange(len(own) + further)
    if len(chosen) > most:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, most, replace=False))
    inside = chosen < len(own)
    return own[chosen[inside]], chosen[~inside] - len(own)


def some_images(images: Sequence[ImageLike], rows: NDArray[np.int64]) -> Sequence[ImageLike]:
    """The images at these rows, without reading any."""
    if len(rows) == len(images):
        return images
    return images.take(rows) if isinstance(images, DatasetImages) else [images[row] for row in rows]


def _joined(parts: list[tuple[NDArray[np.int64], Embedded]]) -> Embedded:
    """Embeddings of several lists of rows, in the order of the rows."""
    if len(parts) == 1:
        rows, found = parts[0]
        return dataclasses.replace(found, kept=torch.from_numpy(rows)[found.kept])
    kept: Tensor = torch.cat([torch.from_numpy(rows)[found.kept] for rows, found in parts])
    order = kept.argsort()
    regions = Regions.cat([found.regions for _, found in parts])
    bad = [image for _, found in parts for image in found.bad]
    return Embedded(regions[order.to(regions.pooled.device)], kept[order], tuple(bad))
