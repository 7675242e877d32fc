"""One table of results over seeds, from the finished runs of a sweep: on screen, CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from diml.evaluation.tables import SHOWN, row_name
from diml.files import write_text
from diml.training.sweep import Job, Sweep

CAPTION = "Percent, mean over seeds; lowest..highest below."
GAINS = "Re-ranked minus plain, percentage points, paired by seed"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values of the seeds, fractions, in the order of the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return sum(self.values) / len(self.values)

    def text(self, sign: str = "") -> str:
        """In percent: the mean, and lowest..highest where there are several seeds."""
        mean = f"{100 * self.mean:{sign}.2f}"
        return mean if len(self.values) == 1 else f"{mean} ({self.range(sign)})"

    def range(self, sign: str = "") -> str:
        """Lowest..highest, in percent."""
        return f"{100 * min(self.values):{sign}.2f}..{100 * max(self.values):{sign}.2f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"mean": self.mean, "min": min(self.values), "max": max(self.values), "values": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """A method with one K, over seeds.

    Args:
        method: name of the run or baseline.
        rerank: K; 0 is the plain ranking.
        seeds: those that are finished, in order; None for a baseline, which has none.
        metrics: metric -> values.
        gains: metric -> values less those of the plain ranking, seed by seed; None in the plain row.
        best_epochs: that were tested, of each seed; None where the last was kept.
    """

    method: str
    rerank: int
    seeds: tuple[int, ...] | None
    metrics: dict[str, Spread]
    gains: dict[str, Spread] | None
    best_epochs: tuple[int | None, ...]

    @property
    def name(self) -> str:
        """As tables call it."""
        return row_name(self.method, self.rerank)


@dataclass(frozen=True, kw_only=True)
class Results:
    """What is finished of a sweep, what is missing, and on how many images it was measured."""

    title: str
    rows: tuple[ResultRow, ...]
    missing: tuple[str, ...]


def collect_results(sweep: Sweep) -> Results:
    """Read the finished runs of a sweep."""
    found = [(job, job.report()) for job in sweep.jobs]
    missing = tuple(job.title for job, document in found if document is None)
    done = [(job, document) for job, document in found if document is not None]
    rows: list[ResultRow] = []
    for name in dict.fromkeys(job.name for job, _ in done):
        rows += _rows_of(name, [(job, document) for job, document in done if job.name == name])
    config = sweep.jobs[0].config
    title = config.dataset + (f", {config.protocol}" if config.protocol else "")
    if done:
        measured = next(iter(done[0][1]["methods"].values()))
        title += f": {measured['queries']} queries, {measured['gallery']} gallery images"
    return Results(title=title, rows=tuple(rows), missing=missing)


def _rows_of(name: str, done: Sequence[tuple[Job, dict[str, Any]]]) -> list[ResultRow]:
    """The rows of one method: the plain one, and the re-ranked one."""
    reports = [next(iter(document["methods"].values())) for _, document in done]
    by_rerank = [{int(row["rerank"]): row for row in report["rows"]} for report in reports]
    frozen = done[0][0].baseline is not None
    rows = []
    for k in by_rerank[0]:
        gains = {m: Spread(values=tuple(rows_[k][m] - rows_[0][m] for rows_ in by_rerank)) for m in SHOWN}
        rows.append(
            ResultRow(
                method=name,
                rerank=k,
                seeds=None if frozen else tuple(job.config.seed for job, _ in done),
                metrics={m: Spread(values=tuple(rows_[k][m] for rows_ in by_rerank)) for m in SHOWN},
                gains=gains if k else None,
                best_epochs=tuple(document["config"].get("best_epoch") for _, document in done),
            )
        )
    return rows


def results_tables(results: Results) -> list[Table]:
    """For the screen: the metrics, and what re-ranking changed."""
    metrics, gains = _table(results.title, CAPTION), _table(GAINS, None)
    for row in results.rows:
        count = "-" if row.seeds is None else str(len(row.seeds))
        metrics.add_row(row.name, count, *(_cell(row.metrics[m]) for m in SHOWN))
        if row.gains is not None:
            gains.add_row(row.name, count, *(_cell(row.gains[m], "+") for m in SHOWN))
    return [table for table in (metrics, gains) if table.row_count]


def write_results(folder: Path, results: Results, seeds: Sequence[int]) -> tuple[Path, Path, Path]:
    """Write `results.csv` and `results.json` (fractions) and `results.md` (percent); each is whole or absent."""
    document = {
        "unit": "fraction",
        "title": results.title,
        "seeds": list(seeds),
        "rows": [_plain(row) for row in results.rows],
        "missing": list(results.missing),
    }
    return (
        write_text(folder / "results.csv", _csv(results)),
        write_text(folder / "results.json", json.dumps(document, indent=1)),
        write_text(folder / "results.md", markdown(results)),
    )


def markdown(results: Results) -> str:
    """Both tables as Markdown."""
    head = f"| method | seeds | {' | '.join(SHOWN.values())} |\n|---|---|{'---|' * len(SHOWN)}\n"
    lines, gains = [], []
    for row in results.rows:
        start = f"| {row.name} | {'-' if row.seeds is None else len(row.seeds)} | "
        lines.append(start + " | ".join(row.metrics[m].text() for m in SHOWN) + " |\n")
        if row.gains is not None:
            gains.append(start + " | ".join(row.gains[m].text("+") for m in SHOWN) + " |\n")
    text = f"{results.title}. Percent, mean over seeds (lowest..highest).\n\n{head}{''.join(lines)}"
    if gains:
        text += f"\n{GAINS}, mean (lowest..highest).\n\n{head}{''.join(gains)}"
    if results.missing:
        text += f"\nNot finished: {'; '.join(results.missing)}.\n"
    return text


def _csv(results: Results) -> str:
    names = [name for m in SHOWN for kind in (m, f"{m}_gain") for name in (kind, f"{kind}_min", f"{kind}_max")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "rerank", "seeds", *names])
    for row in results.rows:
        line = [row.method, str(row.rerank), "" if row.seeds is None else " ".join(map(str, row.seeds))]
        for m in SHOWN:
            for spread in (row.metrics[m], None if row.gains is None else row.gains[m]):
                numbers = () if spread is None else (spread.mean, min(spread.values), max(spread.values))
                line += [f"{value:.6f}" for value in numbers] or ["", "", ""]
        writer.writerow(line)
    return text.getvalue()


def _plain(row: ResultRow) -> dict[str, Any]:
    return {
        "method": row.method,
        "rerank": row.rerank,
        "seeds": None if row.seeds is None else list(row.seeds),
        "best_epochs": list(row.best_epochs),
        "metrics": {m: spread.to_dict() for m, spread in row.metrics.items()},
        "gains": None if row.gains is None else {m: spread.to_dict() for m, spread in row.gains.items()},
    }


def _table(title: str, caption: str | None) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("method", min_width=15, overflow="fold")
    for column in ("seeds", *SHOWN.values()):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cell(spread: Spread, sign: str = "") -> Text:
    """The mean with the range below it, so that tables fit 80 columns."""
    mean = f"{100 * spread.mean:{sign}.2f}"
    return Text(mean) if len(spread.values) == 1 else Text.assemble(mean, "\n", (spread.range(sign), "dim"))
