"""Search an index: the nearest by pooled vectors, re-ranked region by region, each hit with its ledger.

Legend: Q queries, K candidates, H hits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

import numpy as np
import torch

from diml.data.images import image_name, load_image
from diml.matching import Ledger, Match, MatchSettings, QuantizedRegions, Regions, match, rerank
from diml.search.coding import decode_regions
from diml.search.filters import Where, parse_where
from diml.search.opening import open_store
from diml.search.remembered import load_remembered, require_embedder
from diml.search.sources import known_file

if TYPE_CHECKING:
    from diml.data import ImageLike
    from diml.models import Embedder
    from diml.search.store import Store, Value

#: The paper's K.
DEFAULT_RERANK: Final = 100


@dataclass(frozen=True, eq=False)
class Hit:
    """A image that was found.

    Attributes:
        id: its name in the index.
        metadata: its columns; `source`, `path` and `content` are those of every index of `build_index`.
        score: what the hits are ordered by: pooled + structural, or pooled alone where nothing was re-ranked.
        pooled: cosine of the pooled vectors.
        structural: sum of part-to-part contributions; None where nothing was re-ranked.
        pooled_rank: place, from 1, by the pooled cosine: where it stood before re-ranking.
    """

    id: str
    metadata: Mapping[str, Value]
    score: float
    pooled: float
    structural: float | None
    pooled_rank: int

    @property
    def file(self) -> Path | None:
        """Where the image lies, in indices of `build_index`."""
        return known_file(self.metadata)


@dataclass(frozen=True, eq=False)
class Found:
    """The hits of one query, best first.

    Attributes:
        query: what the query is called.
        hits: at most k.
        regions: of the query, one image.
        hit_regions: of the hits, in their order; None in an index without regions.
        settings: of `match`.
    """

    query: str
    hits: tuple[Hit, ...]
    regions: Regions
    hit_regions: Regions | None
    settings: MatchSettings

    def __len__(self) -> int:
        return len(self.hits)

    @cached_property
    def match(self) -> Match:
        """The hits compared with the query, H pairs; computed when first asked for.

        Raises:
            ValueError: there are no hits, or the index has no regions.
        """
        if self.hit_regions is None or not self.hits:
            why = "no hits" if not self.hits else "an index of pooled vectors only (storage 'none')"
            raise ValueError(f"match: part-to-part matches need regions, got {why}")
        return match(self.regions, self.hit_regions, **self.settings)

    def ledger(self, place: int) -> Ledger:
        """Why hit `place` (from 0) has its score: contributions that sum to its structural similarity."""
        return self.match.ledger(place)

    def to_dict(self, top: int = 10) -> dict[str, Any]:
        """Plain numbers and lists: the query, and the hits with their ledgers; fractions throughout."""
        told = []
        for place, hit in enumerate(self.hits):
            numbers = {name: getattr(hit, name) for name in ("id", "score", "pooled", "structural", "pooled_rank")}
            file = None if hit.file is None else str(hit.file)
            ledger = None if self.hit_regions is None else self.ledger(place).to_dict(top)
            entry = {"rank": place + 1, **numbers, "file": file, "metadata": dict(hit.metadata), "ledger": ledger}
            told.append(entry)
        return {"query": self.query, "settings": dict(self.settings), "hits": told}


class Searcher:
    """Finds the images of an index that are most alike to a image.

    Args:
        store: the index.
        embedder: that of the index; loaded as the index remembers it when omitted.

    Raises:
        ValueError: it is another embedder than the index was made with.

    Example:
        >>> with Searcher.open("photos.index") as searcher:  # doctest: +SKIP
        ...     found = searcher.search("query.jpg", k=10, where="label = 'milk'")
        ...     print(found.hits[0].file, found.ledger(0).top(3))
    """

    def __init__(self, store: Store, embedder: Embedder | None = None) -> None:
        if embedder is not None:
            require_embedder(embedder, store.config)
        self.store = store
        self._embedder = embedder

    @classmethod
    def open(cls, uri: str | os.PathLike[str], *, model: str | None = None, device: str = "cpu") -> Searcher:
        """Open an index with its embedder.

        Args:
            uri: of the index; see `open_store`.
            model: where the embedder is now, if it has moved.
            device: where to embed queries.

        Raises:
            IndexNotFoundError: there is no index.
            ValueError, FileNotFoundError: the embedder is not there any more, or is another one.
        """
        store = open_store(uri)
        return cls(store, load_remembered(store.config, model).to(device))

    @property
    def embedder(self) -> Embedder:
        """What embeds queries."""
        if self._embedder is None:
            self._embedder = load_remembered(self.store.config)
        return self._embedder

    def search(
        self,
        image: ImageLike,
        k: int = 10,
        *,
        rerank: int = DEFAULT_RERANK,
        where: str | None = None,
        **settings: Unpack[MatchSettings],
    ) -> Found:
        """The k images most alike to a image.

        Args:
            image: a path, PIL image, tensor, array or the bytes of a file.
            k: how many hits, at least 1.
            rerank: K: how many of the nearest by pooled cosine to re-rank by regions, at least k are; 0: none.
            where: a condition on metadata, such as "label = 'milk'"; see `parse_where`.
            settings: marginals, epsilon, tolerance, max_iterations as in `diml.matching.match`.

        Raises:
            BadImageError, FileNotFoundError: the image cannot be used.
            ValueError: k, rerank, where or a setting is out of range.
        """
        name = image_name(image)
        query = self.embedder.embed(load_image(image)).to("cpu")
        return self.search_regions(query, k, rerank=rerank, where=where, name=name, **settings)

    def search_regions(
        self,
        query: Regions,
        k: int = 10,
        *,
        rerank: int = DEFAULT_RERANK,
        where: str | None = None,
        name: str = "<regions>",
        **settings: Unpack[MatchSettings],
    ) -> Found:
        """Search with a image that is embedded already: Regions of one image, by the embedder of the index."""
        if len(query) != 1:
            raise ValueError(f"query: need Regions of one image, got {len(query)}; search for one after the other")
        if k < 1 or rerank < 0:
            name, need, got = ("k", "at least 1", k) if k < 1 else ("rerank", "0 or more", rerank)
            raise ValueError(f"{name}: need {need}, got {got}")
        config = self.store.config
        if rerank and config.storage == "none":
            raise ValueError(
                "rerank: this index has pooled vectors only; search with rerank 0, or build one with regions"
            )
        condition = None if where is None else parse_where(where, config.columns)
        query = query.to(torch.float32)
        return self._ranked(query, k, rerank, condition, name, settings)

    def _ranked(
        self, query: Regions, k: int, depth: int, where: Where | None, name: str, settings: MatchSettings
    ) -> Found:
        near = self.store.nearest(query.pooled.numpy(), max(k, depth), where=where)[0]
        ids = near.ids if depth else near.ids[:k]
        rows = self.store.regions(ids)  # a row removed since is left out, one replaced since is taken as it is now
        before = {name: rank + 1 for rank, name in enumerate(near.ids)}
        stored = decode_regions(rows, self.store.config) if self.store.config.storage != "none" else None
        pooled = rows.pooled @ query.pooled[0].numpy()
        structural = None
        if depth and len(rows):
            assert stored is not None
            pooled = (stored.pooled.float() @ query.pooled[0]).numpy()  # as the ledgers of the hits have it
            structural = _structural(query, stored, settings)
        scores = pooled if structural is None else pooled + structural
        order = sorted(range(len(rows)), key=lambda row: (-scores[row], rows.ids[row]))[:k]
        hits = tuple(
            Hit(
                id=rows.ids[row],
                metadata=rows.metadata[row],
                score=float(scores[row]),
                pooled=float(pooled[row]),
                structural=None if structural is None else float(structural[row]),
                pooled_rank=before[rows.ids[row]],
            )
            for row in order
        )
        chosen = None if stored is None or not hits else stored[torch.tensor(order)].to(torch.float32)
        return Found(name, hits, query, chosen, settings)

    def close(self) -> None:
        """Let go of the index."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _structural(query: Regions, stored: Regions | QuantizedRegions, settings: MatchSettings) -> np.ndarray:
    """(K,) structural similarity of the query to each stored image."""
    everyone = torch.arange(len(stored)).unsqueeze(0)
    return rerank(query, stored, everyone, score="structural", **settings)[0].numpy()
