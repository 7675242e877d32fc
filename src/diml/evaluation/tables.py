"""Reports for people and machines: a table on screen, CSV and JSON in a folder."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from diml.evaluation.report import Report, csv_lines
from diml.files import write_text

#: Columns of the table on screen; CSV and JSON have all of them.
SHOWN = {"recall@1": "R@1", "r_precision": "RP", "map@r": "MAP@R", "r_precision_self_counted": "RP*"}
SHOWN |= {"map@r_self_counted": "MAP@R*"}

#: What the starred columns are; printed under the table.
NOTE = "Percent, with 95 % bootstrap intervals over queries. * as in the released code: R counts the query itself."

PACKAGES = ("diml", "torch", "torchvision", "timm", "numpy", "pillow")


def report_table(reports: Mapping[str, Report], title: str | None = None) -> Table:
    """A table in percent: a row for each method and K, R@1, RP and MAP@R with intervals.

    The differences against the plain ranking, paired by query, stand in `difference_table`.
    """
    table = Table(title=title, title_justify="left", caption=NOTE, caption_justify="left")
    table.add_column("method")
    for metric, short in SHOWN.items():
        table.add_column(short, justify="right", no_wrap=True)
        if not metric.endswith("self_counted"):
            table.add_column("95 %", justify="right", no_wrap=True, style="dim")
    for method, report in reports.items():
        for row, bounds in zip(report.rows, report.intervals, strict=True):
            cells = [row_name(method, int(row["rerank"]))]
            for metric in SHOWN:
                cells.append(_percent(row[metric]))
                if not metric.endswith("self_counted"):
                    cells.append(" .. ".join(_percent(bound) for bound in bounds[metric]))
            table.add_row(*cells)
        table.add_section()
    return table


def difference_table(reports: Mapping[str, Report]) -> Table | None:
    """What re-ranking changed, in percentage points with paired intervals; None when nothing was re-ranked."""
    table = Table(
        title="Re-ranked minus plain, percentage points, paired by query (95 %)",
        title_justify="left",
        caption="Where the interval holds 0, this evaluation does not show a difference.",
        caption_justify="left",
    )
    metrics = ("recall@1", "r_precision", "map@r")
    for column in ("method", *(SHOWN[metric] for metric in metrics)):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, report in reports.items():
        for k in dict.fromkeys(comparison.rerank for comparison in report.comparisons):
            found = {c.metric: c for c in report.comparisons if c.rerank == k}
            cells = [f"{100 * c.difference:+.2f} ({100 * c.low:+.2f} .. {100 * c.high:+.2f})" for c in found.values()]
            by_metric = dict(zip(found, cells, strict=True))
            table.add_row(row_name(method, k), *(by_metric[metric] for metric in metrics))
    return table if table.row_count else None


def row_name(method: str, rerank: int) -> str:
    """A method with K re-ranked candidates, as tables call it."""
    return method if rerank == 0 else f"{method} + DIML ({rerank})"


def write_reports(folder: str | Path, reports: Mapping[str, Report], config: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write `evaluation.csv` (fractions, a line a method and K) and `evaluation.json` (with config and versions).

    Returns:
        The two paths. Both files are whole or absent.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(csv_lines(reports))
    document = {
        "unit": "fraction",
        "config": dict(config),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "methods": {method: report.to_dict() for method, report in reports.items()},
    }
    csv_path = write_text(Path(folder) / "evaluation.csv", text.getvalue())
    return csv_path, write_text(Path(folder) / "evaluation.json", json.dumps(document, indent=1))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
