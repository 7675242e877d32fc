"""Who searches whom: checked query and gallery sides of an evaluation.

Legend: N images, Q queries, G gallery images, R relevant images of a query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from diml.matching import QuantizedRegions, Regions
from diml.matching.retrieval import NOTHING


@dataclass(frozen=True, eq=False)
class IndexSets:
    """Both sides of an evaluation, and where each query stands in its own gallery.

    Args:
        queries, gallery: (Q,) and (G,) image rows.
        query_labels, gallery_labels: (Q,) and (G,) classes.
        own_row: (Q,) gallery row that is the query itself, or `NOTHING`.
        relevant_count: (Q,) R, gallery images of the query's class, itself not counted.
        gallery_is_everything: gallery rows are image rows.
    """

    queries: Tensor
    gallery: Tensor
    query_labels: Tensor
    gallery_labels: Tensor
    own_row: Tensor
    relevant_count: Tensor
    gallery_is_everything: bool


def index_sets(
    regions: Regions | QuantizedRegions,
    labels: ArrayLike | Tensor,
    queries: ArrayLike | Tensor | None,
    gallery: ArrayLike | Tensor | None,
) -> IndexSets:
    """Check labels (N,) and image rows of both sides (all images where None); ValueError names what does not fit."""
    device = regions.pooled.device
    classes = _integers("labels", labels, device)
    if classes.shape != (len(regions),):
        raise ValueError(f"labels: need one integer for each of {len(regions)} images, got {tuple(classes.shape)}")
    sides = []
    for name, given in (("queries", queries), ("gallery", gallery)):
        rows = torch.arange(len(regions), device=device) if given is None else _integers(name, given, device)
        if rows.ndim != 1 or not len(rows):
            raise ValueError(f"{name}: need at least one image row, got shape {tuple(rows.shape)}")
        if not 0 <= int(rows.min()) <= int(rows.max()) < len(regions):
            got = f"{int(rows.min())}..{int(rows.max())}"
            raise ValueError(f"{name}: need image rows 0..{len(regions) - 1}, got {got}")
        doubled = len(rows) - int((torch.bincount(rows) > 0).sum())
        if doubled:
            raise ValueError(f"{name}: need every image row once, got {doubled} doubled")
        sides.append(rows)
    query_rows, gallery_rows = sides
    place = torch.full((len(regions),), NOTHING, dtype=torch.int64, device=device)
    place[gallery_rows] = torch.arange(len(gallery_rows), device=device)
    own_row = place[query_rows]
    number = torch.from_numpy(np.unique(classes.cpu().numpy(), return_inverse=True)[1]).to(device)
    class_sizes = torch.bincount(number[gallery_rows], minlength=int(number.max()) + 1)
    count = class_sizes[number[query_rows]] - (own_row != NOTHING).long()
    everything = torch.equal(gallery_rows, torch.arange(len(regions), device=device))
    return IndexSets(query_rows, gallery_rows, classes[query_rows], classes[gallery_rows], own_row, count, everything)


def _integers(name: str, values: ArrayLike | Tensor, device: torch.device) -> Tensor:
    array = np.array([0]) if isinstance(values, Tensor) else np.array(values)
    if array.size == 0:
        return torch.zeros(array.shape, dtype=torch.int64, device=device)
    if array.dtype.kind not in "iufcb":
        raise ValueError(f"{name}: need integers, got {array.dtype}; number the classes")
    given = values if isinstance(values, Tensor) else torch.from_numpy(array)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"{name}: need integers, got {given.dtype}; convert with .astype(int)")
    return given.to(device=device, dtype=torch.int64)
