"""Matchers compared on one set of images: one table of metrics, with differences paired by query.

Legend: N images, Q queries, G gallery images, M ranks, K re-ranked candidates.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diml.evaluation.evaluate import WithoutRelevant, counted_queries
from diml.evaluation.intervals import Floats, Interval, PairedMeans
from diml.evaluation.metrics import METRICS, check_metrics, depth_needed, main_metric
from diml.evaluation.neighbours import NAMES, NeighbourMethod, rank_by_neighbours
from diml.evaluation.report import HITS_KEPT, SHORT, Report
from diml.evaluation.split import QueryGallerySplit, Sides
from diml.extras import require
from diml.matching import Matcher, QuantizedRegions, Regions
from diml.matching.retrieval import NOTHING, Ranking
from diml.progress import ShowProgress, progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from diml.data.judgements import Judgements

#: The plain ranking, which every comparison has.
PLAIN: Final = "plain"
#: Candidate pairs whose iterations are counted.
SAMPLED_PAIRS: Final = 256


@dataclass(frozen=True, eq=False, repr=False)
class MatcherComparison:
    """Result of `compare_matchers`. All numbers are fractions; tables and figures show percent.

    Args:
        per_query: name -> metric -> (Q,) float64 of the counted queries; `plain` is the first name.
        described: name -> plain values: the settings of a matcher, or the method that ranks by neighbours.
        seconds: name -> wall-clock time of its ranking, stage 1 included for methods by neighbours only.
        iterations: name -> mean iterations of the plan of a candidate pair, from a sample; None without plans.
        unconverged_pairs: name -> candidates whose plan stopped at max_iterations.
        hits: name -> (Q, up to 10) int64 image rows of the best hits of each query.
        moved_by: name -> (Q, up to 10) the neighbour that each hit owes its place to; methods by neighbours only.
        queries: (Q,) int64 image rows of the counted queries.
        gallery_size: G.
        settings: plain values: `baseline`, `rerank_at`, `without_relevant`, `resamples`, `seed`.
    """

    per_query: dict[str, dict[str, Floats]]
    described: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    iterations: dict[str, float | None]
    unconverged_pairs: dict[str, int]
    hits: dict[str, NDArray[np.int64]]
    moved_by: dict[str, NDArray[np.int64]]
    queries: NDArray[np.int64]
    gallery_size: int
    settings: dict[str, Any]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, in the order of tables."""
        return tuple(self.per_query[PLAIN])

    @property
    def baseline(self) -> str:
        """The name that differences are against."""
        return str(self.settings["baseline"])

    def mean(self, name: str, metric: str) -> Interval:
        """Mean of a metric.

        Raises:
            KeyError: an unknown name, or a metric that was not measured.
        """
        return self._means.mean((name, metric))

    def difference(self, name: str, metric: str, against: str | None = None) -> Interval:
        """Mean difference of a metric to that of another name (the baseline when omitted), paired by query."""
        return self._means.difference((name, metric), (against or self.baseline, metric))

    @cached_property
    def _means(self) -> PairedMeans:
        columns = {(name, metric): found[metric] for name, found in self.per_query.items() for metric in self.metrics}
        return PairedMeans(columns, self.settings["resamples"], self.settings["seed"])

    def rows(self) -> list[dict[str, Any]]:
        """One dict a name: `name`, metrics and differences to the baseline with intervals, times, iterations."""
        found = []
        for name in self.per_query:
            row: dict[str, Any] = {"name": name}
            for metric in self.metrics:
                for what, value in (("", self.mean(name, metric)), ("_difference", self.difference(name, metric))):
                    row |= {
                        f"{metric}{what}{end}": part for end, part in zip(("", "_low", "_high"), value, strict=True)
                    }
            row |= {"seconds": self.seconds[name], "iterations": self.iterations[name]}
            found.append(row | {"unconverged_pairs": self.unconverged_pairs[name]})
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the arrays."""
        sizes = {"queries": len(self.queries), "gallery": self.gallery_size}
        return {"rows": self.rows(), "matchers": self.described, **sizes, "settings": self.settings}

    def to_csv(self) -> str:
        """`rows` as CSV."""
        text, rows = io.StringIO(), self.rows()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
        return text.getvalue()

    def to_frame(self) -> DataFrame:
        """`rows` as a pandas data frame, by name.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        require("tables", "data frames")
        from pandas import DataFrame

        return DataFrame(self.rows()).set_index("name")

    def draw(self, metric: str | None = None) -> Figure:
        """Differences of a metric (the main one when omitted) to the baseline with their intervals, as a figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from diml.evaluation.comparison_figure import draw_comparison

        return draw_comparison(self, metric or main_metric(self.metrics))

    def __repr__(self) -> str:
        metric = main_metric(self.metrics)
        short = SHORT.get(metric, metric)
        means = "; ".join(f"{name}: {short} {100 * self.mean(name, metric).value:.2f}" for name in self.per_query)
        return f"MatcherComparison({len(self.queries)} queries, {self.gallery_size} gallery images; {means})"

    def _repr_html_(self) -> str:
        """The first and the main metric in percent, and the differences to the baseline, for notebooks."""
        lines = []
        first, metric = self.metrics[0], main_metric(self.metrics)
        for name in self.per_query:
            values = [self.mean(name, first), self.mean(name, metric), self.difference(name, metric)]
            cells = "".join(f"<td>{100 * v:.2f} ({100 * low:.1f} to {100 * high:.1f})</td>" for v, low, high in values)
            lines.append(f"<tr><td>{name}</td>{cells}</tr>")
        short = SHORT.get(metric, metric)
        columns = ("matcher", SHORT.get(first, first), short, f"{short} minus {self.baseline}")
        head = f"<tr>{''.join(f'<th>{column}</th>' for column in columns)}</tr>"
        return f"<table>{head}{''.join(lines)}</table>"


def compare_matchers(
    regions: Regions | QuantizedRegions,
    labels: ArrayLike | Tensor,
    matchers: Mapping[str, Matcher],
    *,
    neighbours: Sequence[NeighbourMethod] = (),
    baseline: str = PLAIN,
    rerank_at: int = 100,
    queries: ArrayLike | Tensor | None = None,
    gallery: ArrayLike | Tensor | None = None,
    cameras: ArrayLike | Tensor | None = None,
    judgements: Judgements | None = None,
    originals: Regions | None = None,
    metrics: Sequence[str] = METRICS,
    without_relevant: WithoutRelevant = "exclude",
    resamples: int = 1000,
    seed: int = 0,
    progress: ShowProgress = False,
) -> MatcherComparison:
    """Rank the same candidates of the same queries by several matchers, and compare them in pairs.

    Args:
        regions: N images.
        labels, queries, gallery, cameras, judgements, originals, metrics, without_relevant, resamples, seed: as of
            `evaluate_regions`.
        matchers: name -> settings; the plain ranking is added as "plain".
        neighbours: methods that rank by neighbours, see `rank_by_neighbours`.
        baseline: name that differences are against.
        rerank_at: K, at least 1.
        progress: show a progress bar, or call a function with the matchers finished since.

    Returns:
        MatcherComparison, in fractions.

    Raises:
        ValueError: as `evaluate_regions`; no matcher of the baseline's name, or a reserved or doubled name.

    Example:
        >>> found = compare_matchers(regions, labels, {"paper": Matcher(), "exact": Matcher(epsilon=0)})
        >>> found.difference("exact", "map@r", against="paper")
    """
    names = [PLAIN, *matchers, *(NAMES[method] for method in neighbours)]
    if rerank_at < 1:
        raise ValueError(f"rerank_at: need at least 1, got {rerank_at}")
    if len(set(names)) != len(names):
        raise ValueError(f"matchers: need every name once, and none of {(PLAIN, *NAMES.values())}; got {names[1:]}")
    if baseline not in names:
        raise ValueError(f"baseline: need one of {names}, got {baseline!r}")
    split = QueryGallerySplit.of_regions(
        regions, labels, Sides(queries=queries, gallery=gallery, cameras=cameras, judgements=judgements)
    )
    split = split.subset(counted_queries(split, without_relevant))
    settings = {"without_relevant": without_relevant, "resamples": resamples, "seed": seed}
    contest = _Contest(regions, originals, split, rerank_at, settings, check_metrics(metrics))
    with progress_bar(len(names) - 1, show=progress, what="comparing", unit="matchers") as advance:
        for name, matcher in matchers.items():
            contest.add(name, matcher)
            advance(1)
        for method in neighbours:
            contest.add_neighbours(method)
            advance(1)
    return contest.result({"baseline": baseline, "rerank_at": rerank_at} | settings)


class _Contest:
    """The same candidates for all, and the results so far."""

    def __init__(
        self,
        regions: Regions | QuantizedRegions,
        originals: Regions | None,
        split: QueryGallerySplit,
        rerank_at: int,
        settings: dict[str, Any],
        metrics: tuple[str, ...],
    ) -> None:
        self.regions, self.originals, self.split = regions, originals, split
        self.settings, self.metrics = settings, metrics
        self.depth = max(HITS_KEPT, depth_needed(split.relevant_count, (rerank_at,), metrics, len(split.gallery)))
        started = time.perf_counter()
        self.plain = split.nearest(regions.pooled, self.depth)
        self.candidates = split.images(self.plain.order[:, :rerank_at])
        self.reports: dict[str, Report] = {}
        self.described: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.iterations: dict[str, float | None] = {}
        self.moved_by: dict[str, NDArray[np.int64]] = {}
        self._add(PLAIN, {"method": "pooled cosine"}, self.plain, time.perf_counter() - started)

    def add(self, name: str, matcher: Matcher) -> None:
        started = time.perf_counter()
        found = matcher.score_unique_pairs(self.regions, self.split.queries, self.candidates, originals=self.originals)
        ranking = self.plain.reranked(found.scores)
        seconds = time.perf_counter() - started
        self._add(name, matcher.to_dict(), ranking, seconds, found.unconverged, self._sampled_iterations(matcher))

    def add_neighbours(self, method: NeighbourMethod) -> None:
        started = time.perf_counter()
        found = rank_by_neighbours(method, self.regions.pooled.cpu(), self.split, self.depth)
        self._add(NAMES[method], {"method": method}, found.ranking, time.perf_counter() - started)
        self.moved_by[NAMES[method]] = found.moved_by[:, :HITS_KEPT].numpy()

    def result(self, settings: dict[str, Any]) -> MatcherComparison:
        first = self.reports[PLAIN]
        return MatcherComparison(
            per_query={name: report.per_query[0] for name, report in self.reports.items()},
            described=self.described,
            seconds=self.seconds,
            iterations=self.iterations,
            unconverged_pairs={name: report.unconverged_pairs for name, report in self.reports.items()},
            hits={name: report.hits[0] for name, report in self.reports.items()},
            moved_by=self.moved_by,
            queries=first.queries,
            gallery_size=first.gallery_size,
            settings=settings,
        )

    def _add(
        self,
        name: str,
        described: dict[str, Any],
        ranking: Ranking,
        seconds: float,
        unconverged: int = 0,
        iterations: float | None = None,
    ) -> None:
        self.reports[name] = Report.from_rankings(
            {0: ranking}, self.split, unconverged_pairs=unconverged, settings=self.settings, metrics=self.metrics
        )
        self.described[name], self.seconds[name], self.iterations[name] = described, seconds, iterations

    def _sampled_iterations(self, matcher: Matcher) -> float | None:
        """Mean iterations of some candidate pairs."""
        left = self.split.queries.repeat_interleave(self.candidates.shape[1])
        right = self.candidates.flatten()
        some = (right != NOTHING).nonzero().squeeze(1)
        some = some[torch.linspace(0, len(some) - 1, min(SAMPLED_PAIRS, len(some))).long()]
        if not len(some):
            return None
        queries = self.regions if self.originals is None else self.originals
        return float(matcher.match(queries[left[some]], self.regions[right[some]]).iterations.double().mean())


def _plain(value: Any) -> Any:
    return f"{value:.6f}" if isinstance(value, float) else value
