"""Tables of evaluations: printed in percent, or written as CSV and JSON in fractions."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from diml.evaluation.extra import EXTRA_METRICS
from diml.evaluation.metrics import RECALL_AT
from diml.evaluation.report import SHORT, Report
from diml.files import write_text

#: Columns of the printed table by default; CSV and JSON have all metrics.
SHOWN = {"recall@1": "R@1", "r_precision": "RP", "map@r": "MAP@R"}
SELF_COUNTED = {"r_precision_self_counted": "RP*", "map@r_self_counted": "MAP@R*"}

#: Caption of the table.
NOTE = (
    "Percent; second line: 95 % bootstrap interval over queries. * protocol of the released code: R counts the query."
)

#: Metrics that are distances or spectra rather than fractions.
_NO_FRACTIONS = ("intra_distance", "inter_distance", "intra_over_inter", "rho@")

#: Packages whose versions are recorded.
PACKAGES = ("diml", "torch", "torchvision", "timm", "numpy", "pillow")


def report_table(reports: Mapping[str, Report], title: str | None = None) -> Table:
    """A table in percent: a row for each method and K, R@1, RP and MAP@R with intervals.

    `difference_table` has the paired differences against the plain ranking.
    """
    shown = shown_metrics(reports.values())
    released = SELF_COUNTED if all(set(SELF_COUNTED) <= set(report.rows[0]) for report in reports.values()) else {}
    table = _table(title, NOTE if released else NOTE.partition(" * ")[0], (shown | released).values())
    for method, report in reports.items():
        for row, bounds in zip(report.rows, report.intervals, strict=True):
            cells = [_cell(f"{100 * row[metric]:.2f}", bounds[metric], ".1f") for metric in shown]
            plain = [f"{100 * row[metric]:.2f}" for metric in released]
            table.add_row(row_name(method, int(row["rerank_at"])), *cells, *plain)
        table.add_section()
    return table


def difference_table(reports: Mapping[str, Report]) -> Table | None:
    """Re-ranked minus plain, in percentage points with paired intervals; None when nothing was re-ranked."""
    caption = "An interval that contains 0: no difference is shown by this evaluation."
    shown = shown_metrics(reports.values())
    table = _table("Re-ranked minus plain, percentage points, paired by query", caption, shown.values())
    for method, report in reports.items():
        for k in dict.fromkeys(comparison.rerank_at for comparison in report.comparisons):
            found = {c.metric: c for c in report.comparisons if c.rerank_at == k}
            chosen = [found[metric] for metric in shown]
            cells = [_cell(f"{100 * c.difference:+.2f}", (c.low, c.high), "+.1f") for c in chosen]
            table.add_row(row_name(method, k), *cells)
    return table if table.row_count else None


def shown_metrics(reports: Collection[Report]) -> dict[str, str]:
    """Metrics of the printed table, and how they are written.

    The standard columns where all reports have them; else recall at every rank that was asked for, and those of the
    others that they have.
    """
    have = [set(report.rows[0]) for report in reports]
    names = [name for name in next(iter(reports)).rows[0] if all(name in found for found in have)]
    if set(SHOWN) <= set(names) and {f"recall@{k}" for k in RECALL_AT} <= set(names):
        return SHOWN
    return {name: short for name in names if (short := _short(name)) is not None}


def _short(metric: str) -> str | None:
    """How a metric is written in the printed table; None where it is not shown."""
    kind, _, rank = metric.partition("@")
    if kind in ("recall", "map") and rank.isdecimal():
        return f"{'R' if kind == 'recall' else 'mAP'}@{rank}"
    return SHORT.get(metric)


def row_name(method: str, rerank_at: int) -> str:
    """Name of a row: a method, with K re-ranked candidates."""
    return method if rerank_at == 0 else f"{method} + DIML ({rerank_at})"


def write_reports(
    folder: str | Path,
    reports: Mapping[str, Report],
    config: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Write `evaluation.csv` (fractions, a line a method and K) and `evaluation.json` (with config and versions).

    Args:
        folder: target folder.
        reports: method -> its report.
        config: settings of the evaluation; plain values.
        more: further keys of the JSON document; plain values.

    Returns:
        The two paths. Both files are written atomically.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(csv_lines(reports))
    document = {
        "unit": "fraction",
        "config": dict(config),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "methods": {method: report.to_dict() for method, report in reports.items()},
        **(more or {}),
    }
    csv_path = write_text(Path(folder) / "evaluation.csv", text.getvalue())
    return csv_path, write_text(Path(folder) / "evaluation.json", json.dumps(document, indent=1))


def csv_lines(reports: Mapping[str, Report]) -> list[list[str]]:
    """Header and one line a method and K: `method,rerank_at,queries`, then each metric, its low and high; fractions."""
    header = ["method", "rerank_at", "queries"]
    metrics = list(dict.fromkeys(name for report in reports.values() for name in report.rows[0] if name != "rerank_at"))
    header += [name for metric in metrics for name in (metric, f"{metric}_low", f"{metric}_high")]
    lines = [header]
    for method, report in reports.items():
        for row, bounds in zip(report.rows, report.intervals, strict=True):
            line = [method, str(int(row["rerank_at"])), str(len(report.queries))]
            for metric in metrics:
                line += [f"{value:.6f}" for value in (row[metric], *bounds[metric])]
            lines.append(line)
    return lines


def recall_table(reports: Mapping[str, Report]) -> Table:
    """Recall@1, 2, 4, 8 in percent: a row for each method and K."""
    table = _table("Recall@k, percent", None, [f"R@{k}" for k in RECALL_AT])
    for method, report in reports.items():
        for row in report.rows:
            table.add_row(
                row_name(method, int(row["rerank_at"])), *(f"{100 * row[f'recall@{k}']:.2f}" for k in RECALL_AT)
            )
    return table


def extra_table(found: Mapping[str, Mapping[str, float]]) -> Table:
    """`extra_metrics` of each method: a row a metric, a column a method."""
    caption = "NMI, F1 and mAP in percent; cosine distances; rho in nats. self_counted: protocol of the base code."
    table = Table(
        title="Further metrics, pooled vectors, no re-ranking",
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    table.add_column("metric", no_wrap=True)
    for method in found:
        table.add_column(method, justify="right", overflow="fold")
    for name in EXTRA_METRICS:
        table.add_row(name, *(_shown(name, metrics[name]) for metrics in found.values()))
    return table


def write_extra(folder: str | Path, found: Mapping[str, Mapping[str, float]]) -> Path:
    """Write `metrics.csv`: a line a method, a column a metric, values as `extra_metrics` gives them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", *EXTRA_METRICS])
    writer.writerows([method, *(f"{metrics[name]:.6f}" for name in EXTRA_METRICS)] for method, metrics in found.items())
    return write_text(Path(folder) / "metrics.csv", text.getvalue())


def _table(title: str | None, caption: str | None, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("method", min_width=15, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cell(value: str, bounds: tuple[float, float], form: str) -> Text:
    """A value in percent with its interval below it, so that tables fit 80 columns."""
    low, high = (format(100 * bound, form) for bound in bounds)
    return Text.assemble(value, "\n", (f"{low}..{high}", "dim"))


def _shown(name: str, value: float) -> str:
    return f"{value:.4f}" if name.startswith(_NO_FRACTIONS) else f"{100 * value:.2f}"
