"""`diml search`: the images of an index that are most alike to a image, or to each other."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from diml.matching import MatchSettings
    from diml.search import Found, Searcher


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find the images of an index that are most alike to a image: the nearest by pooled vectors, re-ranked region
    by region, each with the part-to-part matches that make its score. Or, with --all-pairs, the pairs alike in it.

    For instance:

    diml search photos.index query.jpg -k 5

    diml search photos.index query.jpg --where "label = 'milk'" --html hits.html

    diml search photos.index query.jpg --json | jq .hits[0].ledger.top

    diml search photos.index --all-pairs --threshold 1.9

    diml search photos.index --all-pairs --threshold 1.9 --differ label
    """

    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """The index, as `diml index build` made it."""

    image: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE]")] = None
    """The query."""

    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """How many hits."""

    where: str | None = None
    """Only images that fit a condition on metadata, such as "label = 'milk' and price < 3"."""

    rerank: int = 100
    """How many of the nearest by pooled vectors to compare region by region, at least k; 0: none."""

    top: int = 3
    """Part-to-part matches of each hit to show, largest first."""

    json: bool = False
    """Print JSON: every hit with its ledger. With --all-pairs a line each pair."""

    html: Path | None = None
    """Write a page for the browser here, in one file: the hits with their regions, lines and ledgers, to compare."""

    all_pairs: bool = False
    """In place of a image: all pairs of the index whose score reaches the threshold, as they are found."""

    threshold: float = 1.9
    """With --all-pairs: least score, pooled + structural; with --rerank 0, least pooled cosine."""

    neighbours: int = 10
    """With --all-pairs: how many nearest images of each to compare it with."""

    differ: str | None = None
    """With --all-pairs: only pairs with different values in this column, such as one thing under two labels."""

    model: str | None = None
    """Where the embedder of the index is now, if it has moved."""

    marginals: Literal["cross_correlation", "uniform"] = "cross_correlation"
    """Mass of each region: by its agreement with the other image, or the same for all."""

    epsilon: float = 0.05
    """Entropy of the transport plan, in units of cosine."""

    device: str = "cpu"
    """Where to embed the query, for instance cuda."""

    def run(self) -> int:
        """Search, print, write."""
        if (self.image is None) != self.all_pairs:
            raise ValueError("image: need a IMAGE, or --all-pairs in place of it; see --help")
        if self.all_pairs:
            return self._all_pairs()
        assert self.image is not None
        if not self.image.is_file():
            raise FileNotFoundError(f"image: {self.image} is not there")
        if self.html is not None:
            from diml.explain import check_page_name

            check_page_name(self.html)
        from diml.search import Searcher

        with Searcher.open(self.index, model=self.model, device=self.device) as searcher:
            found = searcher.search(self.image, self.k, rerank=self.rerank, where=self.where, **self._settings())
            written = None if self.html is None else self._write_page(searcher, found)
        if self.json:
            print(json_format.dumps(found.to_dict(self.top), indent=1, allow_nan=False))
            return 0
        _print(found, self.top)
        if written is not None:
            print(f"Written: {written}")
        return 0

    def _settings(self) -> MatchSettings:
        return {"marginals": self.marginals, "epsilon": self.epsilon}

    def _all_pairs(self) -> int:
        """A line each pair, at once."""
        from diml.search import alike_pairs, open_store

        if self.html is not None:
            raise ValueError("html: a page is of the hits of one query; leave it away, or --all-pairs")
        count = 0
        pairs = alike_pairs(
            open_store(self.index),
            self.threshold,
            neighbours=self.neighbours,
            where=self.where,
            differ=self.differ,
            structural=self.rerank > 0,
            **self._settings(),
        )
        for count, pair in enumerate(pairs, start=1):  # noqa: B007
            told = pair.to_dict()
            if self.json:
                print(json_format.dumps(told, allow_nan=False), flush=True)
            else:
                a, b = (told[side]["file"] or told[side]["id"] for side in "ab")
                print(f"{pair.score:.4f}\t{a}\t{b}", flush=True)
        if not self.json:
            print(f"{count:,} pairs of score {self.threshold} or more")
        return 0

    def _write_page(self, searcher: Searcher, found: Found) -> Path:
        """The hits as `diml explain --hits` shows them, from the stored regions."""
        from diml.data.images import load_image
        from diml.explain import Explanation, explanation_page, rank_hits
        from diml.files import write_text

        assert self.html is not None
        if not found.hits:
            raise ValueError("html: no hits, so there is nothing to show; look at --where")
        view = searcher.embedder.preprocess.view
        query = view(load_image(Path(found.query)), 2)
        matches = []
        for place, hit in enumerate(found.hits):
            if hit.file is None:
                raise ValueError(f"html: the index does not say where the image {hit.id} lies")
            images = (query, view(load_image(hit.file), 2))
            matches.append(Explanation.of(found.match, images, (found.query, str(hit.file)), place))
        told = {"index": self.index, "where": self.where, "rerank": self.rerank, **self._settings()}
        return write_text(self.html, explanation_page(rank_hits(matches), settings=told))


def _print(found: Found, top: int) -> None:
    """The hits as a table, each with its largest part-to-part matches."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not found.hits:
        console.print("No hits: the index is empty, or no image fits --where.")
        return
    table = Table(title="Hits, best first", caption="Parts: cell of the query -> cell of the hit, by column and row")
    for column in ("hit", "score", "pooled", "structural", "was"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("image, and its largest parts", overflow="fold")
    for place, hit in enumerate(found.hits):
        told = ["" if value is None else f"{value:.3f}" for value in (hit.score, hit.pooled, hit.structural)]
        name = hit.id if hit.file is None else "/".join(hit.file.parts[-2:])
        table.add_row(str(place + 1), *told, str(hit.pooled_rank), Text("\n".join([name, *_parts(found, place, top)])))
    console.print(table)


def _parts(found: Found, place: int, top: int) -> list[str]:
    """The largest contributions to the score of a hit, in a line, if there is any."""
    from diml.explain import cell_name

    if not top or found.hit_regions is None:
        return []
    grid_q, grid_g = found.regions.grid, found.hit_regions.grid
    flows = found.ledger(place).top(top)
    cells = [(cell_name(flow.region_q, grid_q), cell_name(flow.region_g, grid_g), flow) for flow in flows]
    return [", ".join(f"{query} -> {gallery} {flow.contribution:.3f}" for query, gallery, flow in cells)]
