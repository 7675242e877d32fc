"""Tables of the further metrics, on screen and as CSV: every Recall@k, and what `extra_metrics` finds."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from diml.evaluation.dataset import DatasetEvaluation
from diml.evaluation.extra import EXTRA_METRICS, extra_metrics
from diml.evaluation.metrics import RECALL_AT
from diml.evaluation.report import Report
from diml.evaluation.tables import row_name
from diml.files import write_text

#: Metrics that are no fractions: distances and spectra.
_NO_FRACTIONS = ("intra_distance", "inter_distance", "intra_over_inter", "rho@")


def extra_of(evaluation: DatasetEvaluation, seed: int = 0) -> dict[str, float]:
    """Compute `extra_metrics` of what `evaluate_dataset` embedded, with its queries and gallery."""
    images = evaluation.images
    return extra_metrics(evaluation.regions, images.labels, queries=images.queries, gallery=images.gallery, seed=seed)


def print_extra(reports: Mapping[str, Report], found: Mapping[str, Mapping[str, float]]) -> None:
    """Print both tables."""
    console = Console()
    console.print(recall_table(reports))
    console.print(extra_table(found))


def recall_table(reports: Mapping[str, Report]) -> Table:
    """Recall@1, 2, 4, 8 in percent: a row for each method and K."""
    table = Table(title="Recall@k, percent", title_justify="left")
    table.add_column("method", min_width=15, overflow="fold")
    for k in RECALL_AT:
        table.add_column(f"R@{k}", justify="right", no_wrap=True)
    for method, report in reports.items():
        for row in report.rows:
            table.add_row(row_name(method, int(row["rerank"])), *(f"{100 * row[f'recall@{k}']:.2f}" for k in RECALL_AT))
    return table


def extra_table(found: Mapping[str, Mapping[str, float]]) -> Table:
    """What `extra_metrics` found of each method: a row a metric, a column a method."""
    caption = "NMI, F1 and mAP in percent; cosine distances and rho (nats) as they are. self_counted: as the base code."
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


def _shown(name: str, value: float) -> str:
    return f"{value:.4f}" if name.startswith(_NO_FRACTIONS) else f"{100 * value:.2f}"
