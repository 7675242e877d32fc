"""The interactive page of an evaluation: metrics, then queries with their hits before and after re-ranking, explained.

Legend: Q queries of the evaluation, H hits of one query.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import torch

from diml.calibration.hits import FALSE_ACCEPT_RATE, JudgedHits, judge_hits
from diml.data.images import load_image
from diml.evaluation.split import QueryGallerySplit, sides_of
from diml.evaluation.tables import SHOWN, row_name
from diml.explain.explanation import Explanation
from diml.explain.formatting import short_path
from diml.explain.hits import rank_hits
from diml.explain.html import REPORT_MODULES, ImageShelf, hits_data, page_text
from diml.matching.retrieval import NOTHING
from diml.models.shares import with_shares

if TYPE_CHECKING:
    from PIL import Image

    from diml.calibration import Calibrator
    from diml.evaluation import DatasetEvaluation, Report
    from diml.matching import Regions
    from diml.models import Embedder

Choice = Literal["worst", "changed", "random"]

_SIDE: Final = 224  # pixels of an image: enough to see the regions, and a hundred images stay a few megabytes
_IMAGE_BYTES: Final = 14_000
_DIGITS: Final = 3  # of plan and cosine
_KEPT: Final = "the evaluation keeps no shares of the pooled vectors"
_MOST_ENTRIES: Final = 1_500_000  # of all plans together, about 20 MB of numbers


def choose_queries(report: Report, rerank_at: int, count: int, choose: Choice = "worst", seed: int = 0) -> list[int]:
    """Rows of the queries to display.

    Args:
        report: of an evaluation at K = 0 and K = `rerank_at`.
        rerank_at: K.
        count: number of queries, at least 1; all if there are fewer.
        choose: "worst" by MAP@R after re-ranking, incorrect first hits before correct ones; "changed" most by
            re-ranking, for better or worse; "random", an unbiased sample.
        seed: of "random", and of the order of queries that are equally bad.

    Returns:
        Rows of `report.queries`, the worst first.

    Raises:
        ValueError: an argument is out of range.
        KeyError: the report lacks one of the two K.
    """
    if count < 1:
        raise ValueError(f"queries: need at least 1, got {count}")
    if choose not in get_args(Choice):
        raise ValueError(f"choose: need one of {get_args(Choice)}, got {choose!r}")
    before, after = report.per_query[0]["map@r"], report.per_query[rerank_at]["map@r"]
    shuffled = np.random.default_rng(seed).permutation(len(after))  # equally bad queries are often adjacent images
    worst_first = np.lexsort((shuffled, before, after, report.per_query[rerank_at]["recall@1"]))
    if choose == "worst":
        chosen = worst_first[:count]
    elif choose == "changed":
        chosen = np.argsort(-np.abs(after - before), kind="stable")[:count]
    else:
        chosen = shuffled[:count]
    place = np.argsort(worst_first)
    return sorted((int(row) for row in chosen), key=lambda row: int(place[row]))


def evaluation_page(
    found: DatasetEvaluation,
    embedder: Embedder,
    *,
    method: str,
    rerank_at: int = 100,
    queries: int = 20,
    hits: int = 4,
    choose: Choice = "worst",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    calibrator: Calibrator | None = None,
    false_accept_rate: float = FALSE_ACCEPT_RATE,
) -> str:
    """An evaluation as an HTML document that needs no other file or network: metrics, then queries with their hits.

    The images that are shown are embedded again, for the shares of their pooled vectors, so that the parts of each
    explanation divide the whole score.

    Args:
        found: of `evaluate_dataset` with `rerank_at` (0, K) and the same embedder; explained with its matcher.
        embedder: which made the regions; its preprocessing yields the images as the model saw them.
        method: its name in the table.
        rerank_at: K, at least 1.
        queries: number of queries to display.
        hits: number of best hits of each to display before and after re-ranking, 1 to 10.
        choose, seed: which queries, see `choose_queries`.
        settings: how the evaluation was made; shown at the end, with the settings of the matcher.
        calibrator: what the scores of this embedder and matcher mean: each hit has its probability, and each query is
            said to be in the gallery or not.
        false_accept_rate: share of the queries missing from the gallery that may be taken to be there, in (0, 1).

    Returns:
        The document, a few megabytes.

    Raises:
        ValueError: an argument is out of range, the calibrator is of another embedder or matcher, or the page would be
            too large for a browser.
        KeyError: the evaluation lacks K = 0 or K = `rerank_at`.

    Example:
        >>> page = evaluation_page(evaluate_dataset(e, images), e, method="mine")  # doctest: +SKIP
    """
    if rerank_at < 1 or not 1 <= hits <= 10:
        raise ValueError(f"rerank_at, hits: need K >= 1 and 1 to 10 hits, got {rerank_at} and {hits}")
    found.report.row(0), found.report.row(rerank_at)
    rows = choose_queries(found.report, rerank_at, queries, choose, seed)
    entries = len(rows) * 2 * hits * found.regions.num_regions**2
    if entries > _MOST_ENTRIES:
        raise ValueError(
            f"queries: {len(rows)} with up to {2 * hits} hits of {found.regions.num_regions} regions make a page too "
            f"large for browsers; show at most {_MOST_ENTRIES * len(rows) // entries}, fewer hits, or a coarser grid"
        )
    if calibrator is not None:
        calibrator.check(embedder.fingerprint(), found.matcher)
    judge = _Judge(found, rerank_at, calibrator, false_accept_rate)
    shelf, views = ImageShelf(_SIDE, _IMAGE_BYTES), _Views(found, embedder)
    data = {
        "table": _table(found.report, method),
        "differences": _differences(found.report),
        "counts": {"queries": len(found.report.queries), "gallery": found.report.gallery_size, "shown": len(rows)},
        "choose": choose,
        "rerank_at": rerank_at,
        "calibration": None if calibrator is None else str(calibrator),
        "queries": [_query_data(found, row, rerank_at, hits, views, shelf, judge) for row in rows],
        "images": shelf.images,
        "settings": dict(settings or {})
        | found.matcher.to_dict()
        | ({} if calibrator is None else {"calibration": str(calibrator)}),
    }
    return page_text(f"{found.images.name}: {method}", data, REPORT_MODULES, "mountReport")


class _Views:
    """Images as the model saw them, and their regions with shares; each decoded and embedded once."""

    def __init__(self, found: DatasetEvaluation, embedder: Embedder) -> None:
        self._found, self._embedder = found, embedder
        self._made: dict[int, tuple[Image.Image, Regions]] = {}

    def make(self, rows: Sequence[int]) -> None:
        """Decode and embed images of the evaluation, those that are new."""
        new = [row for row in dict.fromkeys(rows) if row not in self._made]
        if not new:
            return
        images, preprocess = self._found.images, self._embedder.preprocess
        least = preprocess.at_least
        loaded = [load_image(images.images[row], name=images.image_name(row), at_least=least) for row in new]
        divided = with_shares(self._found.regions[new].to("cpu"), loaded, self._embedder, kept=_KEPT)
        made = zip(new, loaded, divided, strict=True)
        self._made |= {row: (preprocess.view(image), regions) for row, image, regions in made}

    def __getitem__(self, row: int) -> Image.Image:
        return self._made[row][0]

    def regions(self, row: int) -> Regions:
        """One image, with the shares of its pooled vector."""
        return self._made[row][1]


class _Judge:
    """What the calibration says of the hits of a query; nothing without one."""

    def __init__(
        self, found: DatasetEvaluation, rerank_at: int, calibrator: Calibrator | None, false_accept_rate: float
    ) -> None:
        self.calibrator = calibrator
        self._found, self._depth, self._rate = found, rerank_at, false_accept_rate
        images = found.images
        self._split = QueryGallerySplit.of_regions(found.regions, images.labels, sides_of(images))

    def __call__(self, query: int) -> tuple[JudgedHits, dict[int, float]]:
        """The judgement of all candidates of a query, and the probability of each by its row."""
        if self.calibrator is None:
            return JudgedHits(), {}
        regions = self._found.regions
        alone = self._split.subset(torch.nonzero(self._split.queries == query).flatten())
        rows = alone.images(alone.nearest(regions.pooled, self._depth).order)[0]
        rows = rows[rows != NOTHING]
        scores = self._found.matcher.score(regions[query], regions, rows[None])[0].cpu()
        order = torch.argsort(scores, descending=True, stable=True)
        itself = int((alone.own_row != NOTHING).sum())
        judged = judge_hits(
            self.calibrator,
            scores[order].tolist(),
            depth=self._depth,
            gallery_images=max(1, len(alone.gallery) - itself),
            false_accept_rate=self._rate,
        )
        return judged, dict(zip(rows.cpu()[order].tolist(), judged.probabilities, strict=True))


def _query_data(
    found: DatasetEvaluation,
    row: int,
    rerank_at: int,
    hits: int,
    views: _Views,
    shelf: ImageShelf,
    judge: _Judge,
) -> dict[str, Any]:
    """One query: its metrics, and its hits in the viewer's format, with their ranks before and after."""
    report, images = found.report, found.images
    query = int(report.queries[row])
    ranked_at = {k: [int(image) for image in report.hits[k][row] if image >= 0] for k in (0, rerank_at)}
    shown = list(dict.fromkeys(ranked_at[rerank_at][:hits] + ranked_at[0][:hits]))
    views.make([query, *shown])
    judged, chances = judge(query)
    explained = [_explained(found, query, image, views, judge.calibrator, chances.get(image)) for image in shown]
    # as `rank_hits` sorts them
    scores = torch.tensor([float(one.score) for one in explained])
    order = [shown[place] for place in torch.argsort(scores, descending=True, stable=True).tolist()]
    correct = [bool(images.labels[image] == images.labels[query]) for image in order]
    notes = [images.class_names[images.labels[image]] for image in order]
    pairs = hits_data(rank_hits(explained), shelf, correct, notes, digits=_DIGITS)
    for pair, image in zip(pairs, order, strict=True):
        ranks = {"rank": _rank(ranked_at[rerank_at], image), "pooled_rank": _rank(ranked_at[0], image)}
        pair["hit"] |= ranks | {"probability": chances.get(image)}
    name = short_path(images.image_name(query))
    return {
        "name": name,
        "label": images.class_names[images.labels[query]],
        "image": shelf.place(views[query], name),
        "pairs": pairs,
        "before": [order.index(image) for image in ranked_at[0][:hits]],
        "after": [order.index(image) for image in ranked_at[rerank_at][:hits]],
        "map_before": float(report.per_query[0]["map@r"][row]),
        "map_after": float(report.per_query[rerank_at]["map@r"][row]),
        "in_gallery": None if judged.gallery is None else judged.gallery.to_dict(),
        "notices": list(judged.notices),
    }


