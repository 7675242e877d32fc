"""Pairs of images of an index that are alike: near-duplicates, and those that are labelled differently.

Legend: N rows of a part, K candidates of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Unpack

import torch

from diml.matching import MatchSettings, rerank
from diml.search.coding import decode_regions
from diml.search.filters import parse_where
from diml.search.sources import known_file

if TYPE_CHECKING:
    from diml.search.store import Neighbours, Rows, Store, Value

_PART: Final = 64


@dataclass(frozen=True)
class Pair:
    """Two images that are alike: scores as of `Hit`, `a` before `b` in the order of ids."""

    a: str
    b: str
    score: float
    pooled: float
    structural: float | None
    metadata_a: Mapping[str, Value]
    metadata_b: Mapping[str, Value]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ids, scores, files and metadata of both."""
        told: dict[str, Any] = {"score": self.score, "pooled": self.pooled, "structural": self.structural}
        for side, name, metadata in (("a", self.a, self.metadata_a), ("b", self.b, self.metadata_b)):
            file = known_file(metadata)
            told[side] = {"id": name, "file": None if file is None else str(file), "metadata": dict(metadata)}
        return told


def alike_pairs(
    store: Store,
    threshold: float,
    *,
    neighbours: int = 10,
    where: str | None = None,
    differ: str | None = None,
    structural: bool = True,
    **settings: Unpack[MatchSettings],
) -> Iterator[Pair]:
    """Every pair of an index whose score reaches the threshold, each once, as they are found.

    Each image is compared with its nearest ones by pooled cosine, those that can still reach the threshold region by
    region: the structural part is 1 at most. Memory grows with the number of pairs found, not with that of images
    squared.

    Args:
        store: the index; what is written to it meanwhile may be seen or not.
        threshold: least score, in [-2, 2] of pooled + structural, in [-1, 1] of pooled alone.
        neighbours: how many nearest images of each are looked at; a image with more duplicates shows so many.
        where: only images that fit this condition.
        differ: only pairs with different values in this column, none empty: the same thing under two labels.
        structural: False compares pooled vectors only.
        settings: as of `diml.matching.match`.

    Raises:
        ValueError: a setting is out of range, no such column, or an index without regions is compared by regions.
    """
    config = store.config
    if differ is not None and differ not in config.columns:
        raise ValueError(f"differ: no column {differ!r}; there are {', '.join(config.columns)}")
    if neighbours < 1:
        raise ValueError(f"neighbours: need at least 1, got {neighbours}")
    if structural and config.storage == "none":
        raise ValueError("structural: this index has pooled vectors only; compare those alone")
    condition = None if where is None else parse_where(where, config.columns)
    names = [name for part in store.listing(condition, columns=[]) for name in part.ids]
    return _pairs(store, names, threshold, neighbours, condition, differ, structural, settings)


def _pairs(
    store: Store,
    names: list[str],
    threshold: float,
    neighbours: int,
    condition: Any,
    differ: str | None,
    structural: bool,
    settings: MatchSettings,
) -> Iterator[Pair]:
    told: set[tuple[str, str]] = set()
    least = threshold - 1 if structural else threshold
    for start in range(0, len(names), _PART):
        rows = store.regions(names[start : start + _PART])
        if not len(rows):
            continue
        found = store.nearest(rows.pooled, neighbours + 1, where=condition)
        for pair in _scored(store, rows, _candidates(rows, found, least, told), structural, settings):
            values = [] if differ is None else [pair.metadata_a.get(differ), pair.metadata_b.get(differ)]
            told.add((pair.a, pair.b))
            if pair.score >= threshold and (differ is None or (None not in values and values[0] != values[1])):
                yield pair


def _candidates(rows: Rows, found: list[Neighbours], least: float, told: set[tuple[str, str]]) -> list[tuple[int, str]]:
    """(row, id of the other) of pairs that may reach the threshold and were not compared before."""
    chosen: dict[tuple[str, str], tuple[int, str]] = {}
    for row, near in enumerate(found):
        for other, cosine in zip(near.ids, near.cosine.tolist(), strict=True):
            pair = (min(rows.ids[row], other), max(rows.ids[row], other))
            if other != rows.ids[row] and cosine >= least - 1e-3 and pair not in told:
                chosen.setdefault(pair, (row, other))
    return list(chosen.values())


def _scored(
    store: Store, rows: Rows, pairs: list[tuple[int, str]], structural: bool, settings: MatchSettings
) -> Iterator[Pair]:
    others = store.regions(list(dict.fromkeys(other for _, other in pairs)))
    place = {name: at for at, name in enumerate(others.ids)}
    pairs = [(row, other) for row, other in pairs if other in place]  # others were removed meanwhile
    if not pairs:
        return
    left, right = [row for row, _ in pairs], [place[other] for _, other in pairs]
    pooled = (rows.pooled[left] * others.pooled[right]).sum(axis=1)
    parts: list[float | None] = [None] * len(pairs)
    if structural:
        query = decode_regions(rows, store.config)[torch.tensor(left)].to(torch.float32)
        candidates = torch.tensor(right).unsqueeze(1)
        gallery = decode_regions(others, store.config)
        parts = list(rerank(query, gallery, candidates, score="structural", **settings)[:, 0].tolist())
    for (row, other), at, cosine, part in zip(pairs, right, pooled.tolist(), parts, strict=True):
        sides = sorted([(rows.ids[row], rows.metadata[row]), (other, others.metadata[at])], key=lambda side: side[0])
        (a, metadata_a), (b, metadata_b) = sides
        score = cosine + (part or 0.0)
        yield Pair(a, b, score, cosine, part, metadata_a, metadata_b)
