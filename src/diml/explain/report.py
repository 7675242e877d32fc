"""The interactive page of an evaluation: metrics, then queries with their hits before and after re-ranking, explained.

Legend: Q queries of the evaluation, H hits of one query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from diml.data.images import load_image
from diml.evaluation.tables import SHOWN, row_name
from diml.explain.explanation import Explanation
from diml.explain.formatting import short_path
from diml.explain.hits import rank_hits
from diml.explain.html import REPORT_MODULES, ImageShelf, hits_data, page_text

if TYPE_CHECKING:
    from PIL import Image

    from diml.evaluation import DatasetEvaluation, Report
    from diml.models import Embedder

Choice = Literal["worst", "changed", "random"]

_SIDE: Final = 224  # pixels of an image: enough to see the regions, and a hundred images stay a few megabytes
_IMAGE_BYTES: Final = 14_000
_DIGITS: Final = 3  # of plan and cosine
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
) -> str:
    """An evaluation as an HTML document that needs no other file or network: metrics, then queries with their hits.

    Args:
        found: of `evaluate_dataset` with `rerank_at` (0, K) and the same embedder; explained with its matcher.
        embedder: which made the regions; its preprocessing yields the images as the model saw them.
        method: its name in the table.
        rerank_at: K, at least 1.
        queries: number of queries to display.
        hits: number of best hits of each to display before and after re-ranking, 1 to 10.
        choose, seed: which queries, see `choose_queries`.
        settings: how the evaluation was made; shown at the end, with the settings of the matcher.

    Returns:
        The document, a few megabytes.

    Raises:
        ValueError: an argument is out of range, or the page would be too large for a browser.
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
    shelf = ImageShelf(_SIDE, _IMAGE_BYTES)
    views = _Views(found, embedder)
    data = {
        "table": _table(found.report, method),
        "differences": _differences(found.report),
        "counts": {"queries": len(found.report.queries), "gallery": found.report.gallery_size, "shown": len(rows)},
        "choose": choose,
        "rerank_at": rerank_at,
        "queries": [_query_data(found, row, rerank_at, hits, views, shelf) for row in rows],
        "images": shelf.images,
        "settings": dict(settings or {}) | found.matcher.to_dict(),
    }
    return page_text(f"{found.images.name}: {method}", data, REPORT_MODULES, "mountReport")


class _Views:
    """Images as the model saw them, each decoded once."""

    def __init__(self, found: DatasetEvaluation, embedder: Embedder) -> None:
        self._images, self._preprocess = found.images, embedder.preprocess
        self._made: dict[int, Image.Image] = {}

    def __getitem__(self, row: int) -> Image.Image:
        if row not in self._made:
            self._made[row] = self._preprocess.view(
                load_image(self._images.images[row], name=self._images.image_name(row))
            )
        return self._made[row]


def _query_data(
    found: DatasetEvaluation, row: int, rerank_at: int, hits: int, views: _Views, shelf: ImageShelf
) -> dict[str, Any]:
    """One query: its metrics, and its hits in the viewer's format, with their ranks before and after."""
    report, images = found.report, found.images
    query = int(report.queries[row])
    ranked_at = {k: [int(image) for image in report.hits[k][row] if image >= 0] for k in (0, rerank_at)}
    shown = list(dict.fromkeys(ranked_at[rerank_at][:hits] + ranked_at[0][:hits]))
    names = {image: short_path(images.image_name(image)) for image in (query, *shown)}
    matched = found.matcher.match(found.regions[query], found.regions[shown])
    explained = [
        Explanation.of(matched, (views[query], views[image]), (names[query], names[image]), pair)
        for pair, image in enumerate(shown)
    ]
    ranked = rank_hits(explained)
    order = [shown[explained.index(match)] for match in ranked.matches]
    correct = [bool(images.labels[image] == images.labels[query]) for image in order]
    notes = [images.class_names[images.labels[image]] for image in order]
    pairs = hits_data(ranked, shelf, correct, notes, digits=_DIGITS)
    for pair, image in zip(pairs, order, strict=True):
        ranks = {"rank": _rank(ranked_at[rerank_at], image), "pooled_rank": _rank(ranked_at[0], image)}
        pair["hit"] |= ranks
    return {
        "name": names[query],
        "label": images.class_names[images.labels[query]],
        "image": shelf.place(views[query], names[query]),
        "pairs": pairs,
        "before": [order.index(image) for image in ranked_at[0][:hits]],
        "after": [order.index(image) for image in ranked_at[rerank_at][:hits]],
        "map_before": float(report.per_query[0]["map@r"][row]),
        "map_after": float(report.per_query[rerank_at]["map@r"][row]),
    }


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
