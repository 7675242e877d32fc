"""`diml search INDEX --queries ...`: the hits of many queries, as a table, a CSV file or one JSON document."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from diml.cli.output import bad_image_line

if TYPE_CHECKING:
    from diml.data.images import BadImage
    from diml.search import Searcher, SearchResult

#: Hits of a query in the table; `--json` and `--csv` have all of them.
_SHOWN: Final = 3


class _Output(Protocol):
    """Where results go, one after the other. Nothing is printed before the end, as a progress bar is being drawn."""

    def take(self, searcher: Searcher, result: SearchResult) -> None:
        """Take the hits of one query."""


class QueriesTable:
    """The first hits of each query.

    Args:
        explain: as of `diml search`.
        top: number of matched regions of each hit, with "full".
    """

    def __init__(self, explain: str, top: int) -> None:
        self._explain, self._top = explain, top
        self._rows: list[tuple[str, ...]] = []
        self._notices: dict[str, None] = {}
        self._calibrated = False

    def take(self, searcher: Searcher, result: SearchResult) -> None:
        """Take the hits of one query."""
        from diml.cli.search import contributions

        self._notices |= dict.fromkeys(result.notices)
        sentences = [] if self._explain == "none" else _sentences(searcher, result)
        name = _short(result.query)
        if not result.hits:
            self._rows.append((name, "", "", "", "no hits"))
        for place, hit in enumerate(result.hits[:_SHOWN]):
            lines = [hit.id if hit.file is None else _short(str(hit.file)), *sentences[place : place + 1]]
            lines += contributions(result, place, self._top if self._explain == "full" else 0)
            self._calibrated |= hit.probability is not None
            chance = "" if hit.probability is None else f"{100 * hit.probability:.0f} %"
            self._rows.append(
                (name if place == 0 else "", str(place + 1), chance, f"{hit.score:.3f}", "\n".join(lines))
            )

    def print(self) -> None:
        """Print the table and what has to be said of its numbers."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(highlight=False)
        table = Table(title=f"The first {_SHOWN} hits of each query at most; all with --csv or --json")
        for column in ("query", "hit", "probability", "score", "image"):
            if column != "probability" or self._calibrated:
                right = column in ("hit", "probability", "score")
                table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
        for query, hit, chance, score, image in self._rows:
            table.add_row(Text(query), hit, *([chance] if self._calibrated else []), score, Text(image))
        console.print(table)
        for notice in self._notices:
            console.print(notice, markup=False, soft_wrap=True)


class QueriesDocument:
    """All results as one JSON document; each is kept as its text, which is smaller than its objects."""

    def __init__(self, index: str, explain: str, top: int) -> None:
        self._index, self._explain, self._top = index, explain, top
        self._texts: list[str] = []

    def take(self, searcher: Searcher, result: SearchResult) -> None:
        """Take the hits of one query."""
        possible = self._explain != "none" and result.hits and result.hit_regions is not None
        explained = searcher.explain(result) if possible else ()
        told = result.to_dict(self._top, explained, ledgers=self._explain == "full")
        self._texts.append(json.dumps(told, allow_nan=False))

    def print(self, bad: Sequence[BadImage]) -> None:
        """Print the document."""
        left = [{"path": image.path, "reason": image.reason} for image in bad]
        queries = ",\n ".join(self._texts)
        print(f'{{"index": {json.dumps(self._index)},\n"bad": {json.dumps(left)},\n"queries": [\n {queries}\n]}}')


class QueriesCsv:
    """All hits as rows of a CSV file."""

    def __init__(self, stream: TextIO, calibrated: bool) -> None:
        self._writer, self._calibrated = csv.writer(stream, lineterminator="\n"), calibrated
        more = ["probability"] if calibrated else []
        self._writer.writerow(["query", "rank", "hit", "score", "label", *more])

    def take(self, searcher: Searcher, result: SearchResult) -> None:
        """Write the hits of one query."""
        for rank, hit in enumerate(result.hits, 1):
            label = hit.metadata.get("label")
            row: list[Any] = [result.query, rank, str(hit.file or hit.id), hit.score, "" if label is None else label]
            self._writer.writerow([*row, *(["" if hit.probability is None else hit.probability] * self._calibrated)])


@contextmanager
def queries_csv(file: Path, calibrated: bool) -> Iterator[QueriesCsv]:
    """Yield a CSV file of hits; it is there when the block succeeds, else the file is left as it was."""
    from diml.files import atomic_file

    with (
        atomic_file(file) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        yield QueriesCsv(stream, calibrated)


def distribute(
    searcher: Searcher, results: Iterable[SearchResult | BadImage], outputs: Sequence[_Output]
) -> list[BadImage]:
    """Give each result to all outputs; returns the images that could not be read."""
    from diml.data.images import BadImage

    bad: list[BadImage] = []
    for result in results:
        if isinstance(result, BadImage):
            bad.append(result)
            continue
        for output in outputs:
            output.take(searcher, result)
    return bad


def print_bad(bad: Sequence[BadImage], queries: int) -> None:
    """Name the queries that were left out, and say how many were searched."""
    for image in bad:
        print(bad_image_line(image))
    print(f"Queries: {queries - len(bad):,} searched, {len(bad):,} left out")


def _sentences(searcher: Searcher, result: SearchResult) -> list[str]:
    if not result.hits or result.hit_regions is None:
        return []
    return [one.summary().sentence for one in searcher.explain(result, _SHOWN)]


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])
