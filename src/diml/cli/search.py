"""`diml search`: the images of an index that are most similar to a query, or to each other."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from diml.cli.options import MatcherFlags, MatcherOptions

if TYPE_CHECKING:
    from diml.matching import Matcher
    from diml.search import Searcher, SearchResult


@dataclass(frozen=True, kw_only=True)
class SearchCommand:
    """Find the images of an index that are most similar to a query: the nearest by pooled vectors, re-ranked region by
    region, each with the matches that make up its score. Or, with --all-pairs, all pairs of similar images.

    For instance:

    diml search photos.index query.jpg -k 5

    diml search photos.index query.jpg --where "label = 'milk'" --html hits.html

    diml search photos.index query.jpg --json | jq .hits[0].ledger.top

    diml search photos.index --all-pairs --threshold 1.9

    diml search photos.index --all-pairs --threshold 1.9 --differ label
    """

    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """The index, built with `diml index build`."""

    image: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE]")] = None
    """The query image."""

    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of hits."""

    where: str | None = None
    """Only images that satisfy a condition on metadata, such as "label = 'milk' and price < 3"."""

    rerank_at: int = 100
    """K: how many of the nearest by pooled cosine are re-ranked by regions, at least k; 0: none."""

    matcher: MatcherFlags = MatcherOptions()

    top: int = 3
    """Number of matched regions shown for each hit, largest contribution first."""

    json: bool = False
    """Print JSON: every hit with its ledger; with --all-pairs one line per pair."""

    html: Path | None = None
    """Write the hits as an interactive page in one file, with their regions, lines and ledgers."""

    all_pairs: bool = False
    """Instead of a query: print all pairs of the index whose score reaches the threshold, as they are found."""

    threshold: float = 1.9
    """With --all-pairs: minimum score; with --rerank-at 0 minimum pooled cosine."""

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
        if (self.image is None) != self.all_pairs:
            raise ValueError("image: need an IMAGE, or --all-pairs instead; see --help")
        if self.all_pairs:
            return self._all_pairs()
        assert self.image is not None
        if not self.image.is_file():
            raise FileNotFoundError(f"image: {self.image} does not exist")
        if self.html is not None:
            from diml.explain.html import check_page_name

            check_page_name(self.html)
        from diml.search import Searcher

        with Searcher.open(self.index, model=self.model, device=self.device) as searcher:
            matcher = self._matcher(searcher.matcher)
            result = searcher.search(self.image, self.k, rerank_at=self.rerank_at, where=self.where, matcher=matcher)
            written = None if self.html is None else self._write_page(searcher, result)
        if self.json:
            print(json_format.dumps(result.to_dict(self.top), indent=1, allow_nan=False))
            return 0
        _print(result, self.top)
        if written is not None:
            print(f"Written: {written}")
        return 0

    def _matcher(self, own: Matcher) -> Matcher:
        """The matcher of the index with the settings given; prints what differs."""
        notice = self.matcher.notice(own)
        if notice is not None and not self.json:
            print(notice)
        return self.matcher.applied_to(own)

    def _all_pairs(self) -> int:
        """Print one line per pair as it is found."""
        from diml.search import alike_pairs, open_store

        if self.html is not None:
            raise ValueError("html: a page shows the hits of one query; omit --html or --all-pairs")
        store, count = open_store(self.index), 0
        matcher = self._matcher(store.config.matcher)
        pairs = alike_pairs(
            store,
            self.threshold,
            matcher=matcher if self.rerank_at else replace(matcher, structural_weight=0.0),
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

    def _write_page(self, searcher: Searcher, result: SearchResult) -> Path:
        """The hits as `diml explain --hits` shows them, from the stored regions."""
        from diml.data.images import load_image
        from diml.explain import Explanation, explanation_page, rank_hits
        from diml.files import write_text

        assert self.html is not None
        if not result.hits:
            raise ValueError("html: no hits, so there is nothing to show; check --where")
        view = searcher.embedder.preprocess.view
        query = view(load_image(Path(result.query)), 2)
        matches = []
        for place, hit in enumerate(result.hits):
            if hit.file is None:
                raise ValueError(f"html: the index does not record the file of the image {hit.id}")
            images = (query, view(load_image(hit.file), 2))
            matches.append(Explanation.of(result.match, images, (result.query, str(hit.file)), place))
        settings: dict[str, Any] = {"index": self.index, "where": self.where, "rerank_at": self.rerank_at}
        return write_text(self.html, explanation_page(rank_hits(matches), settings=settings))


def _print(result: SearchResult, top: int) -> None:
    """The hits as a table, each with its largest contributions."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not result.hits:
        console.print("No hits: the index is empty, or no image satisfies --where.")
        return
    caption = "Regions: query -> hit, by column letter and row number"
    table = Table(title="Hits, best first", caption=caption)
    for column in ("hit", "score", "pooled", "structural", "pooled rank"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("image and its largest contributions", overflow="fold")
    for place, hit in enumerate(result.hits):
        scores = ["" if value is None else f"{value:.3f}" for value in (hit.score, hit.pooled, hit.structural)]
        name = hit.id if hit.file is None else "/".join(hit.file.parts[-2:])
        lines = [name, *_contributions(result, place, top)]
        table.add_row(str(place + 1), *scores, str(hit.pooled_rank), Text("\n".join(lines)))
    console.print(table)


def _contributions(result: SearchResult, place: int, top: int) -> list[str]:
    """The largest contributions to the score of a hit, in one line, if there are any."""
    from diml.explain.formatting import cell_name

    if not top or result.hit_regions is None:
        return []
    grid_q, grid_g = result.regions.grid, result.hit_regions.grid
    flows = result.ledger(place).top(top)
    cells = [(cell_name(flow.region_q, grid_q), cell_name(flow.region_g, grid_g), flow) for flow in flows]
    return [", ".join(f"{query} -> {gallery} {flow.contribution:.3f}" for query, gallery, flow in cells)]


COMMAND = SearchCommand
