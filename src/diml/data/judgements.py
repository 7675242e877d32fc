"""Which gallery images are right for each query, listed image by image, where classes do not say it.

Legend: N images of a set, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Judgements:
    """Relevant and ignored images of every query, as landmark retrieval has them.

    All other gallery images are wrong. Rows that are not in the gallery are allowed and count for nothing.

    Args:
        relevant: Q lists of image rows that are right for the query.
        ignored: Q lists of image rows that are neither right nor wrong for it; nothing is ignored when omitted.

    Raises:
        ValueError: The numbers of lists differ, rows are no whole numbers, or an image is in both lists of a query.

    Example:
        >>> Judgements([[3, 4], [5]], [[], [4]])
        Judgements(2 queries, 3 relevant, 1 ignored)
    """

    relevant: tuple[Rows, ...]
    ignored: tuple[Rows, ...]

    def __init__(self, relevant: Sequence[ArrayLike], ignored: Sequence[ArrayLike] | None = None) -> None:
        right = tuple(_rows(rows, "relevant", query) for query, rows in enumerate(relevant))
        unclear: Sequence[ArrayLike] = [()] * len(right) if ignored is None else ignored
        neither = tuple(_rows(rows, "ignored", query) for query, rows in enumerate(unclear))
        if len(right) != len(neither):
            raise ValueError(
                f"judgements: need {len(right)} lists of ignored images, as of relevant ones, got {len(neither)}"
            )
        for query, (yes, maybe) in enumerate(zip(right, neither, strict=True)):
            both = np.intersect1d(yes, maybe)
            if len(both):
                raise ValueError(
                    f"judgements: image {both[0]} is both relevant to and ignored for query {query}; list it once"
                )
        object.__setattr__(self, "relevant", right)
        object.__setattr__(self, "ignored", neither)

    def __len__(self) -> int:
        return len(self.relevant)

    def __repr__(self) -> str:
        right, neither = (sum(map(len, lists)) for lists in (self.relevant, self.ignored))
        return f"Judgements({len(self)} queries, {right:,} relevant, {neither:,} ignored)"

    @property
    def largest(self) -> int:
        """The largest image row, -1 where there is none."""
        return max((int(rows[-1]) for rows in (*self.relevant, *self.ignored) if len(rows)), default=-1)

    def moved(self, queries: Rows, position: Rows) -> Judgements:
        """The judgements of some queries, with new numbers of the images.

        Args:
            queries: Places of the queries that remain, among the Q.
            position: (N,) new row of every image, -1 for those that are left out.
        """
        lists = [[_moved(side[query], position) for query in queries] for side in (self.relevant, self.ignored)]
        return Judgements(*lists)


def _moved(rows: Rows, position: Rows) -> Rows:
    new: Rows = position[rows]
    return new[new >= 0]


def _rows(values: ArrayLike, side: str, query: int) -> Rows:
    """Distinct rows in ascending order, read-only."""
    array = np.asarray(values)
    if array.size == 0:
        array = np.empty(0, dtype=np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or (array.size and array.min() < 0):
        raise ValueError(
            f"judgements: need a list of image rows, 0 or more, as {side} images of query number {query}, got "
            f"{array.dtype} of shape {array.shape}"
        )
    rows: Rows = np.unique(array).astype(np.int64)
    rows.setflags(write=False)
    return rows
