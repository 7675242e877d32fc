"""Search an index: nearest neighbours by pooled vectors, re-ranked region by region, each hit with its ledger.

Legend: Q queries, K candidates, H hits.
"""

from __future__ import annotations

import hashlib
import html
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from PIL import Image
from torch import Tensor

from diml.calibration.calibrator import FILE, Calibrator, load_calibration
from diml.calibration.finding import FoundCalibration, find_calibration
from diml.calibration.hits import FALSE_ACCEPT_RATE, GalleryVerdict, JudgedHits, judge_hits
from diml.data.images import BadImage, BadImageError, image_name, load_image
from diml.data.query_box import QueryBox
from diml.matching import LearnedMatcher, Ledger, Match, Matcher, Regions
from diml.models.shares import with_shares
from diml.progress import ShowProgress, progress_bar
from diml.search.filters import And, ColumnMembership, Where, parse_where
from diml.search.index import content_of, open_store
from diml.search.index_model import load_index_embedder, require_embedder
from diml.search.sources import indexed_content, known_file
from diml.search.store import decode_regions
from diml.search.tuned import index_matcher

if TYPE_CHECKING:
    from diml.data import ImageLike
    from diml.explain import Explanation
    from diml.models import Embedder
    from diml.search.store import Store, Value


#: Images are kept at twice the network's resolution, so that they are sharp in figures.
_VIEW_SCALE: Final = 2
#: Why hits are embedded again.
_KEPT: Final = "the index keeps no shares of the pooled vectors"
#: Why hits have no probability.
NOT_RERANKED: Final = (
    "Ranked by the pooled cosine alone: the calibration is of scores with the structural part, so hits have no "
    "probability."
)


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
        probability: that it is of the query's class, among the other candidates of this query; None without a
            calibration, and where nothing was re-ranked.
    """

    id: str
    metadata: Mapping[str, Value]
    score: float
    pooled: float
    structural: float | None
    pooled_rank: int
    probability: float | None = None

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
        scores: of all re-ranked candidates, best first; empty where nothing was re-ranked.
        image: of the query, as it was embedded; None where Regions were given.
        calibrator: what the scores mean; None without a calibration that fits.
        verdict: whether the query is in the gallery; None where that cannot be said.
        notices: what has to be said of the numbers, one line each.
    """

    query: str
    hits: tuple[SearchHit, ...]
    regions: Regions
    hit_regions: Regions | None
    matcher: Matcher
    scores: tuple[float, ...] = ()
    image: Image.Image | None = None
    calibrator: Calibrator | None = None
    verdict: GalleryVerdict | None = None
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def in_gallery(self) -> bool | None:
        """Whether the query is probably in the gallery (`verdict` has the threshold); None where that is unknown."""
        return None if self.verdict is None else self.verdict.likely

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

    def to_dict(self, top: int = 10, explained: Sequence[Explanation] = (), *, ledgers: bool = True) -> dict[str, Any]:
        """Return plain values: query, matcher, calibration, in_gallery, notices, and the hits; fractions throughout.

        Args:
            top: number of largest contributions to list of each hit.
            explained: of `Searcher.explain`: the first hits also have a `summary`, and their ledgers the division of
                the pooled cosine.
            ledgers: also the ledger of each hit, with plan and cosines.
        """
        entries = []
        for place, hit in enumerate(self.hits):
            named = ("id", "score", "probability", "pooled", "structural", "pooled_rank")
            numbers = {name: getattr(hit, name) for name in named}
            file = None if hit.file is None else str(hit.file)
            entry = {"rank": place + 1, **numbers, "file": file, "metadata": dict(hit.metadata)}
            known = place < len(explained)
            entry["summary"] = explained[place].summary().to_dict() if known else None
            if ledgers:
                own = explained[place].ledger() if known else None if self.hit_regions is None else self.ledger(place)
                entry["ledger"] = None if own is None else own.to_dict(top)
            entries.append(entry)
        about = None
        if self.calibrator is not None:
            about = {
                name: getattr(self.calibrator, name) for name in ("model", "data", "kind", "classes", "pairs", "depth")
            }
        return {
            "query": self.query,
            "matcher": self.matcher.to_dict(),
            "calibration": about,
            "in_gallery": None if self.verdict is None else self.verdict.to_dict(),
            "notices": list(self.notices),
            "hits": entries,
        }

    def __repr__(self) -> str:
        best = f", best {self.hits[0].id!r} with score {self.hits[0].score:.4f}" if self.hits else ""
        return f"SearchResult({self.query!r}, {len(self)} hits{best})"

    def _repr_html_(self) -> str:
        """The hits as a table, for notebooks."""
        names = ("hit", "probability", "score", "pooled", "structural", "pooled rank", "image")
        rows = [
            (
                place,
                "" if hit.probability is None else f"{100 * hit.probability:.0f} %",
                *("" if value is None else f"{value:.4f}" for value in (hit.score, hit.pooled, hit.structural)),
                hit.pooled_rank,
                html.escape(str(hit.file or hit.id)),
            )
            for place, hit in enumerate(self.hits, start=1)
        ]
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        said = "" if self.verdict is None else f"<caption>{html.escape(str(self.verdict))}</caption>"
        return f"<table>{said}<tr>{head}</tr>{body}</table>"


