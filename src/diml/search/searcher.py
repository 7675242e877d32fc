"""Search an index: nearest neighbours by pooled vectors, re-ranked region by region, each hit with its ledger.

Legend: Q queries, K candidates, H hits.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from diml.data.images import image_name, load_image
from diml.matching import Ledger, Match, Matcher, Regions
from diml.models import EmbedderConfig, load_embedder
from diml.models.zoo import is_backbone
from diml.search.filters import Where, parse_where
from diml.search.index import open_store
from diml.search.sources import known_file
from diml.search.store import IndexConfig, decode_regions

if TYPE_CHECKING:
    from diml.data import ImageLike
    from diml.models import Embedder
    from diml.search.store import Store, Value


@dataclass(frozen=True, eq=False)
class SearchHit:
    """An image found by a search.

    Args:
        id: its name in the index.
        metadata: its columns; `source`, `path` and `content` are those of every index of `build_index`.
        score: what the hits are ordered by: that of the matcher, or the pooled cosine where nothing was re-ranked.
        pooled: cosine of the pooled vectors, in [-1, 1].
        structural: sum of plan * cosine over pairs of regions, in [-1, 1]; None where nothing was re-ranked.
        pooled_rank: rank, from 1, by the pooled cosine, before re-ranking.
    """

    id: str
    metadata: Mapping[str, Value]
    score: float
    pooled: float
    structural: float | None
    pooled_rank: int

    @property
    def file(self) -> Path | None:
        """The image file, in an index of `build_index`."""
        return known_file(self.metadata)


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult:
    """The hits of one query, best first.

    Args:
        query: name of the query.
        hits: H hits, at most k.
        regions: of the query, one image.
        hit_regions: of the hits, in their order; None in an index without regions.
        matcher: how the query was compared with the hits.
    """

    query: str
    hits: tuple[SearchHit, ...]
    regions: Regions
    hit_regions: Regions | None
    matcher: Matcher

    def __len__(self) -> int:
        return len(self.hits)

    @cached_property
    def match(self) -> Match:
        """The query compared with the hits, H pairs; computed on first access.

        Raises:
            ValueError: there are no hits, or the index has no regions.
        """
        if self.hit_regions is None or not self.hits:
            why = "no hits" if not self.hits else "an index of pooled vectors only (storage 'none')"
            raise ValueError(f"match: part-to-part matches need hits with regions, got {why}")
        return self.matcher.match(self.regions, self.hit_regions)

    def ledger(self, place: int) -> Ledger:
        """Return the contributions of pairs of regions to the score of hit `place` (from 0)."""
        return self.match.ledger(place)

    def to_dict(self, top: int = 10) -> dict[str, Any]:
        """Return plain values: query, matcher, and the hits with their ledgers; fractions throughout."""
        entries = []
        for place, hit in enumerate(self.hits):
            numbers = {name: getattr(hit, name) for name in ("id", "score", "pooled", "structural", "pooled_rank")}
            file = None if hit.file is None else str(hit.file)
            ledger = None if self.hit_regions is None else self.ledger(place).to_dict(top)
            entry = {"rank": place + 1, **numbers, "file": file, "metadata": dict(hit.metadata), "ledger": ledger}
            entries.append(entry)
        return {"query": self.query, "matcher": self.matcher.to_dict(), "hits": entries}

    def __repr__(self) -> str:
        best = f", best {self.hits[0].id!r} with score {self.hits[0].score:.4f}" if self.hits else ""
        return f"SearchResult({self.query!r}, {len(self)} hits{best})"

    def _repr_html_(self) -> str:
        """The hits as a table, for notebooks."""
        names = ("hit", "score", "pooled", "structural", "pooled rank", "image")
        rows = [
            (
                place,
                *("" if value is None else f"{value:.4f}" for value in (hit.score, hit.pooled, hit.structural)),
                hit.pooled_rank,
                html.escape(str(hit.file or hit.id)),
            )
            for place, hit in enumerate(self.hits, start=1)
        ]
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><tr>{head}</tr>{body}</table>"


class Searcher:
    """Finds the images of an index that are most similar to a query image.

    Args:
        store: the index.
        embedder: that of the index; loaded as the index records it when omitted.
        matcher: how images are compared; the index's own when omitted.

    Raises:
        ValueError: the embedder is not the one that the index was built with.

    Example:
        >>> with Searcher.open("photos.index") as searcher:  # doctest: +SKIP
        ...     result = searcher.search("query.jpg", k=10, where="label = 'milk'")
        ...     print(result.hits[0].file, result.ledger(0).top(3))
    """

    def __init__(self, store: Store, embedder: Embedder | None = None, *, matcher: Matcher | None = None) -> None:
        if embedder is not None:
            _require_embedder(embedder, store.config)
        self.store = store
        self.matcher = store.config.matcher if matcher is None else matcher
        self._embedder = embedder

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        *,
        model: str | None = None,
        matcher: Matcher | None = None,
        device: str = "cpu",
    ) -> Searcher:
        """Open an index together with its embedder.

        Args:
            uri: of the index; see `open_store`.
            model: present name or path of the embedder, if it has moved.
            matcher: how images are compared; the index's own when omitted.
            device: where queries are embedded.

        Raises:
            IndexNotFoundError: there is no index.
            ValueError, FileNotFoundError: the embedder is missing, or is another one.
        """
        store = open_store(uri)
        return cls(store, _load_embedder(store.config, model).to(device), matcher=matcher)

    @property
    def embedder(self) -> Embedder:
        """The embedder of queries."""
        if self._embedder is None:
            self._embedder = _load_embedder(self.store.config)
        return self._embedder

    def search(
        self,
        query: ImageLike | Regions,
        k: int = 10,
        *,
        rerank_at: int = 100,
        where: str | None = None,
        matcher: Matcher | None = None,
    ) -> SearchResult:
        """Find the k images most similar to a query.

        Args:
            query: a path, PIL image, tensor, array or the bytes of a file; or Regions of one image by `embedder`.
            k: number of hits, at least 1.
            rerank_at: K: how many of the nearest by pooled cosine are re-ranked by regions, at least k; 0: none.
            where: a condition on metadata, such as "label = 'milk'"; see `diml.search.filters.parse_where`.
            matcher: for this search, in place of `Searcher.matcher`.

        Raises:
            BadImageError, FileNotFoundError: the image cannot be read.
            ValueError: k, rerank_at or where is invalid, or the query is not a single image.
        """
        if k < 1 or rerank_at < 0:
            name, need, got = ("k", "at least 1", k) if k < 1 else ("rerank_at", "0 or more", rerank_at)
            raise ValueError(f"{name}: need {need}, got {got}")
        config = self.store.config
        if rerank_at and config.storage == "none":
            raise ValueError(
                "rerank_at: this index has pooled vectors only; search with rerank_at=0, or build one with regions"
            )
        condition = None if where is None else parse_where(where, config.columns)
        if isinstance(query, Regions):
            name, regions = "<regions>", query
        else:
            name, regions = image_name(query), self.embedder.embed(load_image(query)).to("cpu")
        if len(regions) != 1:
            raise ValueError(f"query: need Regions of one image, got {len(regions)}; search for one at a time")
        used = self.matcher if matcher is None else matcher
        return self._ranked(name, regions.to(torch.float32), k, rerank_at, condition, used)

    def _ranked(
        self, name: str, query: Regions, k: int, depth: int, where: Where | None, matcher: Matcher
    ) -> SearchResult:
        near = self.store.nearest(query.pooled.numpy(), max(k, depth), where=where)[0]
        ids = near.ids if depth else near.ids[:k]
        rows = self.store.regions(ids)  # a row removed since is left out, one replaced since is read as it is now
        rank_of = {name: rank for rank, name in enumerate(near.ids, start=1)}
        stored = decode_regions(rows, self.store.config) if self.store.config.storage != "none" else None
        pooled = torch.from_numpy(rows.pooled @ query.pooled[0].numpy())
        structural: Tensor | None = None
        if depth and len(rows):
            assert stored is not None
            pooled = stored.pooled.float() @ query.pooled[0]  # the same vectors as in the ledgers of the hits
            alone = replace(matcher, structural_weight=math.inf)
            structural = alone.score(query, stored, torch.arange(len(rows)).unsqueeze(0))[0]
        scores = (pooled if structural is None else matcher.combine(pooled, structural)).tolist()
        order = sorted(range(len(rows)), key=lambda row: (-scores[row], rows.ids[row]))[:k]
        hits = tuple(
            SearchHit(
                id=rows.ids[row],
                metadata=rows.metadata[row],
                score=scores[row],
                pooled=float(pooled[row]),
                structural=None if structural is None else float(structural[row]),
                pooled_rank=rank_of[rows.ids[row]],
            )
            for row in order
        )
        chosen = None if stored is None or not hits else stored[torch.tensor(order)].to(torch.float32)
        return SearchResult(name, hits, query, chosen, matcher)

    def close(self) -> None:
        """Close the index."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _load_embedder(config: IndexConfig, model: str | None = None) -> Embedder:
    """Load the embedder of an index, from `model` where it has moved; errors where it is missing or another one."""
    settings: dict[str, Any] = dict(config.model)
    source = settings["name_or_path"] if model is None else model
    wanted = EmbedderConfig.from_dict(settings["config"])
    changes: dict[str, Any] = {name: getattr(wanted, name) for name in ("grid", "preprocess", "pooled", "precision")}
    if is_backbone(source):
        changes |= {"head": wanted.head, "dim": wanted.dim, "token_pooling": wanted.token_pooling}
    try:
        embedder = load_embedder(source, architecture=settings["architecture"], **changes)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"model: the index was built with {source}, which is missing ({error}); give its present path"
        ) from error
    _require_embedder(embedder, config)
    return embedder


def _require_embedder(embedder: Embedder, config: IndexConfig) -> None:
    """Raise ValueError for another embedder than that of the index, whose vectors would not be comparable."""
    found = embedder.fingerprint()
    if found != config.embedder:
        built = config.model.get("name_or_path")
        raise ValueError(
            f"model: the index was built with another embedder ({built}, fingerprint {config.embedder[:12]}..., got "
            f"{found[:12]}...); its settings or weights differ; use that one, or build a new index"
        )
