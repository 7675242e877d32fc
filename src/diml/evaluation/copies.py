"""How many queries find a copy of themselves, and what is left of R@1 without the copies.

Data sets have the same image twice: scaled, compressed again, or listed under two names. Such a query is won by any
embedding, and hides how well the others do.

Two images are copies if their small versions (32 x 32 pixels, colour) correlate by 0.998 or more. Measured on 50 photos
of groceries: compression to JPEG at quality 40 leaves at least 0.9988, scaling to half the size 0.9991; the two most
similar of all 5,421 photos, consecutive shots of one thing, have 0.994. The pooled cosine cannot tell these apart: with
frozen MobileNetV2 a copy at half the size has a cosine of 0.93 in the median, and consecutive shots up to 0.994.

Legend: Q queries, K re-ranked candidates, H hits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diml.data.images import ImageLike, load_image
from diml.evaluation.evaluate import counted_queries
from diml.evaluation.split import QueryGallerySplit, draws_of
from diml.matching.retrieval import NOTHING
from diml.progress import ShowProgress, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from diml.data import ImageSet
    from diml.evaluation.evaluate import DatasetEvaluation

#: Correlation of small versions from which two images are copies of each other.
COPY_CORRELATION: Final = 0.998
#: Pixels of a side of the small version.
SIDE: Final = 32
#: Queries that are compared with their hits at a time.
_AT_ONCE: Final = 256


@dataclass(frozen=True)
class Copies:
    """Copies among the images of an evaluation.

    Args:
        correlation: of two small versions, from which images count as copies.
        queries: Q, the queries that were counted.
        with_copy: queries with a copy among their ten best hits, whatever its class.
        recall: K -> R@1 where every query's copies are taken out of its gallery, a fraction; empty where no query is
            left.
        without_relevant: queries that are left out of `recall`: nothing relevant but copies, or ten hits that are all
            copies.
    """

    correlation: float
    queries: int
    with_copy: int
    recall: dict[int, float]
    without_relevant: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; fractions."""
        return {
            "correlation": self.correlation,
            "queries": self.queries,
            "with_copy": self.with_copy,
            "recall@1_without": {str(k): value for k, value in self.recall.items()},
            "without_relevant": self.without_relevant,
        }

    def line(self) -> str:
        """One line for people."""
        if not self.with_copy:
            return "Copies: no query has an exact or near copy among its ten best hits."
        named = len(self.recall) > 1
        found = ", ".join(f"{100 * value:.2f}" + f" (K = {k})" * named for k, value in self.recall.items())
        left = f"; {self.without_relevant:,} queries have nothing else to find" if self.without_relevant else ""
        share = 100 * self.with_copy / self.queries
        return (
            f"Copies: {self.with_copy:,} of {self.queries:,} queries ({share:.1f} %) have an exact or near copy among "
            f"their ten best hits. R@1 without copies: {found or 'undefined'}{left}."
        )


@torch.no_grad()
def find_copies(
    found: DatasetEvaluation, *, correlation: float = COPY_CORRELATION, progress: ShowProgress = False
) -> Copies:
    """Look for copies of each query among its ten best hits. They are read once more, at a small size.

    Where the plain ranking (K = 0) was not evaluated, copies are looked for among the hits of the smallest K.

    Args:
        found: of `evaluate_dataset`.
        correlation: of small versions, from which two images are copies, in (0, 1].
        progress: as of `evaluate_regions`, counting images.

    Raises:
        ValueError: correlation out of range.
    """
    if not 0 < correlation <= 1:
        raise ValueError(f"correlation: need a correlation in (0, 1], got {correlation}")
    images, report = found.images, found.report
    used = np.unique(np.concatenate([report.queries, *(hits.ravel() for hits in report.hits.values())]))
    used = used[used != NOTHING]
    small = small_images(images, used, progress=progress)
    # One place more: where a hit is `NOTHING`, the last, it stays that.
    place = np.full(len(images) + 1, NOTHING)
    place[used] = np.arange(len(used))
    parts, start = [], 0
    for sides in draws_of(images):
        split = QueryGallerySplit.from_labels(images.labels, **sides)
        split = split.subset(counted_queries(split, report.settings["without_relevant"]))
        hits = {k: torch.from_numpy(best[start : start + len(split)]) for k, best in report.hits.items()}
        start += len(split)
        is_copy = {
            k: _are_copies(small, place[split.queries.numpy()], place[best.numpy()], correlation)
            for k, best in hits.items()
        }
        parts.append(_without_copies(split, hits, is_copy, len(images)))
    with_copy, left = (np.concatenate([part[i] for part in parts]) for i in range(2))
    first = {k: np.concatenate([part[2][k] for part in parts]) for k in report.hits}
    counted = left & np.all([values >= 0 for values in first.values()], axis=0)
    recall = {k: float(values[counted].mean()) for k, values in first.items()} if counted.any() else {}
    return Copies(correlation, len(left), int(with_copy.sum()), recall, int((~counted & with_copy).sum()))


