"""`diml audit`: how much of the scores comes from objects and how much from backgrounds; right for the wrong reason."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from diml.cli.options import (
    DataFlags,
    DataOptions,
    ForegroundFlags,
    ForegroundOptions,
    HeadFlags,
    HeadOptions,
    LoadingOptions,
    MatcherFlags,
    MatcherOptions,
    ModelFlags,
    ModelOptions,
    dataset_or_run,
)
from diml.cli.output import bad_image_line

if TYPE_CHECKING:
    from diml.audit import Audit
    from diml.data import DataSet

#: Images that are left out, and classes, to list in the terminal.
_LISTED = 15


@dataclass(frozen=True, kw_only=True)
class AuditCommand:
    """Given where the objects are, divide the scores of best hits into evidence from objects and from backgrounds, and
    find the queries that are right only because of the background, worst first.

    For instance:

    diml audit folder --data shop --masks shop-masks --output audit

    diml audit cub200 --data data --boxes data/cub200/bounding_boxes.txt --model runs/cub

    diml audit csv --data mine.csv --boxes mine.csv

    diml audit runs/mine --alpha
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET | RUN")]
    """Name of a data set (`diml datasets` lists them), whose test images are used; or the folder of a run, whose
    embedder is audited on the test images of its data set."""

    data: DataFlags = DataOptions()

    model: ModelFlags = ModelOptions()

    head_options: HeadFlags = HeadOptions()

    foregrounds: ForegroundFlags = ForegroundOptions()

    rerank_at: int = 100
    """K: the candidates of each query that are compared region by region."""

    hits: int = 1
    """Best hits of each query whose scores are divided; totals are of the first."""

    queries: int = 20
    """Number of queries on the page, worst first."""

    matcher: MatcherFlags = MatcherOptions()

    batch_size: int = 64
    """Images per batch."""

    workers: int | None = None
    """Loader processes; chosen by the number of cores when omitted."""

    output: Path | None = None
    """Folder for audit.html, audit.csv (a row for each query and hit) and audit.json."""

    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        """Embed, compare, divide, print, write."""
        from diml.audit import audit_dataset
        from diml.audit.page import write_audit
        from diml.files import require_writable

        if self.queries < 1:
            raise ValueError(f"queries: need at least 1, got {self.queries}")
        self.foregrounds.check()
        if self.output is not None:  # known before the work, not after
            require_writable(self.output)
        dataset, name = dataset_or_run(self.dataset, self.data, self.model, "audit")
        dataset.require_classes()
        foregrounds = self.foregrounds.open(dataset.test)
        # The audit embeds again, with the shares of the pooled vectors; the cache serves the fit of a head only.
        loading = LoadingOptions(on_bad_image="skip", batch_size=self.batch_size, workers=self.workers)
        opened = self.head_options.open(name, dataset, self.model, loading, check=self.matcher.for_model)
        embedder = opened.embedder
        for line in (opened.notice, self.matcher.notice(embedder.matcher)):
            if line is not None:
                print(line, file=sys.stderr)
        found = audit_dataset(
            embedder,
            foregrounds,
            matcher=self.matcher.applied_to(embedder.matcher),
            rerank_at=self.rerank_at,
            hits=self.hits,
            batch_size=self.batch_size,
            workers=self.workers,
            progress=True,
        )
        title = f"{dataset.name}, {dataset.protocol}, {name}, input {embedder.preprocess.size} pixels"
        config = self._config(dataset, name) | {"head": opened.head}
        document = json_format.dumps(found.to_dict() | {"config": config}, indent=1)
        if self.json:
            print(document)
        else:
            _print(found, title)
        if self.output is not None:
            written = write_audit(self.output, found, title=title, queries=self.queries, document=document)
            if not self.json:
                print("Written: " + ", ".join(str(path) for path in written))
        elif not self.json:
            print("Add --output FOLDER for a page of the worst queries, and a CSV file of all.")
        return 0

    def _config(self, dataset: DataSet, name: str) -> dict[str, Any]:
        """What the numbers depend on besides the matcher."""
        from importlib.metadata import version

        config: dict[str, Any] = {
            "dataset": dataset.name,
            "protocol": dataset.protocol,
            "data": str(self.data.data or "data"),
        }
        config |= self.model.settings() | {"model": name, "rerank_at": self.rerank_at, "hits": self.hits}
        config |= self.foregrounds.settings()
        return config | {"versions": {package: version(package) for package in ("diml", "torch", "numpy", "pillow")}}


COMMAND = AuditCommand


def _print(found: Audit, title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    what = "whole score" if found.whole is not None else "structural score"
    table = Table(
        title=f"{title}: {len(found.queries):,} queries, {len(found.images):,} images",
        title_justify="left",
        caption=f"O-O .. B-B: percent of the {what} of best hits, from object (O) or background (B) of the query to "
        "that of the hit. Area: O-O, if evidence were distributed evenly over the regions. Only by B: right, and wrong "
        "without the background (also where the size of the objects does not count).",
        caption_justify="left",
    )
    for column in ("class", "queries", "right", "only by B", "O-O", "O-B", "B-O", "B-B", "area"):
        table.add_column(column, justify="left" if column == "class" else "right")
    classes = found.classes
    for one in (found.total, *classes[:_LISTED]):
        shares = [f"{100 * share:.1f}" for share in (*one.shares, one.by_area[0])]
        flagged = f"{one.background_only:,} ({one.confirmed:,})"
        table.add_row(Text(one.name), f"{one.queries:,}", f"{one.right:,}", flagged, *shares)
    console.print(table)
    plain: dict[str, Any] = {"markup": False, "soft_wrap": True}
    if len(classes) > _LISTED:
        console.print(
            f"The {_LISTED} of {len(classes):,} classes with the smallest share from object to object.", **plain
        )
    total = found.total
    console.print(
        f"{total.background_only:,} of {total.right:,} right queries are right only because of the background: without "
        f"it, among the same {found.candidates:,} candidates, a wrong image is first; {total.confirmed:,} also where "
        f"the size of the objects does not count. Wrong because of the background: {total.object_only:,}.",
        **plain,
    )
    _print_worst(console, found, plain)
    if found.undivided:
        console.print(f"The pooled cosine is not divided and counts in full: {found.undivided}", **plain)
    for image in found.left_out[:_LISTED]:
        console.print(bad_image_line(image), **plain)
    notes = {
        f"{len(found.left_out):,} images left out of queries and gallery": found.left_out,
        f"{found.clipped:,} boxes extended beyond their images and were clipped": found.clipped,
        f"{found.empty:,} images show nothing of their object in the network's view": found.empty,
        f"{found.without_relevant:,} queries without a relevant image left out": found.without_relevant,
    }
    for note, holds in notes.items():
        if holds:
            console.print(note, **plain)


def _print_worst(console: Any, found: Audit, plain: dict[str, Any]) -> None:
    """The worst queries that are right only because of the background."""
    names, labels = found.images.class_names, found.images.labels
    for query in [row for row in found.worst_first() if found.background_only[row]][:5]:
        own, hit, without = (int(rows[query]) for rows in (found.queries, found.hits[:, 0], found.object_hits))
        console.print(
            f"  {found.images.image_name(own)}: right by {found.images.image_name(hit)}, without background "
            f"{found.images.image_name(without)} ({names[labels[without]]})",
            **plain,
        )
