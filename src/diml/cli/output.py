"""What several commands print about an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diml.evaluation import DatasetEvaluation, Report


def print_reports(title: str, reports: Mapping[str, Report]) -> None:
    """Print the table of metrics and the paired differences of re-ranking."""
    from rich.console import Console

    from diml.evaluation.tables import difference_table, report_table

    console = Console()
    first = next(iter(reports.values()))
    sizes = f"{len(first.queries)} queries, {first.gallery_size} gallery images"
    console.print(report_table(reports, f"{title}: {sizes}"))
    differences = difference_table(reports)
    if differences is not None:
        console.print(differences)


def print_evaluation(title: str, found: Mapping[str, DatasetEvaluation]) -> None:
    """Print the tables, and name the images and queries that were left out."""
    from rich.console import Console

    print_reports(title, {name: evaluation.report for name, evaluation in found.items()})
    console = Console()
    for name, evaluation in found.items():
        for image in evaluation.bad:
            console.print(f"{name}: left out {image.path}: {image.reason}", markup=False, soft_wrap=True)
        without = len(evaluation.report.without_relevant)
        if without:
            how = {"exclude": "excluded", "miss": "counted as misses"}[evaluation.report.settings["without_relevant"]]
            console.print(f"{name}: {without} queries have no relevant image ({how})", markup=False)
