"""What several commands print about an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from diml.cli.errors import one_line

if TYPE_CHECKING:
    from diml.data.images import BadImage
    from diml.evaluation import DatasetEvaluation, Report
    from diml.evaluation.result_table import ResultTable


def report_tables(title: str, reports: Mapping[str, Report], baseline: str | None = None) -> list[ResultTable]:
    """The table of metrics and that of paired differences; `baseline` as of `difference_table`."""
    from diml.evaluation.tables import difference_table, report_table

    first = next(iter(reports.values()))
    sizes = f"{len(first.queries)} queries, {first.gallery_size} gallery images"
    tables = [report_table(reports, f"{title}: {sizes}"), difference_table(reports, baseline)]
    return [table for table in tables if table is not None]


def print_reports(title: str, reports: Mapping[str, Report]) -> None:
    """Print the table of metrics and the paired differences."""
    from rich.console import Console

    console = Console()
    for table in report_tables(title, reports):
        console.print(table)


def bad_image_line(image: BadImage) -> str:
    """The line that names an image that was left out, whatever its name holds."""
    return one_line(f"left out {image.path}: {image.reason}")


def left_out_lines(found: Mapping[str, DatasetEvaluation]) -> list[str]:
    """A line for every image that was left out, and for queries without a relevant image."""
    lines = []
    for name, evaluation in found.items():
        lines += [f"{name}: {bad_image_line(image)}" for image in evaluation.bad]
        without = len(evaluation.report.without_relevant)
        if without:
            how = {"exclude": "excluded", "miss": "counted as misses"}[evaluation.report.settings["without_relevant"]]
            lines.append(f"{name}: {without} queries have no relevant image ({how})")
    return lines


def print_evaluation(title: str, found: Mapping[str, DatasetEvaluation]) -> None:
    """Print the tables, and name the images and queries that were left out."""
    print_reports(title, {name: evaluation.report for name, evaluation in found.items()})
    for line in left_out_lines(found):
        print(line)