def small_images(images: ImageSet, rows: Iterable[int], *, progress: ShowProgress = False) -> NDArray[np.uint8]:
    """(n, 32 * 32 * 3) small versions of some images, area by area the mean colour; zeros where one cannot be read."""
    rows = list(rows)
    found = np.zeros((len(rows), SIDE * SIDE * 3), dtype=np.uint8)
    with progress_bar(len(rows), show=progress, what="looking for copies", unit="images") as advance:
        for place, row in enumerate(rows):
            try:
                found[place] = _small(images.images[row])
            except (OSError, ValueError, SyntaxError):  # it was readable when it was embedded; here it is no copy
                continue
            finally:
                advance(1)
    return found


def _small(image: ImageLike) -> NDArray[np.uint8]:
    read = load_image(image, at_least=4 * SIDE)  # JPEG files are decoded at a fraction of their size
    return np.asarray(read.resize((SIDE, SIDE), Image.Resampling.BOX)).reshape(-1)


def _are_copies(
    small: NDArray[np.uint8], queries: NDArray[np.int64], hits: NDArray[np.int64], correlation: float
) -> Tensor:
    """(Q, H) bool, by rows of `small`; False for hits that are `NOTHING`. An even image has no copies."""
    parts = []
    for first in range(0, len(queries), _AT_ONCE):
        best = hits[first : first + _AT_ONCE]
        query = _centred(small[queries[first : first + _AT_ONCE]])
        parts.append((np.einsum("qd,qhd->qh", query, _centred(small[best])) >= correlation) & (best != NOTHING))
    return torch.from_numpy(np.concatenate([*parts, np.zeros((0, hits.shape[1]), dtype=bool)]))


def _centred(small: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Small versions with mean 0 and length 1."""
    values = small.astype(np.float32)
    values -= values.mean(axis=-1, keepdims=True)
    unit: NDArray[np.float32] = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6)
    return unit


def _without_copies(
    split: QueryGallerySplit, hits: dict[int, Tensor], is_copy: dict[int, Tensor], images: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], dict[int, NDArray[np.int64]]]:
    """Of each query: whether it has a copy, and another relevant image; K -> its first hit that is no copy.

    The first other hit is 1 where it is right, 0 where it is wrong, -1 where there is none.
    """
    place = torch.full((images,), NOTHING, dtype=torch.int64)
    place[split.gallery] = torch.arange(len(split.gallery))
    first, relevant = {}, {}
    for k, best in hits.items():
        order = torch.where(best == NOTHING, NOTHING, place[best.clamp_min(0)])
        relevant[k] = split.relevant(order)
        other = (order != NOTHING) & ~is_copy[k]
        right = relevant[k].gather(1, other.int().argmax(dim=1, keepdim=True))[:, 0].long()
        first[k] = torch.where(other.any(dim=1), right, -1).numpy()
    shallow = min(hits)
    left = split.relevant_count > (is_copy[shallow] & relevant[shallow]).sum(dim=1)
    return is_copy[shallow].any(dim=1).numpy(), left.numpy(), first
