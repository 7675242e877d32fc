"""What an evaluation found: a table with intervals, paired comparisons, and the numbers of each query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.evaluation.intervals import Floats, bootstrap_means, interval
from diml.evaluation.metrics import METRICS


@dataclass(frozen=True, eq=False)
class Comparison:
    """One metric of a re-ranking against the plain ranking, on the same queries.

    Args:
        rerank: K of the re-ranking.
        against: K of the baseline (0 where it was evaluated).
        metric: name in `METRICS`.
        difference: mean over queries, a fraction; positive = the re-ranking is better.
        low, high: 95 % interval of the difference, by bootstrap over queries in pairs.
    """

    rerank: int
    against: int
    metric: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Report:
    """Result of `evaluate_regions`. All numbers are fractions; tables for people show percent.

    Args:
        rows: one dict a K: `rerank`, then every name of `METRICS`, the mean over the counted queries.
        intervals: one dict a row: metric -> (low, high), 95 % bootstrap over queries.
        comparisons: every K against the smallest, every metric.
        per_query: K -> metric -> (Q,) float64 of the counted queries.
        queries: (Q,) int64 image rows of the counted queries.
        without_relevant: (W,) int64 image rows of queries that have no relevant image in their gallery.
        hits: K -> (Q, up to 10) int64 image rows of the best hits of each counted query; -1 where there are none.
        gallery_size: images that were searched.
        unfinished_pairs: pairs whose transport problem stopped at the cap of iterations.
        settings: how it was made; plain values.
    """

    rows: list[dict[str, float]]
    intervals: list[dict[str, tuple[float, float]]]
    comparisons: list[Comparison]
    per_query: dict[int, dict[str, Floats]]
    queries: NDArray[np.int64]
    without_relevant: NDArray[np.int64]
    hits: dict[int, NDArray[np.int64]]
    gallery_size: int
    unfinished_pairs: int
    settings: dict[str, Any]

    def row(self, rerank: int) -> dict[str, float]:
        """The row of one K.

        Raises:
            KeyError: this K was not evaluated.
        """
        for row in self.rows:
            if row["rerank"] == rerank:
                return row
        raise KeyError(f"rerank: {rerank} was not evaluated; have {[int(row['rerank']) for row in self.rows]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the per-query arrays; fractions."""
        return {
            "rows": self.rows,
            "intervals_95": self.intervals,
            "comparisons": [vars(comparison) for comparison in self.comparisons],
            "queries": len(self.queries),
            "gallery": self.gallery_size,
            "without_relevant": len(self.without_relevant),
            "unfinished_pairs": self.unfinished_pairs,
            "settings": self.settings,
        }


def summarize(
    per_query: Mapping[int, Mapping[str, Floats]], resamples: int, seed: int
) -> tuple[list[dict[str, float]], list[dict[str, tuple[float, float]]], list[Comparison]]:
    """Rows, intervals and comparisons from per-query numbers; all K share the resamples, so that they are paired."""
    rerank = list(per_query)
    columns = np.stack([per_query[k][metric] for k in rerank for metric in METRICS], axis=1)
    means = columns.mean(axis=0).reshape(len(rerank), len(METRICS))
    samples = bootstrap_means(columns, resamples, seed).reshape(resamples, len(rerank), len(METRICS))
    rows = [{"rerank": k} | dict(zip(METRICS, row, strict=True)) for k, row in zip(rerank, means.tolist(), strict=True)]
    intervals = [{metric: interval(samples[:, i, j]) for j, metric in enumerate(METRICS)} for i in range(len(rerank))]
    base = rerank.index(min(rerank))
    comparisons = [
        Comparison(
            rerank=k,
            against=rerank[base],
            metric=metric,
            difference=float(means[i, j] - means[base, j]),
            low=interval(samples[:, i, j] - samples[:, base, j])[0],
            high=interval(samples[:, i, j] - samples[:, base, j])[1],
        )
        for i, k in enumerate(rerank)
        if i != base
        for j, metric in enumerate(METRICS)
    ]
    return rows, intervals, comparisons


def csv_lines(reports: Mapping[str, Report]) -> Sequence[Sequence[str]]:
    """Header and one line a method and K: `method,rerank,queries`, then metric, low and high of each, as fractions."""
    header = ["method", "rerank", "queries"]
    header += [name for metric in METRICS for name in (metric, f"{metric}_low", f"{metric}_high")]
    lines = [header]
    for method, report in reports.items():
        for row, bounds in zip(report.rows, report.intervals, strict=True):
            line = [method, str(int(row["rerank"])), str(len(report.queries))]
            for metric in METRICS:
                line += [f"{value:.6f}" for value in (row[metric], *bounds[metric])]
            lines.append(line)
    return lines
