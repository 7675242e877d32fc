"""Evaluate an embedder on labelled pictures: embed (or take from the cache), then `evaluate_regions`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

from diml.data import BadPicture, PictureSet
from diml.evaluation.protocol import WithoutRelevant, evaluate_regions
from diml.evaluation.report import Report
from diml.matching import MatchSettings, Regions, Score
from diml.models import Embedder
from diml.models.cache import embed_cached


@dataclass(frozen=True, eq=False)
class DatasetEvaluation:
    """What `evaluate_dataset` found.

    Args:
        report: the numbers; its image rows are rows of `pictures`.
        pictures: the pictures that could be read, with their labels, queries and gallery.
        regions: their embeddings, in the same order.
        bad: pictures that could not be read and are left out everywhere.
    """

    report: Report
    pictures: PictureSet
    regions: Regions
    bad: tuple[BadPicture, ...]


def evaluate_dataset(
    embedder: Embedder,
    pictures: PictureSet,
    *,
    rerank: Sequence[int] = (0, 100),
    score: Score = "both",
    without_relevant: WithoutRelevant = "exclude",
    resamples: int = 1000,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    on_bad_picture: Literal["fail", "skip"] = "fail",
    progress: bool = False,
    **settings: Unpack[MatchSettings],
) -> DatasetEvaluation:
    """Embed a picture set and evaluate retrieval on it, by its own queries and gallery or leave-one-out.

    Args:
        embedder: what turns pictures into regions.
        pictures: labelled pictures, for instance `load_dataset("orl").test`.
        rerank, score, without_relevant, resamples, seed, settings: as in `evaluate_regions`.
        cache: folder of embeddings by content, so that the same pictures are embedded once; none when omitted.
        batch_size, workers: of the loader.
        on_bad_picture: "fail" raises at an unreadable picture, "skip" leaves it out and reports it in `bad`.
        progress: show progress bars.

    Raises:
        BadPictureError: an unreadable picture under "fail".
        ValueError: as `evaluate_regions`.
    """
    if cache is None:
        embedded = embedder.embed_checked(
            pictures.paths, batch_size=batch_size, workers=workers, progress=progress, on_bad_picture=on_bad_picture
        )
    else:
        embedded = embed_cached(
            embedder,
            pictures.paths,
            cache_dir=cache,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
            on_bad_picture=on_bad_picture,
        )
    if embedded.bad:
        pictures = pictures.subset(embedded.kept.numpy())
    report = evaluate_regions(
        embedded.regions,
        pictures.labels,
        rerank=rerank,
        queries=pictures.queries,
        gallery=pictures.gallery,
        score=score,
        without_relevant=without_relevant,
        resamples=resamples,
        seed=seed,
        progress=progress,
        **settings,
    )
    return DatasetEvaluation(report, pictures, embedded.regions, embedded.bad)
