"""Pairs of similar images within an index: near-duplicates, and the same thing under different labels.

Legend: N rows of a part, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from diml.matching import Matcher
from diml.search.filters import Where, parse_where
from diml.search.sources import known_file
from diml.search.store import decode_regions
from diml.search.tuned import index_matcher

if TYPE_CHECKING:
    from diml.search.store import Neighbours, Rows, Store, Value

_PART: Final = 64


@dataclass(frozen=True)
class SimilarPair:
    """Two similar images of an index; `a` is before `b` in the order of ids.

    Args:
        a, b: ids.
        score: that of the matcher.
        pooled: cosine of the pooled vectors.
        structural: sum of plan * cosine; None where only pooled vectors were compared.
        metadata_a, metadata_b: columns of both.
    """

    a: str
    b: str
    score: float
    pooled: float
    structural: float | None
    metadata_a: Mapping[str, Value]
    metadata_b: Mapping[str, Value]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: scores, and id, file and metadata of both images."""
        plain: dict[str, Any] = {"score": self.score, "pooled": self.pooled, "structural": self.structural}
        for side, name, metadata in (("a", self.a, self.metadata_a), ("b", self.b, self.metadata_b)):
            file = known_file(metadata)
            plain[side] = {"id": name, "file": None if file is None else str(file), "metadata": dict(metadata)}
        return plain


def alike_pairs(
    store: Store,
    threshold: float,
    *,
    matcher: Matcher | None = None,
    neighbours: int = 10,
    where: str | None = None,
    differ: str | None = None,
) -> Iterator[SimilarPair]:
    """Find every pair of images of an index whose score reaches the threshold; each is yielded once, when found.

    Each image is compared with its nearest neighbours by pooled cosine, and region by region with those that can still
    reach the threshold (the structural score is at most 1). Memory grows with the number of pairs found, not with the
    square of the number of images.

    Args:
        store: the index; concurrent writes may be seen or not.
        threshold: minimum score; with the default matcher in [-2, 2].
        matcher: how images are compared; the index's own when omitted. With `structural_weight=0` only pooled vectors
            are compared.
        neighbours: number of nearest neighbours compared for each image; an image with more duplicates yields only
            this many.
        where: only images that satisfy this condition.
        differ: only pairs with different, non-empty values in this column, such as one thing under two labels.

    Returns:
        An iterator; arguments are checked before the first pair.

    Raises:
        ValueError: an argument is invalid, or an index without regions is to be compared by regions.

    Example:
        >>> for pair in alike_pairs(open_store("photos.index"), 1.9):  # doctest: +SKIP
        ...     print(f"{pair.score:.3f}", pair.a, pair.b)
    """
    config = store.config
    if differ is not None and differ not in config.columns:
        raise ValueError(f"differ: no column {differ!r}; there are {', '.join(config.columns)}")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold: need a finite score, got {threshold}; with the default matcher in [-2, 2]")
    if neighbours < 1:
        raise ValueError(f"neighbours: need at least 1, got {neighbours}")
    matcher = index_matcher(store).matcher if matcher is None else matcher
    if matcher.structural_weight and config.storage == "none":
        raise ValueError(
            "matcher: this index has pooled vectors only; compare those with structural_weight 0 "
            "(--rerank-at 0), or build one with regions"
        )
    if not matcher.symmetric:
        raise ValueError(
            f"matcher: neither image of a pair is the query, as matching {matcher.matching!r} needs; use 'maxsim'"
        )
    condition = None if where is None else parse_where(where, config.columns)
    names = [name for part in store.listing(condition, columns=[]) for name in part.ids]
    return _pairs(store, names, threshold, matcher, neighbours, condition, differ)


def _pairs(
    store: Store,
    names: list[str],
    threshold: float,
    matcher: Matcher,
    neighbours: int,
    where: Where | None,
    differ: str | None,
) -> Iterator[SimilarPair]:
    done: set[tuple[str, str]] = set()
    least = threshold - matcher.structural_weight  # the structural score is at most 1
    for start in range(0, len(names), _PART):
        rows = store.regions(names[start : start + _PART])
        if not len(rows):
            continue
        found = store.nearest(rows.pooled, neighbours + 1, where=where)
        for pair in _scored(store, rows, _candidates(rows, found, least, done), matcher):
            values = [] if differ is None else [pair.metadata_a.get(differ), pair.metadata_b.get(differ)]
            done.add((pair.a, pair.b))
            if pair.score >= threshold and (differ is None or (None not in values and values[0] != values[1])):
                yield pair


def _candidates(rows: Rows, found: list[Neighbours], least: float, done: set[tuple[str, str]]) -> list[tuple[int, str]]:
    """(row, id of the other) of pairs that can reach the threshold and have not been compared yet."""
    chosen: dict[tuple[str, str], tuple[int, str]] = {}
    for row, near in enumerate(found):
        for other, cosine in zip(near.ids, near.cosine.tolist(), strict=True):
            pair = (min(rows.ids[row], other), max(rows.ids[row], other))
            if other != rows.ids[row] and cosine >= least - 1e-3 and pair not in done:
                chosen.setdefault(pair, (row, other))
    return list(chosen.values())


def _scored(store: Store, rows: Rows, pairs: list[tuple[int, str]], matcher: Matcher) -> Iterator[SimilarPair]:
    others = store.regions(list(dict.fromkeys(other for _, other in pairs)))
    place = {name: at for at, name in enumerate(others.ids)}
    pairs = [(row, other) for row, other in pairs if other in place]  # others were removed in the meantime
    if not pairs:
        return
    left, right = [row for row, _ in pairs], [place[other] for _, other in pairs]
    pooled = (rows.pooled[left] * others.pooled[right]).sum(axis=1)
    parts: list[float | None] = [None] * len(pairs)
    if matcher.structural_weight:
        query = decode_regions(rows, store.config)[torch.tensor(left)].to(torch.float32)
        gallery = decode_regions(others, store.config)
        alone = replace(matcher, structural_weight=math.inf)
        parts = list(alone.score(query, gallery, torch.tensor(right).unsqueeze(1))[:, 0].tolist())
    for (row, other), at, cosine, part in zip(pairs, right, pooled.tolist(), parts, strict=True):
        sides = sorted([(rows.ids[row], rows.metadata[row]), (other, others.metadata[at])], key=lambda side: side[0])
        (a, metadata_a), (b, metadata_b) = sides
        score = cosine if part is None else matcher.combine(cosine, part)
        yield SimilarPair(a, b, score, cosine, part, metadata_a, metadata_b)