class Searcher:
    """Finds the images of an index that are most similar to a query image.

    Args:
        store: the index.
        embedder: that of the index; loaded as the index records it when omitted.
        matcher: how images are compared; the index's own when omitted, as tuned if it was.
        calibration: folder or file of a calibration; when omitted that which is kept with the index, else with its
            model, if it fits.
        model: folder of the embedder, where it is not the one that the index records.

    Raises:
        ValueError: the embedder is not the one that the index was built with, or `calibration` is of another one.
        FileNotFoundError: there is no calibration in the folder given.

    Example:
        >>> with Searcher.open("photos.index") as searcher:  # doctest: +SKIP
        ...     result = searcher.search("query.jpg", k=10, where="label = 'milk'")
        ...     print(result.in_gallery, result.hits[0].file, result.hits[0].probability, result.ledger(0).top(3))
    """

    def __init__(
        self,
        store: Store,
        embedder: Embedder | None = None,
        *,
        matcher: Matcher | None = None,
        calibration: str | os.PathLike[str] | None = None,
        model: str | None = None,
    ) -> None:
        if embedder is not None:
            require_embedder(embedder, store.config)
        self.store = store
        self._embedder = embedder
        self._named = calibration
        #: Name or path of the embedder.
        self.source = model or str(store.config.model.get("name_or_path", ""))
        own = index_matcher(store)
        self.matcher = own.matcher if matcher is None else matcher
        #: K of searches that do not say otherwise.
        self.rerank_at = own.rerank_at
        if isinstance(self.matcher, LearnedMatcher) and self.matcher.scorer is None:
            self.matcher = self._with_scorer(self.matcher)
        self._calibrations: dict[Matcher, FoundCalibration] = {}
        if calibration is not None:
            load_calibration(calibration, fingerprint=store.config.embedder)

    def _with_scorer(self, matcher: LearnedMatcher) -> LearnedMatcher:
        """The learned matcher that the index names, with the network that is saved with its embedder."""
        own = self.embedder.matcher
        if isinstance(own, LearnedMatcher) and own.scorer is not None and own.scorer_id == matcher.scorer_id:
            return matcher.with_scorer(own.scorer)
        raise ValueError(
            f"matcher: the index was built with the learned scorer {matcher.scorer_id[:12]}..., which "
            f"{self.source} does not have (any more); open the model that it was built with, or give another matcher, "
            "such as Matcher()"
        )

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        *,
        model: str | None = None,
        matcher: Matcher | None = None,
        calibration: str | os.PathLike[str] | None = None,
        device: str = "cpu",
    ) -> Searcher:
        """Open an index together with its embedder.

        Args:
            uri: of the index; see `open_store`.
            model: present name or path of the embedder, if it has moved.
            matcher, calibration: as of `Searcher`.
            device: where queries are embedded.

        Raises:
            IndexNotFoundError: there is no index.
            ValueError, FileNotFoundError: the embedder is missing, or is another one; `calibration` does not fit.
        """
        store = open_store(uri)
        embedder = load_index_embedder(store, model).to(device)
        return cls(store, embedder, matcher=matcher, calibration=calibration, model=model)

    @property
    def embedder(self) -> Embedder:
        """The embedder of queries."""
        if self._embedder is None:
            self._embedder = load_index_embedder(self.store)
        return self._embedder

    @property
    def calibration(self) -> FoundCalibration:
        """What the scores of this searcher mean, where that is known; else why not."""
        return self.calibration_for(self.matcher)

    def calibration_for(self, matcher: Matcher) -> FoundCalibration:
        """The calibration of comparisons by a matcher: the one that was named, else that of the index or its model.

        Raises:
            ValueError: the one that was named belongs to another matcher.
        """
        if matcher not in self._calibrations:
            kept = self.store.read_text(FILE)
            self._calibrations[matcher] = find_calibration(
                [self.source] if self.source else [],
                fingerprint=self.store.config.embedder,
                matcher=matcher,
                named=self._named,
                texts={} if kept is None else {"the index": kept},
            )
        return self._calibrations[matcher]

    def search(
        self,
        query: ImageLike | Regions,
        k: int = 10,
        *,
        rerank_at: int | None = None,
        where: str | None = None,
        matcher: Matcher | None = None,
        exclude: str | Collection[str] | None = None,
        exclude_self: bool = False,
        box: QueryBox | None = None,
        false_accept_rate: float = FALSE_ACCEPT_RATE,
    ) -> SearchResult:
        """Find the k images most similar to a query.

        Args:
            query: a path, PIL image, tensor, array or the bytes of a file; or Regions of one image by `embedder`.
            k: number of hits, at least 1.
            rerank_at: K: how many of the nearest by pooled cosine are re-ranked by regions, at least k; 0: none; when
                omitted as tuned for the index, else 100.
            where: a condition on metadata, such as "label = 'milk'"; see `diml.search.filters.parse_where`.
            matcher: for this search, in place of `Searcher.matcher`.
            exclude: id of an image that is left out, such as the query itself; or several.
            exclude_self: leave out all images whose file has the same content as that of the query, a path or bytes.
            box: the part of the query that is searched for; it alone is embedded.
            false_accept_rate: share of the queries whose class is missing from the index that may be taken to be
                there, in (0, 1); for `SearchResult.in_gallery`.

        Raises:
            BadImageError, FileNotFoundError: the image cannot be read.
            ValueError: k, rerank_at or where is invalid, the query is not a single image, or `exclude_self` is asked
                for of something else than a file, or of an index without contents; or a box has no place in the image
                (`BoxError`), or is given with Regions.
        """
        used = self.matcher if matcher is None else matcher
        rerank_at = self.rerank_at if rerank_at is None else rerank_at
        condition = self._checked(k, rerank_at, where, used)
        if isinstance(query, Regions):
            if box is not None:
                raise ValueError("box: need an image to cut it from, got Regions; embed the part of the image")
            name, image, regions = "query", None, query
        else:
            name = image_name(query) if isinstance(query, str | os.PathLike) else "query"
            if box is None:
                image = load_image(query, at_least=self.embedder.preprocess.at_least)
            else:
                image = box.crop(load_image(query))
            regions = self.embedder.embed(image, shares=True).to("cpu")
        if len(regions) != 1:
            raise ValueError(f"query: need Regions of one image, got {len(regions)}; search for one at a time")
        excluded = [{exclude} if isinstance(exclude, str) else set(exclude or ())]
        if exclude_self:
            excluded[0] |= self._same_content([_content(query)], condition)[0]
        (found,) = self._found(regions, k, rerank_at, condition, used, excluded, false_accept_rate)
        return replace(found, query=name, image=image)

    def search_files(
        self,
        files: Sequence[str | os.PathLike[str]],
        k: int = 10,
        *,
        rerank_at: int | None = None,
        where: str | None = None,
        matcher: Matcher | None = None,
        exclude_self: bool = False,
        false_accept_rate: float = FALSE_ACCEPT_RATE,
        shares: bool = True,
        batch_size: int = 64,
        workers: int | None = None,
        progress: ShowProgress = False,
    ) -> Iterator[SearchResult | BadImage]:
        """Find the k images most similar to each of many queries, which are embedded and looked up in batches.

        Args:
            files: N image files.
            k, rerank_at, where, matcher, exclude_self, false_accept_rate: as of `search`, for every query.
            shares: compute what `explain` needs to divide the whole score among parts.
            batch_size, workers: as of `Embedder.embed`.
            progress: show a bar of the queries; or a function, see `diml.progress.progress_bar`.

        Yields:
            The result of each query, in the order of the files, as `search` gives it, but without `image`; after those
            of a batch, the files of it that cannot be read.

        Raises:
            ValueError: k, rerank_at, where or batch_size is invalid, or the index has no contents to be compared.
        """
        used = self.matcher if matcher is None else matcher
        rerank_at = self.rerank_at if rerank_at is None else rerank_at
        condition = self._checked(k, rerank_at, where, used)
        if batch_size < 1:
            raise ValueError(f"batch_size: need at least 1, got {batch_size}")
        paths = [os.fspath(file) for file in files]
        with progress_bar(len(paths), show=progress, what="searching", unit="queries") as advance:
            for regions, batch in self.embedder.embed_batches(paths, batch_size, workers, False, "skip", shares):
                if regions is not None:
                    names = [paths[row] for row in batch.indices.tolist()]
                    excluded: list[set[str]] = [set() for _ in names]
                    if exclude_self:
                        excluded = self._same_content([_content(name) for name in names], condition)
                    found = self._found(regions.to("cpu"), k, rerank_at, condition, used, excluded, false_accept_rate)
                    for name, one in zip(names, found, strict=True):
                        yield replace(one, query=name)
                        advance(1)
                yield from batch.bad
                advance(len(batch.bad))

    def check_matcher(self, matcher: Matcher) -> None:
        """Raise ValueError where a matcher needs what the index does not keep, before a query is read."""
        if matcher.weights == "rollout" and not self.store.config.masses:
            raise ValueError(
                "weights: 'rollout' needs the masses of the regions, which this index was built without; use "
                "'cross_correlation' or 'uniform', or build an index with a plain vision transformer of timm"
            )

    def _checked(self, k: int, rerank_at: int, where: str | None, matcher: Matcher) -> Where | None:
        """The condition of a search whose settings are valid."""
        if k < 1 or rerank_at < 0:
            name, need, got = ("k", "at least 1", k) if k < 1 else ("rerank_at", "0 or more", rerank_at)
            raise ValueError(f"{name}: need {need}, got {got}")
        config = self.store.config
        if rerank_at and config.storage == "none":
            raise ValueError(
                "rerank_at: this index has pooled vectors only; search with rerank_at=0, or build one with regions"
            )
        if rerank_at:
            self.check_matcher(matcher)
        return None if where is None else parse_where(where, config.columns)

    def _same_content(self, contents: Sequence[str], where: Where | None) -> list[set[str]]:
        """The ids of the images that satisfy a condition and have each of these contents."""
        if "content" not in self.store.config.columns:
            raise ValueError(
                "exclude_self: this index does not record the content of its files; name the image with exclude"
            )
        same = ColumnMembership("content", tuple(dict.fromkeys(contents)))
        ids: dict[str, set[str]] = {content: set() for content in contents}
        for part in self.store.listing(same if where is None else And(where, same), columns=["content"]):
            for name, metadata in zip(part.ids, part.metadata, strict=True):
                ids[str(metadata["content"])].add(name)
        return [set(ids[content]) for content in contents]

    def _found(
        self,
        queries: Regions,
        k: int,
        depth: int,
        where: Where | None,
        matcher: Matcher,
        excluded: Sequence[Collection[str]],
        false_accept_rate: float,
    ) -> Iterator[SearchResult]:
        """The result of each query, without the ids that are excluded of it; all are looked up together."""
        queries, wanted = queries.to(torch.float32), max(k, depth)
        more = max(len(ids) for ids in excluded)
        near = self.store.nearest(queries.pooled.numpy(), wanted + more, where=where)
        calibrated = depth and self.calibration_for(matcher).calibrator is not None
        images = self.store.count(where) if calibrated else 0
        for row, without in enumerate(excluded):
            ids = [name for name in near[row].ids if name not in without][:wanted]
            found = self._ranked(queries[[row]], ids, k, depth, matcher)
            yield self._judged(found, depth, max(1, images - len(without)), false_accept_rate)

    def explain(self, result: SearchResult, n: int | None = None) -> list[Explanation]:
        """Explain the first n hits of a result, or all: images, the division of the whole score, and probabilities.

        The images of these hits are read from their files and embedded again, as the index keeps no shares of the
        pooled vectors. Where a file is missing or has changed, the explanation has no images, and the pooled cosine
        stays one term, with the reason in `undivided`.

        Args:
            result: of `search`.
            n: number of hits; each takes as long as embedding an image.

        Raises:
            ValueError: there are no hits, or the index has no regions.
        """
        from diml.explain import Explanation

        shown = result.hits[:n]
        stored = result.hit_regions
        if stored is None or not shown:
            result.match  # noqa: B018 - raises, with the reason
            raise ValueError(f"n: need at least 1, got {n}")
        files = [indexed_content(hit.metadata) for hit in shown]  # decoded one by one: images are large
        chosen = stored[list(range(len(shown)))]
        if result.regions.shares is None:  # those of the hits alone would not help
            gallery = [chosen[[row]] for row in range(len(shown))]
        else:
            gallery = with_shares(chosen, files, self.embedder, kept=_KEPT)
        query = None if result.image is None else self.embedder.preprocess.view(result.image, _VIEW_SCALE)
        explained = []
        for hit, file, regions in zip(shown, files, gallery, strict=True):
            view = None if query is None or isinstance(file, str) else self._view(file)
            seen = None if query is None or view is None else (query, view)
            explained.append(
                Explanation(
                    **vars(result.matcher.match(result.regions, regions)),
                    images=seen,
                    names=(result.query, str(hit.file or hit.id)),
                    calibrator=result.calibrator,
                    probability=hit.probability,
                )
            )
        return explained

    def _view(self, file: bytes) -> Image.Image | None:
        """What the network sees of an image, larger; None where it cannot be decoded."""
        preprocess = self.embedder.preprocess
        side = _VIEW_SCALE * max(preprocess.size, preprocess.resize or 0)
        try:
            return preprocess.view(load_image(file, at_least=side), _VIEW_SCALE)
        except BadImageError:
            return None

    def _ranked(self, query: Regions, ids: list[str], k: int, depth: int, matcher: Matcher) -> SearchResult:
        """The best k of the images of these ids, which are the nearest by the pooled cosine, in its order."""
        # a row removed since is left out, one replaced since is read as it is now
        rows = self.store.regions(ids if depth else ids[:k])
        rank_of = {name: rank for rank, name in enumerate(ids, start=1)}
        stored = decode_regions(rows, self.store.config) if self.store.config.storage != "none" else None
        pooled = torch.from_numpy(rows.pooled @ query.pooled[0].numpy())
        structural: Tensor | None = None
        if depth and len(rows):
            assert stored is not None
            pooled = stored.pooled.float() @ query.pooled[0]  # the same vectors as in the ledgers of the hits
            alone = replace(matcher, structural_weight=math.inf)
            structural = alone.score(query, stored, torch.arange(len(rows)).unsqueeze(0))[0]
        scores = (pooled if structural is None else matcher.combine(pooled, structural)).tolist()
        order = sorted(range(len(rows)), key=lambda row: (-scores[row], rows.ids[row]))
        hits = tuple(
            SearchHit(
                id=rows.ids[row],
                metadata=rows.metadata[row],
                score=scores[row],
                pooled=float(pooled[row]),
                structural=None if structural is None else float(structural[row]),
                pooled_rank=rank_of[rows.ids[row]],
            )
            for row in order[:k]
        )
        chosen = None if stored is None or not hits else stored[torch.tensor(order[:k])].to(torch.float32)
        compared = () if structural is None else tuple(scores[row] for row in order)
        return SearchResult("", hits, query, chosen, matcher, compared)

    def _judged(self, found: SearchResult, depth: int, gallery_images: int, false_accept_rate: float) -> SearchResult:
        """The result with what the calibration says of it."""
        calibration = self.calibration_for(found.matcher)
        notices = (calibration.notice,) if calibration.notice else ()
        calibrator = calibration.calibrator
        if calibrator is None or not found.hits:
            return replace(found, calibrator=calibrator, notices=notices)
        if not depth:
            return replace(found, calibrator=calibrator, notices=(*notices, NOT_RERANKED))
        judged = judge_hits(
            calibrator,
            found.scores,
            depth=depth,
            gallery_images=gallery_images,
            false_accept_rate=false_accept_rate,
        )
        return replace(_with_judgement(found, judged), calibrator=calibrator, notices=(*notices, *judged.notices))

    def close(self) -> None:
        """Close the index."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _content(query: ImageLike | Regions) -> str:
    """The sha256 of the file of a query."""
    if isinstance(query, bytes):
        return hashlib.sha256(query).hexdigest()
    if isinstance(query, str | os.PathLike):
        return content_of(Path(query))
    raise ValueError(
        f"exclude_self: need the query as a path or as bytes, got {type(query).__name__}; name its id with exclude"
    )


def _with_judgement(found: SearchResult, judged: JudgedHits) -> SearchResult:
    probabilities = judged.probabilities[: len(found.hits)]
    pairs = zip(found.hits, probabilities, strict=True)
    hits = tuple(replace(hit, probability=probability) for hit, probability in pairs)
    return replace(found, hits=hits, verdict=judged.gallery)
