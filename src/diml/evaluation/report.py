"""Result of an evaluation: metrics of each query, their means with intervals, paired comparisons.

Legend: Q queries, G gallery images, M ranks, K re-ranked candidates, C columns (a metric under a setting), S resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from diml.evaluation.intervals import Floats, Interval, PairedMeans
from diml.evaluation.metrics import METRICS, query_metrics
from diml.evaluation.split import QueryGallerySplit
from diml.extras import require
from diml.matching.retrieval import NOTHING, Ranking

if TYPE_CHECKING:
    from pandas import DataFrame

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
        self._metrics_at(rerank_at)
        return self.rows[list(self.per_query).index(rerank_at)]

    def _metrics_at(self, rerank_at: int) -> dict[str, Floats]:
        """The metrics of the queries at one K."""
        if rerank_at not in self.per_query:
            raise KeyError(f"rerank_at: {rerank_at} was not evaluated; there are {list(self.per_query)}")
        return self.per_query[rerank_at]

    def minus(
        self, other: Report, rerank_at: int | None = None, other_rerank_at: int | None = None
    ) -> dict[str, Interval]:
        """This report minus another of the same queries, for instance of another model: mean differences by metric.

        Args:
            other: a report of the same queries.
            rerank_at: K of this report; by default its largest.
            other_rerank_at: K of the other report; by default `rerank_at`.

        Returns:
            metric -> difference of the means, a fraction (positive: this report is better), with its 95 % interval by
            bootstrap over queries, paired, with the resamples of this report; of the metrics that both have.

        Raises:
            KeyError: a K that was not evaluated.
            ValueError: the reports are of different queries or galleries, or have no metric in common.

        Example:
            >>> trained.minus(frozen)["map@r"]  # doctest: +SKIP
            Interval(value=0.0213, low=0.0121, high=0.0304)
        """
        mine = max(self.per_query) if rerank_at is None else rerank_at
        theirs = mine if other_rerank_at is None else other_rerank_at
        one, two = self._metrics_at(mine), other._metrics_at(theirs)
        shared = [name for name in one if name in two]
        if not shared:
            raise ValueError("other: need a report with a metric that this one has; evaluate both with the same ones")
        means = paired_means({"self": self, "other": other})
        return {name: means.difference(("self", mine, name), ("other", theirs, name)) for name in shared}

    def is_comparable(self, other: Report) -> bool:
        """Whether another report is of the same queries and size of gallery, so that differences can be paired."""
        return np.array_equal(self.queries, other.queries) and self.gallery_size == other.gallery_size

    def to_frame(self) -> DataFrame:
        """A pandas data frame: a row for each K, and three columns for each metric: itself, `_low` and `_high`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        require("tables", "data frames")
        from pandas import DataFrame

        return DataFrame(self.records()).set_index("rerank_at")

    def records(self) -> list[dict[str, float]]:
        """One dict a K: `rerank_at`, then each metric with its interval as `_low` and `_high`; fractions."""
        found = []
        for row, bounds in zip(self.rows, self.intervals, strict=True):
            record: dict[str, float] = {"rerank_at": int(row["rerank_at"])}
            for name, (low, high) in bounds.items():
                record |= {name: row[name], f"{name}_low": low, f"{name}_high": high}
            found.append(record)
        return found

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


def paired_means(reports: Mapping[str, Report]) -> PairedMeans:
    """Means of every metric of every report at every K, by (name, K, metric), with common resamples.

    Raises:
        ValueError: the reports are of different queries or galleries.
    """
    first_name, first = next(iter(reports.items()))
    for name, report in reports.items():
        if not report.is_comparable(first):
            got = [f"{len(one.queries)} queries and {one.gallery_size} gallery images" for one in (first, report)]
            raise ValueError(
                f"reports: need the same queries and gallery, got {got[0]} ({first_name}) and {got[1]} ({name}); "
                "evaluate both on the same images, with the same without_relevant"
            )
    columns = {
        (name, k, metric): values
        for name, report in reports.items()
        for k, found in report.per_query.items()
        for metric, values in found.items()
    }
    return PairedMeans(columns, first.settings["resamples"], first.settings["seed"], first.queries)


def _summarize(
    per_query: Mapping[int, Mapping[str, Floats]], queries: NDArray[np.int64], resamples: int, seed: int
) -> tuple[list[dict[str, float]], list[dict[str, tuple[float, float]]], list[Comparison]]:
    """Rows, intervals and comparisons from per-query metrics."""
    ks = list(per_query)
    metrics = list(per_query[ks[0]])
    means = PairedMeans({(k, name): per_query[k][name] for k in ks for name in metrics}, resamples, seed, queries)
    found = {k: {name: means.mean((k, name)) for name in metrics} for k in ks}
    rows = [{"rerank_at": k} | {name: value.value for name, value in found[k].items()} for k in ks]
    intervals = [{name: (value.low, value.high) for name, value in found[k].items()} for k in ks]
    base = min(ks)
    comparisons = [
        Comparison(k, base, name, *means.difference((k, name), (base, name)))
        for k in ks
        if k != base
        for name in metrics
    ]
    return rows, intervals, comparisons
