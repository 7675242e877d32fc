"""Reports for people and machines: a table on screen, CSV and JSON in a folder."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from diml.evaluation.report import Report, csv_lines
from diml.files import write_text

#: Columns of the table on screen; CSV and JSON have all of them.
SHOWN = {"recall@1": "R@1", "r_precision": "RP", "map@r": "MAP@R"}
SELF_COUNTED = {"r_precision_self_counted": "RP*", "map@r_self_counted": "MAP@R*"}

#: What the starred columns are; printed under the table.
NOTE = "Percent; below, 95 % bootstrap intervals over queries. * as in the released code: R counts the query itself."

PACKAGES = ("diml", "torch", "torchvision", "timm", "numpy", "pillow")


def report_table(reports: Mapping[str, Report], title: str | None = None) -> Table:
    """A table in percent: a row for each method and K, R@1, RP and MAP@R with intervals.

    The differences against the plain ranking, paired by query, stand in `difference_table`.
    """
    table = _table(title, NOTE, (SHOWN | SELF_COUNTED).values())
    for method, report in reports.items():
        for row, bounds in zip(report.rows, report.intervals, strict=True):
            cells = [_cell(f"{100 * row[metric]:.2f}", bounds[metric], ".1f") for metric in SHOWN]
            released = [f"{100 * row[metric]:.2f}" for metric in SELF_COUNTED]
            table.add_row(row_name(method, int(row["rerank"])), *cells, *released)
        table.add_section()
    return table


def difference_table(reports: Mapping[str, Report]) -> Table | None:
    """What re-ranking changed, in percentage points with paired intervals; None when nothing was re-ranked."""
    caption = "Where the interval holds 0, this evaluation does not show a difference."
    table = _table("Re-ranked minus plain, percentage points, paired by query", caption, SHOWN.values())
    for method, report in reports.items():
        for k in dict.fromkeys(comparison.rerank for comparison in report.comparisons):
            found = {c.metric: c for c in report.comparisons if c.rerank == k}
            chosen = [found[metric] for metric in SHOWN]
            cells = [_cell(f"{100 * c.difference:+.2f}", (c.low, c.high), "+.1f") for c in chosen]
            table.add_row(row_name(method, k), *cells)
    return table if table.row_count else None


def row_name(method: str, rerank: int) -> str:
    """A method with K re-ranked candidates, as tables call it."""
    return method if rerank == 0 else f"{method} + DIML ({rerank})"


def write_reports(
    folder: str | Path,
    reports: Mapping[str, Report],
    config: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Write `evaluation.csv` (fractions, a line a method and K) and `evaluation.json` (with config and versions).

    Args:
        folder: where to.
        reports: method -> what was found of it.
        config: how it was found; plain values.
        more: further keys of the JSON document; plain values.

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
        **(more or {}),
    }
    csv_path = write_text(Path(folder) / "evaluation.csv", text.getvalue())
    return csv_path, write_text(Path(folder) / "evaluation.json", json.dumps(document, indent=1))


def _table(title: str | None, caption: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("method", min_width=15, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cell(value: str, bounds: tuple[float, float], form: str) -> Text:
    """A value in percent with its interval below it, so that tables fit 80 columns."""
    low, high = (format(100 * bound, form) for bound in bounds)
    return Text.assemble(value, "\n", (f"{low}..{high}", "dim"))
