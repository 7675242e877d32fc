"""Result of an evaluation: metrics of each query, their means with intervals, paired comparisons.

Legend: Q queries, G gallery images, M ranks, K re-ranked candidates, C columns (a metric under a setting), S resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diml.evaluation.metrics import METRICS, query_metrics
from diml.evaluation.split import QueryGallerySplit
from diml.matching.retrieval import NOTHING, Ranking

Floats = NDArray[np.float64]

#: How the main metrics are written in tables, those of re-identification after those of metric learning.
SHORT = {
    "recall@1": "R@1",
    "r_precision": "RP",
    "map@r": "MAP@R",
    "map": "mAP",
    "map_trapezoid": "mAP (trapezoid)",
    "minp": "mINP",
}

#: Best hits of each query that a report keeps.
HITS_KEPT = 10

#: Queries whose metrics are computed together, so that intermediate arrays stay small.
QUERIES_AT_ONCE = 8192

#: Ends of the 95 % percentile interval.
LEVELS = (2.5, 97.5)
#: Resamples that are drawn together: fewer calls, and their counts stay in the cache.
RESAMPLES_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Comparison:
    """One metric of a re-ranking against the plain ranking, on the same queries.

    Args:
        rerank_at: K of the re-ranking.
        against: K of the baseline (0 where it was evaluated).
        metric: its name.
        difference: mean over queries, a fraction; positive = the re-ranking is better.
        low, high: 95 % interval of the difference, by paired bootstrap over queries.
    """

    rerank_at: int
    against: int
    metric: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """Result of `evaluate_regions`. All numbers are fractions; printed tables show percent.

    `rows`, `intervals` and `comparisons` are computed from `per_query` when first used; all K share the bootstrap
    resamples, so that comparisons are paired.

    Args:
        per_query: K -> metric -> (Q,) float64 of the counted queries.
        queries: (Q,) int64 image rows of the counted queries; with several draws of queries and gallery, those of each,
            so that an image can stand in it more than once. Resamples then draw images, with all their queries.
        without_relevant: (W,) int64 image rows of queries that have no relevant image in their gallery.
        hits: K -> (Q, up to 10) int64 image rows of the best hits of each counted query; -1 where there are none.
        gallery_size: images that were searched.
        unconverged_pairs: candidates whose transport plan stopped at max_iterations.
        settings: plain values: `matcher`, `without_relevant`, `resamples`, `seed`.
    """

    per_query: dict[int, dict[str, Floats]]
    queries: NDArray[np.int64]
    without_relevant: NDArray[np.int64]
    hits: dict[int, NDArray[np.int64]]
    gallery_size: int
    unconverged_pairs: int
    settings: dict[str, Any]

    @classmethod
    def from_rankings(
        cls,
        rankings: Mapping[int, Ranking],
        split: QueryGallerySplit,
        *,
        unconverged_pairs: int = 0,
        settings: Mapping[str, Any],
        metrics: Sequence[str] = METRICS,
    ) -> Report:
        """Measure rankings of the queries of `split`.

        Args:
            rankings: K -> ranking of every query, deep enough for the metrics (see `depth_needed`).
            split: the two sides.
            unconverged_pairs, settings: as of `Report`.
            metrics: names, see `query_metrics`.
        """
        per_query: dict[int, dict[str, Floats]] = {}
        for k, ranking in rankings.items():
            parts = []
            for rows in torch.split(torch.arange(len(split), device=ranking.order.device), QUERIES_AT_ONCE):
                some, order = split.subset(rows), ranking.order[rows]
                in_gallery = some.own_row != NOTHING
                parts.append(query_metrics(some.relevant(order), some.relevant_count, in_gallery, metrics))
            per_query[k] = {name: np.concatenate([part[name].cpu().numpy() for part in parts]) for name in metrics}
        hits = {k: split.images(ranking.order[:, :HITS_KEPT]).cpu().numpy() for k, ranking in rankings.items()}
        nobody, queries = np.empty(0, np.int64), split.queries.cpu().numpy()
        return cls(per_query, queries, nobody, hits, len(split.gallery), unconverged_pairs, dict(settings))

    @classmethod
    def concat(cls, parts: Sequence[Report]) -> Report:
        """Join reports of different queries on one gallery: spans of one process, the shares of several, or draws."""
        first = parts[0]
        return cls(
            per_query={
                k: {metric: np.concatenate([part.per_query[k][metric] for part in parts]) for metric in found}
                for k, found in first.per_query.items()
            },
            queries=np.concatenate([part.queries for part in parts]),
            without_relevant=np.concatenate([part.without_relevant for part in parts]),
            hits={k: np.concatenate([part.hits[k] for part in parts]) for k in first.hits},
            gallery_size=first.gallery_size,
            unconverged_pairs=sum(part.unconverged_pairs for part in parts),
            settings=first.settings,
        )

    @property
    def rows(self) -> list[dict[str, float]]:
        """One dict a K: `rerank_at`, then every metric, the mean over the counted queries."""
        return self._summary[0]

    @property
    def intervals(self) -> list[dict[str, tuple[float, float]]]:
        """One dict a row: metric -> (low, high), 95 % bootstrap interval over queries."""
        return self._summary[1]

    @property
    def comparisons(self) -> list[Comparison]:
        """Every K against the smallest, every metric."""
        return self._summary[2]

    @cached_property
    def _summary(self) -> tuple[list[dict[str, float]], list[dict[str, tuple[float, float]]], list[Comparison]]:
        return _summarize(self.per_query, self.queries, self.settings["resamples"], self.settings["seed"])

    def row(self, rerank_at: int) -> dict[str, float]:
        """The row of one K.

        Raises:
            KeyError: this K was not evaluated.
        """
        for row in self.rows:
            if row["rerank_at"] == rerank_at:
                return row
        raise KeyError(f"rerank_at: {rerank_at} was not evaluated; there are {list(self.per_query)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the per-query arrays; fractions."""
        return {
            "rows": self.rows,
            "intervals_95": self.intervals,
            "comparisons": [vars(comparison) for comparison in self.comparisons],
            "queries": len(self.queries),
            "gallery": self.gallery_size,
            "without_relevant": len(self.without_relevant),
            "unconverged_pairs": self.unconverged_pairs,
            "settings": self.settings,
        }

    def __repr__(self) -> str:
        means = "; ".join(
            f"K = {k}: " + ", ".join(f"{SHORT[m]} {100 * found[m].mean():.2f}" for m in SHORT if m in found)
            for k, found in self.per_query.items()
        )
        return f"Report({len(self.queries)} queries, {self.gallery_size} gallery images; {means})"

    def _repr_html_(self) -> str:
        """R@1, RP and MAP@R in percent, with intervals, for notebooks."""
        shown = {name: short for name, short in SHORT.items() if name in self.rows[0]}
        head = "".join(f"<th>{name}</th>" for name in ("K", *shown.values()))
        lines = []
        for row, bounds in zip(self.rows, self.intervals, strict=True):
            cells = "".join(
                f"<td>{100 * row[name]:.2f} ({100 * bounds[name][0]:.1f} to {100 * bounds[name][1]:.1f})</td>"
                for name in shown
            )
            lines.append(f"<tr><td>{int(row['rerank_at'])}</td>{cells}</tr>")
        caption = f"{len(self.queries)} queries, {self.gallery_size} gallery images; percent, 95 % intervals"
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{''.join(lines)}</table>"


