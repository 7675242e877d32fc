"""`diml search`: the images of an index that are most similar to a query, or to each other."""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diml.cli.options import MatcherFlags, MatcherOptions

if TYPE_CHECKING:
    from diml.data.query_box import QueryBox
    from diml.explain import Explanation
    from diml.matching import Matcher
    from diml.search import Searcher, SearchResult


@dataclass(frozen=True, kw_only=True)
class SearchCommand:
    """Find the images of an index that are most similar to a query: the nearest by pooled vectors, re-ranked region by
    region, each with the matches that make up its score. Or, with --all-pairs, all pairs of similar images.

    For instance:

    diml search photos.index query.jpg -k 5

    diml search photos.index query.jpg --where "label = 'milk'" --html hits.html

    diml search photos.index shelf.jpg --box 0.25,0.1,0.75,0.9

    diml search photos.index query.jpg --json | jq .hits[0].summary.sentence

    diml search photos.index --queries returned.csv --exclude-self --csv hits.csv

    diml search photos.index --all-pairs --threshold 1.5 --differ label
    """

    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """The index, built with `diml index build`."""

    image: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE]")] = None
    """The query image."""

    queries: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER_OR_CSV")] = None
    """Instead of a query image: all images of a folder and its subfolders, or of a CSV file with the column `path`,
    embedded in batches. Prints a table of the first hits of each. Images that cannot be read are named and left out;
    the exit status is then 1."""

    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of hits."""

    where: str | None = None
    """Only images that satisfy a condition on metadata, such as "label = 'milk' and price < 3". There are also in,
    between, like (% and _), ilike and is null; other names than plain words are in double quotes: docs/search.md."""

    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1")] = None
    """Search for a part of the query image alone: left, upper, right and lower edge, as fractions of width and height,
    such as 0.25,0.1,0.75,0.9; or, where one of them is above 1, in pixels of the image as displayed."""

    rerank_at: int | None = None
    """K: how many of the nearest by pooled cosine are re-ranked by regions, at least k; 0: none. By default as
    tuned for the index (`diml index tune`), else 100."""

    exclude_self: bool = False
    """Leave out the query's own image: every image of the index whose file has the same content."""

    matcher: MatcherFlags = MatcherOptions()

    calibration: Path | None = None
    """Folder or file of a calibration (`diml calibrate`), which says how likely each hit is right, and whether the
    query is in the index at all; by default that of the index or of its model, if it fits."""

    false_accept_rate: float = 0.05
    """Share of the queries missing from the index that may be taken to be there, as a fraction."""

    explain: Literal["none", "short", "full"] = "short"
    """How each hit is explained: not at all; by a sentence; or also by its largest matches of regions, and in JSON by
    its whole ledger. The image of each hit is read and embedded again for the explanation."""

    top: int = 3
    """With --explain full: number of matched regions shown for each hit, largest contribution first."""

    json: bool = False
    """Print JSON: every hit with its summary; with --queries one document; with --all-pairs one line per pair."""

    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """With --queries, instead of the table: write all hits to a CSV file with the columns query, rank, hit, score,
    label, and probability where there is a calibration."""

    batch_size: int = 64
    """With --queries: images per batch."""

    workers: int | None = None
    """With --queries: loader processes; chosen by the number of cores when omitted."""

    html: Path | None = None
    """Write the hits as an interactive page in one file, with their regions, lines and ledgers."""

    all_pairs: bool = False
    """Instead of a query: print all pairs of the index whose score reaches --threshold, as they are found. Copies of
    one photograph are found by `diml duplicates`."""

    threshold: float | None = None
    """With --all-pairs, and needed there: minimum score; with --rerank-at 0 minimum pooled cosine."""

    neighbours: int = 10
    """With --all-pairs: number of nearest neighbours that each image is compared with."""

    differ: str | None = None
    """With --all-pairs: only pairs with different values in this column, such as the same product under two labels."""

    model: str | None = None
    """Present name or path of the embedder of the index, if it has moved."""

    device: str = "cpu"
    """Where to embed the query, for instance cuda."""

    def run(self) -> int:
        """Search, print, write."""
        self._check_numbers()
        if (self.image is not None) + (self.queries is not None) + self.all_pairs != 1:
            raise ValueError("image: need an IMAGE, or --all-pairs or --queries instead; see --help")
        if self.csv is not None and self.queries is None:
            raise ValueError("csv: a CSV file has the hits of --queries; give them, or use --json")
        box = None if self.box is None else self._query_box(self.box)
        if self.all_pairs:
            return self._all_pairs()
        if self.queries is not None:
            return self._many(self.queries)
        from diml.data.listing import named_file

        assert self.image is not None
        image = named_file(self.image)
        if not image.is_file():
            raise FileNotFoundError(f"image: {self.image} does not exist")
        if self.html is not None:
            from diml.explain.html import check_page_name
            from diml.files import require_writable_file

            check_page_name(self.html)
            require_writable_file(self.html)
        from diml.search import Searcher

        with Searcher.open(self.index, model=self.model, calibration=self.calibration, device=self.device) as searcher:
            result = searcher.search(
                image,
                self.k,
                rerank_at=self.rerank_at,
                where=self.where,
                matcher=self._matcher(searcher.matcher),
                exclude_self=self.exclude_self,
                box=box,
                false_accept_rate=self.false_accept_rate,
            )
            explained = self._explained(searcher, result)
            written = None if self.html is None else self._write_page(searcher, result, explained)
        if self.json:
            told = result.to_dict(self.top, () if self.explain == "none" else explained, ledgers=self.explain == "full")
            if box is not None:
                told["box"] = [box.left, box.upper, box.right, box.lower]
            print(json_format.dumps(told, indent=1, allow_nan=False))
            return 0
        _print(result, explained if self.explain != "none" else (), self.top if self.explain == "full" else 0)
        if written is not None:
            print(f"Written: {written}")
        return 0

    def _check_numbers(self) -> None:
        """Raise for numbers that are wrong, also where they are of no use."""
        lowest = {"k": 1, "rerank_at": 0, "top": 0, "neighbours": 1, "batch_size": 1, "workers": 0}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name}: need at least {low}, got {value}")
        if not 0 < self.false_accept_rate < 1:
            rate = self.false_accept_rate
            raise ValueError(f"false_accept_rate: need a fraction in (0, 1), got {rate}; 0.01 is 1 %")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold: need a finite score, got {self.threshold}")

    def _explained(self, searcher: Searcher, result: SearchResult) -> list[Explanation]:
        """The hits explained, where that is asked for and possible."""
        if self.explain == "none" and self.html is None:
            return []
        return searcher.explain(result) if result.hits and result.hit_regions is not None else []

    def _query_box(self, text: str) -> QueryBox:
        """The box, read before a model is loaded."""
        from diml.data.query_box import QueryBox

        if self.image is None:
            raise ValueError("box: a box is on one query image; give an IMAGE, or omit --box")
        return QueryBox.read(text)

    def _matcher(self, own: Matcher) -> Matcher:
        """The matcher of the index with the settings given; prints what differs."""
        notice = self.matcher.notice(own)
        if notice is not None and not self.json:
            print(notice)
        return self.matcher.applied_to(own)

    def _many(self, queries: Path) -> int:
        """Search for many images, print or write the hits, name the images that cannot be read."""
        from contextlib import ExitStack

        from diml.cli.search_queries import QueriesDocument, QueriesTable, distribute, print_bad, queries_csv
        from diml.search import Searcher
        from diml.search.sources import list_queries

        if self.html is not None:
            raise ValueError("html: a page shows the hits of one query; omit --html or --queries")
        if self.csv is not None and self.csv.resolve() == queries.resolve():
            raise ValueError(f"csv: {self.csv} is the list of queries, which would be lost; give another name")
        listing = list_queries(queries)
        notice = listing.notice()
        if notice is not None and not self.json:
            print(notice)
        document = QueriesDocument(self.index, self.explain, self.top) if self.json else None
        table = None if self.json or self.csv is not None else QueriesTable(self.explain, self.top)
        with ExitStack() as opened:
            searcher = opened.enter_context(
                Searcher.open(self.index, model=self.model, calibration=self.calibration, device=self.device)
            )
            matcher = self._matcher(searcher.matcher)
            outputs: list[Any] = [output for output in (document, table) if output is not None]
            if self.csv is not None:
                calibrated = self.rerank_at != 0 and searcher.calibration_for(matcher).calibrator is not None
                outputs.append(opened.enter_context(queries_csv(self.csv, calibrated)))
            results = searcher.search_files(
                [listing.file(row) for row in range(len(listing))],
                self.k,
                rerank_at=self.rerank_at,
                where=self.where,
                matcher=matcher,
                exclude_self=self.exclude_self,
                false_accept_rate=self.false_accept_rate,
                shares=self.explain != "none" and (document or table) is not None,
                batch_size=self.batch_size,
                workers=self.workers,
                progress=True,
            )
            bad = distribute(searcher, results, outputs)
        if document is not None:
            document.print(bad)
        else:
            if table is not None:
                table.print()
            print_bad(bad, len(listing))
            if self.csv is not None:
                print(f"Written: {self.csv}")
        return 1 if bad else 0

    def _all_pairs(self) -> int:
        """Print one line per pair as it is found."""
        from diml.search import Searcher, alike_pairs, open_store
        from diml.search.tuned import index_matcher

        if self.exclude_self:
            raise ValueError("exclude_self: --all-pairs never compares an image with itself; omit --exclude-self")
        if self.html is not None:
            raise ValueError("html: a page shows the hits of one query; omit --html or --all-pairs")
        if self.threshold is None:
            raise ValueError(
                "threshold: --all-pairs needs a minimum score, such as 1.5; for copies of one photograph use "
                "`diml duplicates`, which finds its threshold by itself"
            )
        store, count = open_store(self.index), 0
        matcher = self._matcher(index_matcher(store).matcher)
        if matcher.learned and self.rerank_at != 0:  # the scorer is saved with the model, not with the index
            matcher = Searcher(store).matcher.changed(**self.matcher.given())
        pairs = alike_pairs(
            store,
            self.threshold,
            matcher=matcher if self.rerank_at != 0 else replace(matcher, structural_weight=0.0),
            neighbours=self.neighbours,
            where=self.where,
            differ=self.differ,
        )
        for count, pair in enumerate(pairs, start=1):  # noqa: B007
            plain = pair.to_dict()
            if self.json:
                print(json_format.dumps(plain, allow_nan=False), flush=True)
            else:
                a, b = (plain[side]["file"] or plain[side]["id"] for side in "ab")
                print(f"{pair.score:.4f}\t{a}\t{b}", flush=True)
        if not self.json:
            print(f"{count:,} pairs of score {self.threshold} or more")
        return 0

    def _write_page(self, searcher: Searcher, result: SearchResult, explained: list[Explanation]) -> Path:
        """The hits as `diml explain --hits` shows them, from the stored regions."""
        from diml.explain import explanation_page, rank_hits
        from diml.files import write_text

        assert self.html is not None
        depth = searcher.rerank_at if self.rerank_at is None else self.rerank_at
        if not result.hits:
            raise ValueError("html: no hits, so there is nothing to show; check --where")
        if not explained:
            result.match  # noqa: B018 - raises, with the reason
        for one in explained:
            if one.images is None:
                raise ValueError(f"html: there is no image to show of {one.names[1]}: {one.undivided}")
        settings: dict[str, Any] = {"index": self.index, "where": self.where, "rerank_at": depth}
        if self.box is not None:
            settings["box"] = self.box
        if result.calibrator is not None:
            settings["calibration"] = str(result.calibrator)
        if result.verdict is not None:
            settings["in the gallery"] = str(result.verdict)
        settings |= {f"notice {number}": notice for number, notice in enumerate(result.notices, 1)}
        return write_text(self.html, explanation_page(rank_hits(explained), settings=settings))


