"""Labelled images of an index with their stored regions, to learn from them what scores mean.

Legend: N images.
"""

from __future__ import annotations

import numpy as np
import torch

from diml.data import ImageSet
from diml.matching import QuantizedRegions, Regions
from diml.search.filters import parse_where
from diml.search.store import Store, decode_regions

_PART = 512


def labelled_images(
    store: Store,
    label: str,
    *,
    name: str,
    where: str | None = None,
    most: int = 10_000,
    seed: int = 0,
    copies: bool = True,
) -> tuple[ImageSet, Regions | QuantizedRegions]:
    """The images of an index that have a label, with their stored regions, leave-one-out.

    Args:
        store: the index.
        label: column that has the class of each image; images without a value are left out.
        name: of the image set.
        where: a condition on metadata; only images that satisfy it.
        most: number of images at most; where there are more, whole classes are drawn.
        seed: of the draw.
        copies: also take images with the same content as another one, which are found whatever the settings.

    Returns:
        N images, which are names of the index, and their regions.

    Raises:
        ValueError: there is no such column, no labelled image, or the index has pooled vectors only.
    """
    columns = store.config.columns
    if label not in columns:
        raise ValueError(f"label: need a column of the index, got {label!r}; it has {', '.join(columns) or 'none'}")
    condition = None if where is None else parse_where(where, columns)
    ids: list[str] = []
    labels: list[str] = []
    seen: set[object] = set()
    wanted = [label] if copies or "content" not in columns else list(dict.fromkeys((label, "content")))
    for part in store.listing(condition, columns=wanted):
        for key, entry in zip(part.ids, part.metadata, strict=True):
            content = key if copies else entry.get("content", key)
            if entry[label] not in (None, "") and content not in seen:
                seen.add(content)
                ids.append(key)
                labels.append(str(entry[label]))
    if not ids:
        raise ValueError(f"label: no image of the index has a value in the column {label}")
    chosen = _whole_classes(np.array(labels), most, seed)
    ids, labels = [ids[row] for row in chosen], [labels[row] for row in chosen]
    parts = []
    for start in range(0, len(ids), _PART):
        rows = store.regions(ids[start : start + _PART])
        if len(rows) != len(ids[start : start + _PART]):
            raise ValueError("index: images were removed while it was read; try again")
        parts.append(decode_regions(rows, store.config))
    return ImageSet(ids, labels, name=name), _joined(parts)


def _whole_classes(labels: np.ndarray, most: int, seed: int) -> list[int]:
    """Rows of all images, or of classes drawn until the next one would exceed `most`."""
    if len(labels) <= most:
        return list(range(len(labels)))
    names, counts = np.unique(labels, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    kept = order[np.cumsum(counts[order]) <= most]
    if not len(kept):
        raise ValueError(f"images: need at least {counts[order[0]]:,}, a class drawn first, got {most:,}")
    return np.flatnonzero(np.isin(labels, names[kept])).tolist()


def _joined(parts: list[Regions | QuantizedRegions]) -> Regions | QuantizedRegions:
    packed = [part for part in parts if isinstance(part, QuantizedRegions)]
    if packed:
        codes, pooled = (torch.cat([getattr(part, name) for part in packed]) for name in ("codes", "pooled"))
        scales = [part.scale for part in packed if part.scale is not None]
        scale = torch.cat(scales) if scales else None
        masses = [part.masses for part in packed if part.masses is not None]
        kept = torch.cat(masses) if masses else None
        first = packed[0]
        return QuantizedRegions(codes, scale, pooled, first.grid, kept, first.massless, first.codebooks)
    return Regions.cat([part for part in parts if isinstance(part, Regions)])