def _summarize(
    per_query: Mapping[int, Mapping[str, Floats]], queries: NDArray[np.int64], resamples: int, seed: int
) -> tuple[list[dict[str, float]], list[dict[str, tuple[float, float]]], list[Comparison]]:
    """Rows, intervals and comparisons from per-query metrics."""
    ks = list(per_query)
    metrics = list(per_query[ks[0]])
    columns = np.stack([per_query[k][metric] for k in ks for metric in metrics], axis=1)
    means = columns.mean(axis=0).reshape(len(ks), len(metrics))
    image = np.unique(queries, return_inverse=True)[1]
    samples = bootstrap_means(columns, resamples, seed, image if len(queries) > image.max(initial=0) + 1 else None)
    samples = samples.reshape(resamples, len(ks), len(metrics))
    rows = [{"rerank_at": k} | dict(zip(metrics, row, strict=True)) for k, row in zip(ks, means.tolist(), strict=True)]
    intervals = [{metric: interval(samples[:, i, j]) for j, metric in enumerate(metrics)} for i in range(len(ks))]
    base = ks.index(min(ks))
    comparisons = []
    for i, k in enumerate(ks):
        for j, metric in enumerate(metrics if i != base else ()):
            low, high = interval(samples[:, i, j] - samples[:, base, j])
            comparisons.append(Comparison(k, ks[base], metric, float(means[i, j] - means[base, j]), low, high))
    return rows, intervals, comparisons


def bootstrap_means(values: Floats, resamples: int, seed: int, groups: NDArray[np.intp] | None = None) -> Floats:
    """Means of S resamples of the queries with replacement; all columns share each resample, so they stay paired.

    Args:
        values: (Q, C), Q >= 1.
        resamples: S.
        seed: of the resampling.
        groups: (Q,) 0 to G - 1; queries of one group are drawn together, being one image under several draws. None:
            every query alone.

    Returns:
        (S, C) means.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval).
    """
    generator = np.random.default_rng(seed)
    sizes = None if groups is None else np.bincount(groups).astype(np.float64)
    if groups is not None and sizes is not None:
        sums = np.zeros((len(sizes), values.shape[1]))
        np.add.at(sums, groups, values)
        values = sums
    queries = len(values)
    means = np.empty((resamples, values.shape[1]))
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        rows = min(RESAMPLES_AT_ONCE, resamples - first)
        drawn = generator.integers(queries, size=(rows, queries)) + queries * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
        weight = counts.astype(np.float64)
        means[first : first + rows] = weight @ values / (queries if sizes is None else (weight @ sizes)[:, None])
    return means


def interval(means: Floats) -> tuple[float, float]:
    """95 % percentile interval of (S,) bootstrap means."""
    low, high = np.percentile(means, LEVELS)
    return float(low), float(high)