def _explained(
    found: DatasetEvaluation,
    query: int,
    image: int,
    views: _Views,
    calibrator: Calibrator | None,
    probability: float | None,
) -> Explanation:
    match = found.matcher.match(views.regions(query), views.regions(image))
    names = tuple(short_path(found.images.image_name(row)) for row in (query, image))
    one = Explanation.of(match, (views[query], views[image]), (names[0], names[1]), calibrator=calibrator)
    return one if probability is None else dataclasses.replace(one, probability=probability)


def _rank(ranking: Sequence[int], image: int) -> int | None:
    """Rank from 1, or None below the hits that the evaluation stores."""
    return ranking.index(image) + 1 if image in ranking else None


def _table(report: Report, method: str) -> list[dict[str, Any]]:
    """A row for each K: its name, and value, low and high of each metric, as fractions."""
    return [
        {
            "name": row_name(method, int(row["rerank_at"])),
            "values": {title: [row[metric], *bounds[metric]] for metric, title in SHOWN.items()},
        }
        for row, bounds in zip(report.rows, report.intervals, strict=True)
    ]


def _differences(report: Report) -> dict[str, list[float]]:
    """Re-ranked minus plain, paired by query: value, low and high of each metric."""
    found = {comparison.metric: comparison for comparison in report.comparisons}
    return {title: [found[m].difference, found[m].low, found[m].high] for m, title in SHOWN.items() if m in found}
