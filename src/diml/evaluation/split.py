"""Query and gallery side of an evaluation.

Legend: N images, Q queries, G gallery images, R relevant images of a query.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from diml.matching.retrieval import NOTHING


@dataclass(frozen=True, eq=False, repr=False)
class QueryGallerySplit:
    """Which images query and which are searched, with their classes, and each query's row in its own gallery.

    Args:
        queries, gallery: (Q,) and (G,) image rows.
        query_labels, gallery_labels: (Q,) and (G,) int64 classes.
        own_row: (Q,) gallery row that is the query itself, or `NOTHING`.
        relevant_count: (Q,) R, gallery images of the query's class, without the query itself.
        gallery_is_everything: gallery rows are image rows.
    """

    queries: Tensor
    gallery: Tensor
    query_labels: Tensor
    gallery_labels: Tensor
    own_row: Tensor
    relevant_count: Tensor
    gallery_is_everything: bool

    @classmethod
    def from_labels(
        cls,
        labels: ArrayLike | Tensor,
        *,
        queries: ArrayLike | Tensor | None = None,
        gallery: ArrayLike | Tensor | None = None,
        images: int | None = None,
        device: torch.device | str = "cpu",
    ) -> QueryGallerySplit:
        """Split N images by their rows; leave-one-out where neither side is given.

        Args:
            labels: (N,) class of each image: integers or strings.
            queries, gallery: (Q,) and (G,) image rows, each at most once; all images when omitted.
            images: N, checked against the labels when given.
            device: of the tensors.

        Raises:
            ValueError: labels of another kind or shape; rows that are no integers, out of range, doubled or none.
        """
        classes = _classes(labels, torch.device(device))
        size = len(classes)
        if images not in (None, size):
            raise ValueError(f"labels: need one class for each of {images} images, got {size}")
        query_rows, gallery_rows = (
            _image_rows(name, given, size, classes.device)
            for name, given in (("queries", queries), ("gallery", gallery))
        )
        place = torch.full((size,), NOTHING, dtype=torch.int64, device=classes.device)
        place[gallery_rows] = torch.arange(len(gallery_rows), device=classes.device)
        own_row = place[query_rows]
        number = torch.from_numpy(np.unique(classes.cpu().numpy(), return_inverse=True)[1]).to(classes.device)
        class_sizes = torch.bincount(number[gallery_rows], minlength=int(number.max()) + 1)
        count = class_sizes[number[query_rows]] - (own_row != NOTHING).long()
        everything = torch.equal(gallery_rows, torch.arange(size, device=classes.device))
        return cls(query_rows, gallery_rows, classes[query_rows], classes[gallery_rows], own_row, count, everything)

    def subset(self, rows: Tensor) -> QueryGallerySplit:
        """The same gallery with some of the queries: (q,) rows of `queries`."""
        parts: dict[str, Any] = {
            name: getattr(self, name)[rows] for name in ("queries", "query_labels", "own_row", "relevant_count")
        }
        return replace(self, **parts)

    def images(self, gallery_rows: Tensor) -> Tensor:
        """Image rows of gallery rows; `NOTHING` stays."""
        if self.gallery_is_everything:
            return gallery_rows
        return torch.where(gallery_rows == NOTHING, NOTHING, self.gallery[gallery_rows.clamp_min(0)])

    def relevant(self, order: Tensor) -> Tensor:
        """(Q, M) bool: whether the gallery image at each rank of `order` (Q, M) has the query's class."""
        same = self.gallery_labels[order.clamp_min(0)] == self.query_labels.unsqueeze(1)
        return same & (order != NOTHING)

    def __len__(self) -> int:
        return len(self.queries)

    def __repr__(self) -> str:
        without = int((self.relevant_count == 0).sum())
        return f"QueryGallerySplit({len(self)} queries, {len(self.gallery)} gallery images, {without} without relevant)"


def _classes(labels: ArrayLike | Tensor, device: torch.device) -> Tensor:
    """(N,) int64 classes; strings are numbered in sorted order."""
    if not isinstance(labels, Tensor):
        array = np.asarray(labels)
        if array.dtype.kind in "OU" and array.size and all(isinstance(label, str) for label in array.flat):
            labels = np.unique(array, return_inverse=True)[1].reshape(array.shape)
    classes = _integers("labels", labels, device)
    if classes.ndim != 1 or not len(classes):
        raise ValueError(f"labels: need one class for each image, shape (N,), got {tuple(classes.shape)}")
    return classes


def _image_rows(name: str, given: ArrayLike | Tensor | None, images: int, device: torch.device) -> Tensor:
    """Checked image rows of one side."""
    rows = torch.arange(images, device=device) if given is None else _integers(name, given, device)
    if rows.ndim != 1 or not len(rows):
        raise ValueError(f"{name}: need at least one image row, got shape {tuple(rows.shape)}")
    if not 0 <= int(rows.min()) <= int(rows.max()) < images:
        got = f"{int(rows.min())}..{int(rows.max())}"
        raise ValueError(f"{name}: need image rows 0..{images - 1}, got {got}")
    doubled = len(rows) - int((torch.bincount(rows) > 0).sum())
    if doubled:
        raise ValueError(f"{name}: need every image row at most once, got {doubled} doubled")
    return rows


def _integers(name: str, values: ArrayLike | Tensor, device: torch.device) -> Tensor:
    array = np.array([0]) if isinstance(values, Tensor) else np.array(values)
    if array.size == 0:
        return torch.zeros(array.shape, dtype=torch.int64, device=device)
    if array.dtype.kind not in "iufcb":
        raise ValueError(f"{name}: need integers{' or strings' * (name == 'labels')}, got {array.dtype}")
    given = values if isinstance(values, Tensor) else torch.from_numpy(array)
    if given.dtype == torch.bool and name != "labels":
        raise ValueError(f"{name}: need row numbers, got a boolean mask; use numpy.flatnonzero(mask)")
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"{name}: need integers, got {given.dtype}; convert with .astype(int)")
    return given.to(device=device, dtype=torch.int64)
