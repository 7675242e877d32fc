"""Evaluate an embedder on labelled images: embed (or take from the cache), then `evaluate_regions`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Unpack, get_args

import torch

from diml.data import BadImage, ImageSet
from diml.evaluation.protocol import WithoutRelevant, evaluate_regions
from diml.evaluation.report import Report
from diml.matching import MatchSettings, QuantizedRegions, Regions, Score
from diml.models import Embedder
from diml.models.cache import embed_cached

Storage = Literal["float32", "float16", "int16", "int8"]


@dataclass(frozen=True, eq=False)
class DatasetEvaluation:
    """What `evaluate_dataset` found.

    Args:
        report: the numbers; its image rows are rows of `images`.
        images: the images that could be read, with their labels, queries and gallery.
        regions: their embeddings, in the same order.
        bad: images that could not be read and are left out everywhere.
    """

    report: Report
    images: ImageSet
    regions: Regions
    bad: tuple[BadImage, ...]


def evaluate_dataset(
    embedder: Embedder,
    images: ImageSet,
    *,
    rerank: Sequence[int] = (0, 100),
    score: Score = "both",
    without_relevant: WithoutRelevant = "exclude",
    resamples: int = 1000,
    seed: int = 0,
    storage: Storage = "float32",
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    on_bad_image: Literal["fail", "skip"] = "fail",
    progress: bool = False,
    **settings: Unpack[MatchSettings],
) -> DatasetEvaluation:
    """Embed a image set and evaluate retrieval on it, by its own queries and gallery or leave-one-out.

    Args:
        embedder: what turns images into regions.
        images: labelled images, for instance `load_dataset("orl").test`.
        rerank, score, without_relevant, resamples, seed, settings: as in `evaluate_regions`.
        storage: how regions are kept while they are compared; "int16" is the fastest on a CPU and changes scores by
            1e-5 or so, "int8" takes a quarter of the memory, "float32" is exact. Plain rankings are exact with all but
            "float16".
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
    if cache is None:
        embedded = embedder.embed_checked(
            images.paths, batch_size=batch_size, workers=workers, progress=progress, on_bad_image=on_bad_image
        )
    else:
        embedded = embed_cached(
            embedder,
            images.paths,
            cache_dir=cache,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
            on_bad_image=on_bad_image,
        )
    if embedded.bad:
        images = images.subset(embedded.kept.numpy())
    report = evaluate_regions(
        stored_as(embedded.regions, storage),
        images.labels,
        rerank=rerank,
        queries=images.queries,
        gallery=images.gallery,
        score=score,
        without_relevant=without_relevant,
        resamples=resamples,
        seed=seed,
        progress=progress,
        **settings,
    )
    return DatasetEvaluation(report, images, embedded.regions, embedded.bad)


def stored_as(regions: Regions, storage: Storage) -> Regions | QuantizedRegions:
    """Regions converted to a type of storage; as they are where they have it."""
    dtype = getattr(torch, storage)
    if not dtype.is_floating_point:
        return regions.quantized(dtype)
    return regions if regions.dense.dtype == dtype else regions.to(dtype)
