"""Query and gallery side of an evaluation.

Legend: N images, Q queries, G gallery images, R relevant images of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diml.matching.retrieval import NOTHING, Ranking, nearest

if TYPE_CHECKING:
    from diml.data import ImageSet
    from diml.data.judgements import Judgements
    from diml.matching import QuantizedRegions, Regions

#: Class of images that are neither right nor wrong for any query.
JUNK = -1


class Sides(TypedDict):
    """Which of N images query, which are searched, and what a query ignores: arguments of `evaluate_regions`,
    `compare_matchers`, `tune_matcher` and `QueryGallerySplit.from_labels`."""

    queries: ArrayLike | Tensor | None
    gallery: ArrayLike | Tensor | None
    cameras: ArrayLike | Tensor | None
    judgements: Judgements | None


def draws_of(images: ImageSet) -> tuple[Sides, ...]:
    """The sides of each draw of labelled images; of a set without draws, its own."""
    drawn = images.draws or ((images.queries, images.gallery),)
    return tuple(
        Sides(queries=queries, gallery=gallery, cameras=images.cameras, judgements=images.judgements)
        for queries, gallery in drawn
    )


def sides_of(images: ImageSet) -> Sides:
    """The sides of labelled images; of several draws, those of the first."""
    return draws_of(images)[0]


@dataclass(frozen=True, eq=False, repr=False)
class QueryGallerySplit:
    """Which images query and which are searched, with their classes, and each query's row in its own gallery.

    Args:
        queries, gallery: (Q,) and (G,) image rows.
        query_labels, gallery_labels: (Q,) and (G,) int64 classes.
        own_row: (Q,) gallery row that is the query itself, or `NOTHING`.
        relevant_count: (Q,) R, relevant gallery images (those of the query's class) without the query itself and
            ignored ones.
        gallery_is_everything: gallery rows are image rows.
        query_cameras, gallery_cameras: (Q,) and (G,) int64 camera of each image, or None. For a query, gallery images
            of its class and camera are ignored: they are neither right nor wrong.
        ignored_count: (Q,) gallery images that are ignored for each query, itself included with cameras; None where
            nothing else is ignored.
        judged: (Q,) number of each query in the next two; None where classes say what is relevant.
        relevant_pairs, ignored_pairs: (P,) ascending, number of the query times G plus the gallery row.
    """

    queries: Tensor
    gallery: Tensor
    query_labels: Tensor
    gallery_labels: Tensor
    own_row: Tensor
    relevant_count: Tensor
    gallery_is_everything: bool
    query_cameras: Tensor | None = None
    gallery_cameras: Tensor | None = None
    ignored_count: Tensor | None = None
    judged: Tensor | None = None
    relevant_pairs: Tensor | None = None
    ignored_pairs: Tensor | None = None

    @classmethod
    def from_labels(
        cls,
        labels: ArrayLike | Tensor,
        *,
        queries: ArrayLike | Tensor | None = None,
        gallery: ArrayLike | Tensor | None = None,
        cameras: ArrayLike | Tensor | None = None,
        judgements: Judgements | None = None,
        images: int | None = None,
        device: torch.device | str = "cpu",
    ) -> QueryGallerySplit:
        """Split N images by their rows; leave-one-out where neither side is given.

        Args:
            labels: (N,) class of each image: integers or strings. Images of class -1 are junk, which never queries and
                is never searched.
            queries, gallery: (Q,) and (G,) image rows, each at most once; all images when omitted.
            cameras: (N,) camera (or sequence) of each image, integers or strings: a query ignores the gallery images of
                its own class and camera. None: nothing is ignored but the query itself.
            judgements: relevant and ignored image rows of each query, in the order of `queries`, instead of classes.
            images: N, checked against the labels when given.
            device: of the tensors.

        Raises:
            ValueError: labels of another kind or shape; rows that are no integers, out of range, doubled or none;
                judgements that do not fit, or stand beside cameras.
        """
        classes = _classes(labels, torch.device(device))
        size = len(classes)
        if images not in (None, size):
            raise ValueError(f"labels: need one class for each of {images} images, got {size}")
        query_rows, gallery_rows = (
            _image_rows(name, given, size, classes.device)
            for name, given in (("queries", queries), ("gallery", gallery))
        )
        judged = torch.arange(len(query_rows), device=classes.device)[classes[query_rows] != JUNK]
        _check_judgements(judgements, len(query_rows), size, cameras)
        query_rows, gallery_rows = (_without_junk(rows, classes) for rows in (query_rows, gallery_rows))
        place = torch.full((size,), NOTHING, dtype=torch.int64, device=classes.device)
        place[gallery_rows] = torch.arange(len(gallery_rows), device=classes.device)
        own_row = place[query_rows]
        number = torch.from_numpy(np.unique(classes.cpu().numpy(), return_inverse=True)[1]).to(classes.device)
        class_sizes = torch.bincount(number[gallery_rows], minlength=int(number.max()) + 1)
        count = class_sizes[number[query_rows]] - (own_row != NOTHING).long()
        everything = torch.equal(gallery_rows, torch.arange(size, device=classes.device))
        split = cls(query_rows, gallery_rows, classes[query_rows], classes[gallery_rows], own_row, count, everything)
        if judgements is not None:
            return split._judged_by(judgements, judged, place)
        if cameras is None:
            return split
        seen_by = _classes(cameras, classes.device, "cameras")
        if len(seen_by) != size:
            raise ValueError(f"cameras: need one for each of {size} images, got {len(seen_by)}")
        both = torch.unique(torch.stack([number, seen_by]), dim=1, return_inverse=True)[1]
        ignored = torch.bincount(both[gallery_rows], minlength=int(both.max()) + 1)[both[query_rows]]
        return replace(
            split,
            relevant_count=class_sizes[number[query_rows]] - ignored,
            query_cameras=seen_by[query_rows],
            gallery_cameras=seen_by[gallery_rows],
            ignored_count=ignored,
        )

    @classmethod
    def of_regions(
        cls, regions: Regions | QuantizedRegions, labels: ArrayLike | Tensor, sides: Sides
    ) -> QueryGallerySplit:
        """Split N images whose regions are known, on their device; otherwise as `from_labels`."""
        return cls.from_labels(labels, **sides, images=len(regions), device=regions.pooled.device)

    def _judged_by(self, judgements: Judgements, judged: Tensor, place: Tensor) -> QueryGallerySplit:
        """The split in which lists say what is relevant and ignored.

        Args:
            judgements: lists of image rows.
            judged: (Q,) place of each query among the judged ones.
            place: (N,) gallery row of every image, or `NOTHING`.
        """
        found: dict[str, Any] = {}
        for side, lists in (("relevant", judgements.relevant), ("ignored", judgements.ignored)):
            keys = _pairs(lists, place, len(self.gallery))
            itself = (self.own_row != NOTHING).nonzero().flatten()
            keys = keys[~torch.isin(keys, judged[itself] * len(self.gallery) + self.own_row[itself])]
            found[f"{side}_pairs"] = keys
            count = torch.bincount(keys // len(self.gallery), minlength=len(judgements))
            found[f"{side}_count"] = count[judged]
        return replace(self, judged=judged, **found)

    def subset(self, rows: Tensor) -> QueryGallerySplit:
        """The same gallery with some of the queries: (q,) rows of `queries`."""
        names = ("queries", "query_labels", "own_row", "relevant_count", "query_cameras", "ignored_count", "judged")
        parts: dict[str, Any] = {name: part[rows] for name in names if (part := getattr(self, name)) is not None}
        return replace(self, **parts)

    def nearest(self, pooled: Tensor, depth: int) -> Ranking:
        """The `depth` nearest gallery images of each query by pooled cosine, without itself and what it ignores.

        Args:
            pooled: (N, D) unit vectors of all images.
            depth: ranks; `NOTHING` stands at the end where fewer images are left.
        """
        gallery = pooled if self.gallery_is_everything else pooled[self.gallery]
        if self.ignored_count is None or not len(self):
            return nearest(pooled[self.queries], gallery, depth, exclude=self.own_row)
        order = nearest(pooled[self.queries], gallery, self.deeper(depth), exclude=self.own_row).order
        return Ranking(self.without_ignored(order, depth)[0], len(self.gallery))

    def deeper(self, depth: int) -> int:
        """Ranks to look at so that `depth` remain without what is ignored."""
        return depth + (0 if self.ignored_count is None or not len(self) else int(self.ignored_count.max()))

    def without_ignored(self, order: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """The first `depth` gallery rows of `order` (Q, M) that count, and their places in it; `NOTHING` at the end."""
        order = order.masked_fill(self.ignored(order), NOTHING)
        place = (order == NOTHING).to(torch.int8).sort(dim=1, stable=True).indices[:, :depth]
        return order.gather(1, place), place

    def ignored(self, order: Tensor) -> Tensor:
        """(Q, M) bool: whether the gallery image at each rank of `order` (Q, M) is neither right nor wrong."""
        if self.ignored_pairs is not None:
            return self._listed(self.ignored_pairs, order)
        if self.query_cameras is None or self.gallery_cameras is None:
            return torch.zeros_like(order, dtype=torch.bool)
        return self.relevant(order) & (self.gallery_cameras[order.clamp_min(0)] == self.query_cameras.unsqueeze(1))

    def images(self, gallery_rows: Tensor) -> Tensor:
        """Image rows of gallery rows; `NOTHING` stays."""
        if self.gallery_is_everything:
            return gallery_rows
        return torch.where(gallery_rows == NOTHING, NOTHING, self.gallery[gallery_rows.clamp_min(0)])

    def relevant(self, order: Tensor) -> Tensor:
        """(Q, M) bool: whether the gallery image at each rank of `order` (Q, M) is right: has the query's class."""
        if self.relevant_pairs is not None:
            return self._listed(self.relevant_pairs, order)
        same = self.gallery_labels[order.clamp_min(0)] == self.query_labels.unsqueeze(1)
        return same & (order != NOTHING)

    def _listed(self, pairs: Tensor, order: Tensor) -> Tensor:
        """(Q, M) bool: whether the query and the gallery image at each rank are one of the pairs."""
        if self.judged is None or not len(pairs):
            return torch.zeros_like(order, dtype=torch.bool)
        keys = self.judged.unsqueeze(1) * len(self.gallery) + order
        place = torch.searchsorted(pairs, keys).clamp_max(len(pairs) - 1)
        return (pairs[place] == keys) & (order != NOTHING)

    def __len__(self) -> int:
        return len(self.queries)

    def __repr__(self) -> str:
        without = int((self.relevant_count == 0).sum())
        return f"QueryGallerySplit({len(self)} queries, {len(self.gallery)} gallery images, {without} without relevant)"


def _check_judgements(
    judgements: Judgements | None, queries: int, images: int, cameras: ArrayLike | Tensor | None
) -> None:
    """Raise where judgements do not fit the queries."""
    if judgements is None:
        return
    if cameras is not None:
        raise ValueError("judgements: say what is ignored as well, so cameras cannot be given beside them")
    if len(judgements) != queries:
        raise ValueError(f"judgements: need those of {queries} queries, got {len(judgements)}")
    if judgements.largest >= images:
        raise ValueError(f"judgements: need image rows 0..{images - 1}, got {judgements.largest}")


def _pairs(lists: Sequence[NDArray[np.int64]], place: Tensor, gallery: int) -> Tensor:
    """(P,) ascending, number of the list times G plus the gallery row; images outside the gallery are left out."""
    sizes = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    numbers = torch.from_numpy(np.repeat(np.arange(len(lists)), sizes)).to(place.device)
    images = np.concatenate([*lists, np.empty(0, dtype=np.int64)])
    rows = place[torch.from_numpy(images).to(place.device)]
    return (numbers * gallery + rows)[rows != NOTHING].sort().values


def _without_junk(rows: Tensor, classes: Tensor) -> Tensor:
    """The rows of images that have a class."""
    kept = rows[classes[rows] != JUNK]
    if not len(kept):
        raise ValueError(f"labels: need images of a class on both sides, got junk (class {JUNK}) only")
    return kept


def _classes(labels: ArrayLike | Tensor, device: torch.device, name: str = "labels") -> Tensor:
    """(N,) int64 classes; strings are numbered in sorted order, but for the one that stands for junk."""
    if not isinstance(labels, Tensor):
        array = np.asarray(labels)
        if array.dtype.kind in "OU" and array.size and all(isinstance(label, str) for label in array.flat):
            numbers = np.unique(array, return_inverse=True)[1].reshape(array.shape)
            labels = np.where(array == str(JUNK), JUNK, numbers)
    classes = _integers(name, labels, device)
    if classes.ndim != 1 or not len(classes):
        what = "class" if name == "labels" else "camera"
        raise ValueError(f"{name}: need one {what} for each image, shape (N,), got {tuple(classes.shape)}")
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
    words = name in ("labels", "cameras")
    if array.dtype.kind not in "iufcb":
        raise ValueError(f"{name}: need integers{' or strings' * words}, got {array.dtype}")
    given = values if isinstance(values, Tensor) else torch.from_numpy(array)
    if given.dtype == torch.bool and not words:
        raise ValueError(f"{name}: need row numbers, got a boolean mask; use numpy.flatnonzero(mask)")
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"{name}: need integers, got {given.dtype}; convert with .astype(int)")
    return given.to(device=device, dtype=torch.int64)
