"""Tables of evaluations: printed in percent, or written as CSV and JSON in fractions."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diml.checksums import sealed
from diml.evaluation.differences import Differences, Row
from diml.evaluation.extra import EXTRA_METRICS
from diml.evaluation.metrics import RECALL_AT
from diml.evaluation.report import SHORT, Report
from diml.evaluation.result_table import Cell, ResultTable
from diml.extras import require
from diml.files import write_text

if TYPE_CHECKING:
    from pandas import DataFrame

#: Columns of the printed table by default; CSV and JSON have all metrics.
SHOWN = {"recall@1": "R@1", "r_precision": "RP", "map@r": "MAP@R"}
SELF_COUNTED = {"r_precision_self_counted": "RP*", "map@r_self_counted": "MAP@R*"}

#: Caption of the table.
NOTE = "Percent, with 95 % bootstrap intervals over queries. * protocol of the released code: R counts the query."

#: Metrics that are distances or spectra rather than fractions.
_NO_FRACTIONS = ("intra_distance", "inter_distance", "intra_over_inter", "rho@")

#: Packages whose versions are recorded.
PACKAGES = ("diml", "torch", "torchvision", "timm", "numpy", "pillow")


def report_table(reports: Mapping[str, Report], title: str | None = None) -> ResultTable:
    """A table in percent: a row for each method and K, with the size of the network's input where it is known; R@1, RP
    and MAP@R, or the metrics that were asked for, with intervals.

    `difference_table` has the paired differences.
    """
    shown = shown_metrics(reports.values())
    released = SELF_COUNTED if all(set(SELF_COUNTED) <= set(report.rows[0]) for report in reports.values()) else {}
    caption = NOTE if released else NOTE.partition(" * ")[0]
    table = ResultTable(["method", *shown.values(), *released.values()], title, caption)
    for method, report in reports.items():
        size = input_text(report)
        for row, bounds in zip(report.rows, report.intervals, strict=True):
            cells = [Cell.of(row[metric], bounds[metric], ".2f", ".1f") for metric in shown]
            plain = [Cell.of(row[metric], None, ".2f") for metric in released]
            name = Cell(row_name(method, int(row["rerank_at"])), (size,) if size else ())
            table.add(name, *cells, *plain)
        table.end_section()
    return table


def input_text(report: Report) -> str:
    """Size of the network's input, as in tables; empty where it is not known."""
    facts = report.settings.get("input")
    if facts is None:
        return ""
    gap = facts.get("reducing_gap")
    square = ", square" * (facts["resize"] == "square")
    return f"{facts['size']} pixels{square}" + ("" if gap is None else f", reducing gap {gap:g}")


def difference_table(reports: Mapping[str, Report], baseline: str | None = None) -> ResultTable | None:
    """Differences between rows in percentage points, with paired intervals; None when there is one row.

    Args:
        reports: method -> its report; all of the same queries.
        baseline: row that all others are against, as written in the table. None: re-ranked minus plain of every
            method, and every method minus the first.

    Raises:
        ValueError: no such row, or reports of different queries.
    """
    shown = shown_metrics(reports.values())
    found = Differences(reports)
    chosen = found.usual() if baseline is None else found.against(baseline)
    caption = "An interval that contains 0: no difference is shown by this evaluation."
    table = ResultTable(
        ["row", "minus", *shown.values()], "Differences, percentage points, paired by query", caption, words=2
    )
    for difference in chosen:
        values = [difference.metrics[metric] for metric in shown]
        cells = [Cell.of(value.value, (value.low, value.high), "+.2f", "+.1f") for value in values]
        table.add(str(difference.row), str(difference.minus), *cells)
    return table if table.rows else None


def shown_metrics(reports: Collection[Report]) -> dict[str, str]:
    """Metrics of the printed table, and how they are written.

    The standard columns where all reports have them; else recall at every rank that was asked for, and those of the
    others that they have.
    """
    have = [set(report.rows[0]) for report in reports]
    names = [name for name in next(iter(reports)).rows[0] if all(name in found for found in have)]
    if set(SHOWN) <= set(names) and {f"recall@{k}" for k in RECALL_AT} <= set(names):
        return SHOWN
    shown = {name: metric_name(name) for name in names}
    return {name: short for name, short in shown.items() if short != name}


def metric_name(metric: str) -> str:
    """How a metric is written in printed tables; its own name where it is not shown there."""
    kind, _, rank = metric.partition("@")
    if kind in ("recall", "map") and rank.isdecimal():
        return f"{'R' if kind == 'recall' else 'mAP'}@{rank}"
    return SHORT.get(metric, metric)


