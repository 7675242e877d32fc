"""A report of an evaluation that can be looked into: queries with their hits before and after re-ranking, and why.

Legend: Q queries of the evaluation, H hits of one query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, get_args

import numpy as np

from diml.data.images import load_image
from diml.evaluation.tables import SHOWN, row_name
from diml.explain.explanation import Explanation
from diml.explain.hits import rank_hits
from diml.explain.html import REPORT_MODULES, ImageShelf, hits_data, page_text
from diml.matching import MatchSettings, match

if TYPE_CHECKING:
    from diml.evaluation import DatasetEvaluation, Report
    from diml.models import Embedder

Choice = Literal["worst", "changed", "random"]

_SIDE: Final = 224  # pixels of a image: enough to see the regions, and a hundred of them stay a few megabytes
_IMAGE_BYTES: Final = 14_000
_DIGITS: Final = 3  # of plan and cosine
_MOST_ENTRIES: Final = 1_500_000  # of all plans together, about 20 MB of numbers


def choose_queries(report: Report, rerank: int, count: int, choose: Choice = "worst", seed: int = 0) -> list[int]:
    """Rows of the queries that a report shows.

    Args:
        report: of an evaluation with K = 0 and K = `rerank`.
        rerank: K.
        count: how many, at least 1; fewer where there are no more.
        choose: "worst" by MAP@R after re-ranking, wrong first hits before right ones; "changed" most by re-ranking,
            for better or worse; "random", which shows the data as it is.
        seed: of "random", and of the order among queries that are equally bad.

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
    before, after = report.per_query[0]["map@r"], report.per_query[rerank]["map@r"]
    chance = np.random.default_rng(seed).permutation(len(after))  # among equals: they tend to lie beside each other
    worst_first = np.lexsort((chance, before, after, report.per_query[rerank]["recall@1"]))
    if choose == "worst":
        chosen = worst_first[:count]
    elif choose == "changed":
        chosen = np.argsort(-np.abs(after - before), kind="stable")[:count]
    else:
        chosen = chance[:count]
    place = np.argsort(worst_first)
    return sorted((int(row) for row in chosen), key=lambda row: int(place[row]))


def gallery_report(
    found: DatasetEvaluation,
    embedder: Embedder,
    *,
    method: str,
    rerank: int = 100,
    queries: int = 20,
    hits: int = 4,
    choose: Choice = "worst",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    **matching: Unpack[MatchSettings],
) -> str:
    """Write an evaluation as an HTML document that needs no other file or network: metrics, then queries to look into.

    Args:
        found: of `evaluate_dataset` with `rerank` (0, K) and the same embedder and match settings.
        embedder: which made the regions; its preprocessing gives the images as it saw them.
        method: what to call it in the table.
        rerank: K, at least 1.
        queries: how many to show.
        hits: best hits of each to show before and after re-ranking, 1 to 10.
        choose, seed: which queries, see `choose_queries`.
        settings: how the evaluation was made; shown at the end.
        matching: marginals, epsilon, tolerance, max_iterations of the evaluation.

    Returns:
        The document, some megabytes.

    Raises:
        ValueError: an argument is out of range, or the page would be too large for a browser.
        KeyError: the evaluation lacks K = 0 or K = `rerank`.

    Example:
        >>> page = gallery_report(evaluate_dataset(e, images), e, method="mine")  # doctest: +SKIP
    """
    if rerank < 1 or not 1 <= hits <= 10:
        raise ValueError(f"rerank, hits: need K >= 1 and 1 to 10 hits, got {rerank} and {hits}")
    found.report.row(0), found.report.row(rerank)
    rows = choose_queries(found.report, rerank, queries, choose, seed)
    entries = len(rows) * 2 * hits * found.regions.num_regions**2
    if entries > _MOST_ENTRIES:
        raise ValueError(
            f"queries: {len(rows)} with up to {2 * hits} hits of {found.regions.num_regions} regions make a page that "
            f"browsers choke on; show at most {_MOST_ENTRIES * len(rows) // entries}, fewer hits, or a smaller grid"
        )
    shelf = ImageShelf(_SIDE, _IMAGE_BYTES)
    views = _Views(found, embedder)
    shown = [_query_data(found, row, rerank, hits, views, shelf, matching) for row in rows]
    data = {
        "table": _table(found.report, method),
        "differences": _differences(found.report),
        "counts": {"queries": len(found.report.queries), "gallery": found.report.gallery_size, "shown": len(rows)},
        "choose": choose,
        "rerank": rerank,
        "images": shelf.image_set,
        "queries": shown,
        "settings": dict(settings or {}),
    }
    return page_text(f"{found.images.name}: {method}", data, REPORT_MODULES, "mountReport")


