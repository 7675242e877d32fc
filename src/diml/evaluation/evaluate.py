"""Evaluation of retrieval: rank by pooled cosine, re-rank the best K region by region, measure.

For regions, `evaluate_regions`; for an embedder and labelled images, `evaluate_dataset`.

Legend: N images, Q queries, G gallery images, R relevant images of a query, K re-ranked candidates.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from diml.distributed import ProcessGroup
from diml.evaluation.intervals import check_resamples
from diml.evaluation.metrics import METRICS, check_metrics, depth_needed
from diml.evaluation.report import HITS_KEPT, Report
from diml.evaluation.split import QueryGallerySplit, Sides, draws_of
from diml.matching import ConvergenceWarning, Matcher, QuantizedRegions, Regions
from diml.matching.retrieval import QUERIES_AT_ONCE
from diml.progress import ShowProgress, progress_bar

if TYPE_CHECKING:
    from diml.data import ImageSet
    from diml.data.images import BadImage
    from diml.data.judgements import Judgements
    from diml.models import Embedder
    from diml.models.embedder import Embedded

WithoutRelevant = Literal["exclude", "miss", "fail"]
Storage = Literal["float32", "float16", "int16", "int8", "1kb"]

#: Bytes of rankings to hold at a time. Within a span of queries no pair of images is compared twice.
SPAN_BYTES = 128 * 2**20


def evaluate_regions(
    regions: Regions | QuantizedRegions,
    labels: ArrayLike | Tensor,
    *,
    rerank_at: Sequence[int] = (0, 100),
    matcher: Matcher | None = None,
    queries: ArrayLike | Tensor | None = None,
    gallery: ArrayLike | Tensor | None = None,
    cameras: ArrayLike | Tensor | None = None,
    judgements: Judgements | None = None,
    originals: Regions | None = None,
    metrics: Sequence[str] = METRICS,
    without_relevant: WithoutRelevant = "exclude",
    resamples: int = 1000,
    seed: int = 0,
    processes: ProcessGroup | None = None,
    progress: ShowProgress = False,
) -> Report:
    """Evaluate retrieval by class: the plain cosine ranking, and its best K re-ranked region by region.

    Every K re-ranks its own prefix of the plain ranking; the rest keeps its order. Equal scores stand in gallery order.
    An image that is both query and gallery image never retrieves itself.

    Args:
        regions: N images; `regions.quantized()` takes a quarter of the memory.
        labels: (N,) class of each, integers or strings.
        rerank_at: the K to evaluate; 0 is the plain ranking; a K beyond the gallery re-ranks all of it.
        matcher: settings of the comparison; the defaults of `Matcher` when omitted.
        queries: (Q,) image rows that query, or all. Without `queries` and `gallery` this is leave-one-out.
        gallery: (G,) image rows that are searched, or all.
        cameras: (N,) camera or sequence of each image: for a query, gallery images of its class and camera are ignored,
            being neither right nor wrong, as in re-identification. Images of class -1 are junk and ignored by all.
        judgements: relevant and ignored image rows of each query, in the order of `queries`, instead of the classes.
        originals: the N images as they were before they were coded, to be the queries of a gallery of codes, as in a
            search; without them queries are stored like the gallery.
        metrics: names, see `diml.evaluation.metrics.query_metrics`; `recall@k` and `map@k` for any k, and `map`,
            `map_trapezoid` and `minp`, which need the whole ranking and take longer.
        without_relevant: a query without a relevant image is left out of the means and counted apart ("exclude"),
            counted with zeros ("miss"), or raises ("fail").
        resamples: bootstrap resamples for the 95 % intervals.
        seed: of the bootstrap.
        processes: share the queries among these processes, which all hold the same regions; every process gets the
            whole report, equal to that of one process.
        progress: show a progress bar on standard error, or call a function with the queries finished since.

    Returns:
        Report, in fractions.

    Raises:
        ValueError: labels do not fit, a side is empty, doubled or out of range, no query can be counted.
        ConvergenceWarning: (a warning) pairs stopped at max_iterations.

    Source: two-stage retrieval of Zhao et al., ICCV 2021, section 3.4; metrics of Musgrave et al., ECCV 2020.

    Example:
        >>> report = evaluate_regions(embedder.embed(paths), labels, rerank_at=(0, 100))
        >>> report.row(100)["map@r"] - report.row(0)["map@r"]
    """
    matcher, ks, metrics = matcher or Matcher(), _checked_ks(rerank_at), check_metrics(metrics)
    check_resamples(resamples)
    split = QueryGallerySplit.of_regions(
        regions, labels, Sides(queries=queries, gallery=gallery, cameras=cameras, judgements=judgements)
    )
    counted = counted_queries(split, without_relevant)
    settings = {
        "matcher": matcher.to_dict(),
        "without_relevant": without_relevant,
        "resamples": resamples,
        "seed": seed,
    }
    processes = processes or ProcessGroup()
    alone = len(counted) < processes.size  # some would have nothing to do: then every process evaluates all
    own = counted if alone else counted[processes.shares(len(counted))[processes.rank]]
    depth = max(HITS_KEPT, depth_needed(split.relevant_count, ks, metrics, len(split.gallery)))
    spans = torch.split(own, max(QUERIES_AT_ONCE[False], SPAN_BYTES // (8 * depth)))
    with progress_bar(len(own), show=progress, what="matching", unit="queries") as advance:
        parts = [
            _evaluate_span(regions, originals, split.subset(span), depth, ks, matcher, settings, metrics, advance)
            for span in spans
        ]
    if not alone:
        parts = processes.gather_objects(Report.concat(parts))
    report = replace(Report.concat(parts), without_relevant=split.queries[split.relevant_count == 0].cpu().numpy())
    if report.unconverged_pairs and processes.is_first:
        warnings.warn(ConvergenceWarning(report.unconverged_pairs), stacklevel=2)
    return report


@torch.no_grad()
def _evaluate_span(
    regions: Regions | QuantizedRegions,
    originals: Regions | None,
    split: QueryGallerySplit,
    depth: int,
    ks: tuple[int, ...],
    matcher: Matcher,
    settings: dict[str, Any],
    metrics: tuple[str, ...],
    advance: Callable[[float], None],
) -> Report:
    """Rank, re-rank and measure the queries of `split`."""
    plain = split.nearest(regions.pooled, depth)
    candidates = split.images(plain.order[:, : max(ks)])
    found = matcher.score_unique_pairs(
        regions, split.queries, candidates, originals=originals, progress=lambda share: advance(share * len(split))
    )
    rankings = {k: plain.reranked(found.scores[:, :k]) if k else plain for k in ks}
    return Report.from_rankings(
        rankings, split, unconverged_pairs=found.unconverged, settings=settings, metrics=metrics
    )


def counted_queries(split: QueryGallerySplit, without_relevant: WithoutRelevant) -> Tensor:
    """(C,) rows of the queries that enter the means."""
    if without_relevant not in get_args(WithoutRelevant):
        raise ValueError(f"without_relevant: need one of {get_args(WithoutRelevant)}, got {without_relevant!r}")
    lacking = split.relevant_count == 0
    if without_relevant == "fail" and lacking.any():
        first = int(split.queries[lacking][0])
        raise ValueError(
            f"labels: {int(lacking.sum())} queries have no relevant gallery image (the first is image {first}); "
            "use without_relevant='exclude' or 'miss'"
        )
    counted = torch.ones_like(lacking) if without_relevant == "miss" else ~lacking
    if not counted.any():
        raise ValueError("labels: no query has a relevant image in the gallery; check labels, queries and gallery")
    return counted.nonzero().flatten()


def _checked_ks(rerank_at: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(rerank_at, Iterable) or any(not isinstance(k, int | np.integer) for k in rerank_at):
        raise ValueError(f"rerank_at: need a sequence of integers K >= 0, got {rerank_at!r}; (0, 100) is the paper's")
    wanted = tuple(dict.fromkeys(int(k) for k in rerank_at))
    if not wanted or min(wanted) < 0:
        raise ValueError(f"rerank_at: need at least one K >= 0, got {tuple(rerank_at)}; 0 is the plain ranking")
    return wanted


@dataclass(frozen=True, eq=False, repr=False)
class DatasetEvaluation:
    """Result of `evaluate_dataset`.

    Args:
        report: the metrics; its image rows are rows of `images`.
        images: the images that could be read, with their labels, queries and gallery.
        regions: their embeddings, in the same order.
        bad: images that could not be read and are left out.
        matcher: the settings that were used.
    """

    report: Report
    images: ImageSet
    regions: Regions
    bad: tuple[BadImage, ...]
    matcher: Matcher

    def __repr__(self) -> str:
        left_out = f", {len(self.bad)} unreadable images left out" if self.bad else ""
        return f"DatasetEvaluation({self.report!r}{left_out})"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def evaluate_dataset(
    embedder: Embedder,
    images: ImageSet,
    *,
    matcher: Matcher | None = None,
    rerank_at: Sequence[int] = (0, 100),
    metrics: Sequence[str] = METRICS,
    without_relevant: WithoutRelevant = "exclude",
    resamples: int = 1000,
    seed: int = 0,
    storage: Storage = "float32",
    embedded: Embedded | None = None,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    on_bad_image: Literal["fail", "skip"] = "fail",
    progress: bool = False,
) -> DatasetEvaluation:
    """Embed labelled images and evaluate retrieval among them, by their queries, gallery, cameras and judgements.

    Images with several draws of queries and gallery are embedded once and evaluated under each; the report is over the
    queries of all draws.

    Args:
        embedder: turns images into regions.
        images: labelled images, for instance `load_dataset("orl").test`.
        matcher: settings of the comparison; the embedder's own when omitted.
        rerank_at, metrics, without_relevant, resamples, seed: as of `evaluate_regions`.
        storage: how regions are stored while they are compared; "int16" is the fastest on a CPU and changes scores by
            about 1e-5, "int8" takes a quarter of the memory, "1kb" 32 bytes a region, with queries in float32;
            "float32" is exact. The plain ranking is exact with all but "float16".
        embedded: the images embedded by this embedder before, as `fit_and_embed` gives them; `cache` and the options of
            loading are then of no use.
        cache: folder of embeddings by content, so that the same images are embedded once; none when omitted.
        batch_size, workers: of the loader.
        on_bad_image: "fail" raises at an unreadable image, "skip" leaves it out and reports it in `bad`.
        progress: show progress bars.

    Raises:
        BadImageError: an unreadable image under "fail".
        ValueError: as `evaluate_regions`.
    """
    if storage not in get_args(Storage):
        raise ValueError(f"storage: need one of {get_args(Storage)}, got {storage!r}")
    matcher = embedder.matcher if matcher is None else matcher
    embedder.check_matcher(matcher)
    loading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "on_bad_image": on_bad_image}
    if embedded is None:
        embedded, images = embed_images(embedder, images, cache=cache, progress=progress, **loading)
    elif embedded.bad:
        images = images.subset(embedded.kept.numpy())
    if len(embedded.regions) != len(images):
        raise ValueError(f"embedded: need the regions of {len(images)} images, got {len(embedded.regions)}")
    regions = stored_as(embedded.regions, storage)
    parts = [
        evaluate_regions(
            regions,
            images.labels,
            originals=embedded.regions if storage == "1kb" else None,
            rerank_at=rerank_at,
            matcher=matcher,
            metrics=metrics,
            without_relevant=without_relevant,
            resamples=resamples,
            seed=seed,
            progress=progress,
            **sides,
        )
        for sides in draws_of(images)
    ]
    report = Report.concat(parts)
    preprocess = embedder.preprocess
    settings = report.settings | {"input": {"size": preprocess.size} | preprocess.resizing()}
    report = replace(report, settings=settings | ({"draws": len(images.draws)} if images.draws else {}))
    return DatasetEvaluation(report, images, embedded.regions, embedded.bad, matcher)


def embed_images(
    embedder: Embedder, images: ImageSet, *, cache: str | os.PathLike[str] | None, progress: bool, **loading: Any
) -> tuple[Embedded, ImageSet]:
    """The regions of the images that can be read, and the set of these; arguments as of `evaluate_dataset`."""
    from diml.models.cache import embed_cached

    if cache is None:
        embedded = embedder.embed_checked(images, progress=progress, **loading)
    else:
        embedded = embed_cached(embedder, images, cache_dir=cache, progress=progress, **loading)
    return embedded, images.subset(embedded.kept.numpy()) if embedded.bad else images


def stored_as(regions: Regions, storage: Storage) -> Regions | QuantizedRegions:
    """Regions converted to a type of storage; unchanged where they have it."""
    if storage == "1kb":
        return regions.quantized("1kb")
    dtype = getattr(torch, storage)
    if not dtype.is_floating_point:
        return regions.quantized(dtype)
    return regions if regions.dense.dtype == dtype else regions.to(dtype)