def row_name(method: str, rerank_at: int) -> str:
    """Name of a row: a method, with K re-ranked candidates."""
    return str(Row(method, rerank_at))


def write_reports(
    folder: str | Path,
    reports: Mapping[str, Report],
    config: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write `evaluation.csv` (fractions, a line a method and K) and `evaluation.json` (with config and versions); and
    `differences.csv`, where there are several rows.

    Args:
        folder: target folder.
        reports: method -> its report; all of the same queries.
        config: settings of the evaluation; plain values.
        more: further keys of the JSON document; plain values.

    Returns:
        The paths. Each file is written atomically.
    """
    differences = difference_records(reports)
    document = {
        "unit": "fraction",
        "config": dict(config),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "methods": {method: report.to_dict() for method, report in reports.items()},
        "differences": differences,
        **(more or {}),
    }
    folder = Path(folder)
    written = [write_text(folder / "evaluation.csv", csv_text(csv_lines(reports)))]
    written.append(write_text(folder / "evaluation.json", json.dumps(sealed(document), indent=1)))
    if differences:
        lines = [list(differences[0]), *([_plain(value) for value in record.values()] for record in differences)]
        written.append(write_text(folder / "differences.csv", csv_text(lines)))
    return written


def difference_records(reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    """Every row minus every earlier row, every metric, with paired intervals: one dict of plain values each.

    Empty where the reports are of different queries.
    """
    every = list(reports.values())
    if not every or not all(report.is_comparable(every[0]) for report in every):
        return []
    return [record for difference in Differences(reports).all() for record in difference.records()]


def reports_frame(reports: Mapping[str, Report]) -> DataFrame:
    """A pandas data frame of several reports: a row for each method and K, the columns of `Report.to_frame`.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    require("tables", "data frames")
    from pandas import concat

    return concat({method: report.to_frame() for method, report in reports.items()}, names=["method"])


def csv_lines(reports: Mapping[str, Report]) -> list[list[str]]:
    """Header and one line a method and K: `method,rerank_at,queries,input`, then each metric, its low and high;
    fractions.
    """
    header = ["method", "rerank_at", "queries", "input"]
    metrics = dict.fromkeys(name for report in reports.values() for name in report.intervals[0])
    header += [name for metric in metrics for name in (metric, f"{metric}_low", f"{metric}_high")]
    lines = [header]
    for method, report in reports.items():
        for record in report.records():
            numbers = [_plain(record[name]) if name in record else "" for name in header[4:]]
            lines.append([method, str(record["rerank_at"]), str(len(report.queries)), input_text(report), *numbers])
    return lines


def csv_text(lines: Iterable[Iterable[str]]) -> str:
    """Lines of cells as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _plain(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def recall_table(reports: Mapping[str, Report]) -> ResultTable:
    """Recall at every rank that all reports have, in percent: a row for each method and K."""
    shared = [
        name
        for name in next(iter(reports.values())).intervals[0]
        if name.startswith("recall@") and all(name in report.intervals[0] for report in reports.values())
    ]
    table = ResultTable(["method", *(f"R@{name.partition('@')[2]}" for name in shared)], "Recall@k, percent")
    for method, report in reports.items():
        for row in report.rows:
            cells = [Cell.of(row[name], None, ".2f") for name in shared]
            table.add(row_name(method, int(row["rerank_at"])), *cells)
    return table


def extra_table(found: Mapping[str, Mapping[str, float]]) -> ResultTable:
    """`extra_metrics` of each method: a row a metric, a column a method."""
    caption = "NMI, F1 and mAP in percent; cosine distances; rho in nats. self_counted: protocol of the base code."
    table = ResultTable(["metric", *found], "Further metrics, pooled vectors, no re-ranking", caption)
    for name in EXTRA_METRICS:
        table.add(name, *(_shown(name, metrics[name]) for metrics in found.values()))
    return table


def write_extra(folder: str | Path, found: Mapping[str, Mapping[str, float]]) -> Path:
    """Write `metrics.csv`: a line a method, a column a metric, values as `extra_metrics` gives them."""
    lines = [[method, *(f"{metrics[name]:.6f}" for name in EXTRA_METRICS)] for method, metrics in found.items()]
    return write_text(Path(folder) / "metrics.csv", csv_text([["method", *EXTRA_METRICS], *lines]))


def _shown(name: str, value: float) -> str:
    return f"{value:.4f}" if name.startswith(_NO_FRACTIONS) else f"{100 * value:.2f}"