class _Views:
    """Images as the model saw them, each decoded once."""

    def __init__(self, found: DatasetEvaluation, embedder: Embedder) -> None:
        self._paths, self._preprocess = found.images.paths, embedder.preprocess
        self._made: dict[int, Any] = {}

    def __getitem__(self, row: int) -> Any:
        if row not in self._made:
            self._made[row] = self._preprocess.view(load_image(self._paths[row]))
        return self._made[row]


def _query_data(
    found: DatasetEvaluation,
    row: int,
    rerank: int,
    hits: int,
    views: _Views,
    shelf: ImageShelf,
    matching: MatchSettings,
) -> dict[str, Any]:
    """One query: its numbers, and its hits as the viewer takes them, with their places before and after."""
    report, image_set = found.report, found.images
    query = int(report.queries[row])
    kept = {k: [int(image) for image in report.hits[k][row] if image >= 0] for k in (0, rerank)}
    images = list(dict.fromkeys(kept[rerank][:hits] + kept[0][:hits]))
    names = {image: _short(image_set.paths[image]) for image in (query, *images)}
    matched = match(found.regions[query], found.regions[images], **matching)
    made = [
        Explanation.of(matched, (views[query], views[image]), (names[query], names[image]), pair)
        for pair, image in enumerate(images)
    ]
    ranked = rank_hits(made)
    order = [images[made.index(found_match)] for found_match in ranked.matches]
    correct = [bool(image_set.labels[image] == image_set.labels[query]) for image in order]
    notes = [image_set.class_names[image_set.labels[image]] for image in order]
    pairs = hits_data(ranked, shelf, correct, notes, digits=_DIGITS)
    for pair, image in zip(pairs, order, strict=True):
        pair["hit"] |= {"rank": _place(kept[rerank], image), "pooled_rank": _place(kept[0], image)}
    return {
        "name": names[query],
        "label": image_set.class_names[image_set.labels[query]],
        "image": shelf.place(views[query], names[query]),
        "pairs": pairs,
        "before": [order.index(image) for image in kept[0][:hits]],
        "after": [order.index(image) for image in kept[rerank][:hits]],
        "map_before": float(report.per_query[0]["map@r"][row]),
        "map_after": float(report.per_query[rerank]["map@r"][row]),
    }


def _place(ranking: Sequence[int], image: int) -> int | None:
    """Rank from 1, or None beyond what the evaluation keeps."""
    return ranking.index(image) + 1 if image in ranking else None


def _short(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _table(report: Report, method: str) -> list[dict[str, Any]]:
    """A row a K: its name, and value, low and high of each metric, fractions."""
    return [
        {
            "name": row_name(method, int(row["rerank"])),
            "values": {title: [row[metric], *bounds[metric]] for metric, title in SHOWN.items()},
        }
        for row, bounds in zip(report.rows, report.intervals, strict=True)
    ]


def _differences(report: Report) -> dict[str, list[float]]:
    """Re-ranked minus plain, paired by query: value, low and high of each metric."""
    found = {comparison.metric: comparison for comparison in report.comparisons}
    return {title: [found[m].difference, found[m].low, found[m].high] for m, title in SHOWN.items() if m in found}