def _print(result: SearchResult, explained: Sequence[Explanation], top: int) -> None:
    """The hits as a table, each with its explanation, and whether the query is there at all."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not result.hits:
        console.print("No hits: the index is empty, or no image satisfies --where.")
        return
    if result.verdict is not None:
        console.print(str(result.verdict), markup=False, soft_wrap=True)
    known = result.hits[0].probability is not None
    title = "Hits, best first"
    if result.calibrator is not None and known:
        title += f", and how likely each is of the query's {result.calibrator.kind}"
    table = Table(title=title, caption="Regions: query -> hit, by column letter and row number" if top else None)
    columns = ("hit", *(["probability"] if known else []), "score", "pooled", "structural", "pooled rank")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("image" + (" and its explanation" if explained else ""), overflow="fold")
    for place, hit in enumerate(result.hits):
        scores = ["" if value is None else f"{value:.3f}" for value in (hit.score, hit.pooled, hit.structural)]
        chance = [] if hit.probability is None else [f"{100 * hit.probability:.0f} %"]
        name = hit.id if hit.file is None else "/".join(hit.file.parts[-2:])
        lines = [name]
        if place < len(explained):
            lines += [explained[place].summary().sentence, *contributions(result, place, top)]
        table.add_row(str(place + 1), *chance, *scores, str(hit.pooled_rank), Text("\n".join(lines)))
    console.print(table)
    for notice in result.notices:
        console.print(notice, markup=False, soft_wrap=True)


def contributions(result: SearchResult, place: int, top: int) -> list[str]:
    """The largest contributions to the score of a hit, in one line, if there are any."""
    from diml.matching.cell_names import cell_name

    if not top or result.hit_regions is None:
        return []
    grid_q, grid_g = result.regions.grid, result.hit_regions.grid
    flows = result.ledger(place).top(top)
    cells = [(cell_name(flow.region_q, grid_q), cell_name(flow.region_g, grid_g), flow) for flow in flows]
    return [", ".join(f"{query} -> {gallery} {flow.contribution:.3f}" for query, gallery, flow in cells)]


COMMAND = SearchCommand
