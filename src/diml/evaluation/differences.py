"""Differences between rows of a table of evaluations: models, and re-ranked against plain, paired by query."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from diml.evaluation.intervals import Interval, PairedMeans
from diml.evaluation.report import Report, paired_means


class Row(NamedTuple):
    """A row of a table of evaluations: the name of a method, and K."""

    method: str
    rerank_at: int

    def __str__(self) -> str:
        return self.method if self.rerank_at == 0 else f"{self.method} + DIML ({self.rerank_at})"


class RowDifference(NamedTuple):
    """One row minus another, by metric, with paired intervals; fractions."""

    row: Row
    minus: Row
    metrics: dict[str, Interval]

    def records(self) -> list[dict[str, Any]]:
        """One dict of plain values a metric, for JSON, CSV and data frames."""
        sides = {"method": self.row.method, "rerank_at": self.row.rerank_at}
        sides |= {"minus_method": self.minus.method, "minus_rerank_at": self.minus.rerank_at}
        return [
            sides | {"metric": name, "difference": value.value, "low": value.low, "high": value.high}
            for name, value in self.metrics.items()
        ]


class Differences:
    """Differences between any two rows of reports of the same queries.

    Args:
        reports: method -> its report.

    Raises:
        ValueError: reports of different queries or galleries.
    """

    def __init__(self, reports: Mapping[str, Report]) -> None:
        self._means: PairedMeans = paired_means(reports)
        self._metrics = {name: list(report.per_query[min(report.per_query)]) for name, report in reports.items()}
        self.rows = [Row(name, k) for name, report in reports.items() for k in report.per_query]

    def between(self, row: Row, minus: Row) -> RowDifference:
        """The difference of two rows, of the metrics that both have."""
        shared = [name for name in self._metrics[row.method] if name in self._metrics[minus.method]]
        found: dict[str, Interval] = {}
        for name in shared:
            one: Hashable = (row.method, row.rerank_at, name)
            found[name] = self._means.difference(one, (minus.method, minus.rerank_at, name))
        return RowDifference(row, minus, found)

    def all(self) -> list[RowDifference]:
        """Every row minus every earlier one."""
        return [self.between(row, minus) for minus, row in itertools.combinations(self.rows, 2)]

    def usual(self) -> list[RowDifference]:
        """Re-ranked minus plain of every method, then every other method minus the first, at the same K."""
        first = self.rows[0].method
        least = {
            row.method: min(other.rerank_at for other in self.rows if other.method == row.method) for row in self.rows
        }
        pairs = [(row, Row(row.method, least[row.method])) for row in self.rows]
        pairs += [(row, Row(first, row.rerank_at)) for row in self.rows]
        return [self.between(row, minus) for row, minus in pairs if row != minus and minus in self.rows]

    def against(self, baseline: str) -> list[RowDifference]:
        """Every other row minus the one that is written so in the table.

        Raises:
            ValueError: no such row.
        """
        found = [row for row in self.rows if str(row) == baseline]
        if not found:
            raise ValueError(f"baseline: need a row of the table, {' | '.join(map(str, self.rows))}; got {baseline!r}")
        return [self.between(row, found[0]) for row in self.rows if row != found[0]]
