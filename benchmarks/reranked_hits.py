"""First hits that re-ranking made better and worse: plain, with the paper's settings, and with tuned settings.

    python benchmarks/reranked_hits.py --data ../shared/datasets --tune-images 1500 --figure docs/reranked-hits.jpg

Grocery photos, protocol query_gallery: the 2,936 photos of its gallery are indexed, the 2,485 test photos are queries.
The heads are those of an index: features as they are, and whitened to 128 channels without labels on 2,000 photos of
the gallery. For the whitened ones, settings are also tuned on labelled photos of the gallery, as `diml index tune`
does; no query is used for it. Counts are of queries drawn with a fixed seed, against the plain ranking under the same
head; means are of all queries. Cases are all queries whose first hit was right, and wrong after re-ranking with the
paper's settings and the features as they are; the figure shows some.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import measure
from diml.cli.options import DataOptions, embedding_cache
from diml.data import ImageSet
from diml.data.images import load_image
from diml.evaluation import Report, evaluate_regions
from diml.evaluation.intervals import PairedMeans
from diml.evaluation.tune import Tuning, setting_text, tune_matcher
from diml.matching import Matcher, Regions
from diml.models import load_embedder
from diml.models.cache import embed_cached
from diml.models.heads import WhitenHead
from diml.search.index_model import INDEX_DIM
from diml.search.whitening import FIT_IMAGES

METRICS = ("recall@1", "map@r")
#: Plain, and re-ranked with the paper's settings.
NAMES = ("plain", "paper")
#: Cases in the figure.
SHOWN = 6


@dataclass(frozen=True, eq=False)
class Ranking:
    """One way to rank: its name, the head, the settings (None: by pooled cosine), K, and what came of it."""

    name: str
    head: str
    settings: str
    k: int
    report: Report

    @property
    def first(self) -> NDArray[np.int64]:
        """(Q,) row of the first hit."""
        return self.report.hits[self.k][:, 0]

    def values(self, metric: str) -> NDArray[np.float64]:
        """(Q,) of each query."""
        return self.report.per_query[self.k][metric]


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    made.add_argument("--data", type=Path, required=True, help="folder that contains grocery")
    made.add_argument("--model", default="mobilenetv2_100")
    made.add_argument("--draw", type=int, default=100, help="queries that are counted; default: %(default)s")
    made.add_argument("--tune-images", type=int, default=1200, help="at most, whole classes; default: %(default)s")
    made.add_argument("--figure", type=Path, help="also draw examples into this file")
    options = measure.read(made)
    data = DataOptions(data=options.data, protocol="query_gallery").open("grocery").test
    assert data.queries is not None
    assert data.gallery is not None
    embedder = load_embedder(options.model)
    regions = embed_cached(embedder, data.paths, cache_dir=embedding_cache(), progress=True).regions
    rankings = []
    for head in ("identity", f"whiten {INDEX_DIM}"):
        if head != "identity":
            regions = whitened(regions, data.gallery)
        measure.progress.print(head)
        tuned = None if head == "identity" else tuned_on(regions, data, options)
        rankings += ranked(head, regions, data, tuned)
    drawn = np.sort(np.random.default_rng(options.seed).choice(len(data.queries), options.draw, replace=False))
    results = [counted(ranking, plain_of(ranking, rankings), drawn, options.seed) for ranking in rankings]
    cases = worse(rankings, data)
    if options.figure is not None:
        draw(options.figure, rankings, [case["row"] for case in cases[:: max(1, len(cases) // SHOWN)][:SHOWN]], data)
    title = f"Right before, wrong after re-ranking: {len(cases)} of {len(data.queries):,} queries"
    tables = [table(results), measure.table(title, *case_rows(cases))]
    measure.finish("reranked_hits", options, [*results, {"cases": cases}], *tables)


def whitened(regions: Regions, gallery: NDArray[np.int64]) -> Regions:
    """Regions under a whitening that is fitted on some images of the gallery."""
    rows = np.sort(np.random.default_rng(0).permutation(gallery)[:FIT_IMAGES])
    head = WhitenHead(regions.dim, INDEX_DIM)
    head.fit(regions.dense[part].flatten(0, 1) for part in torch.from_numpy(rows).split(500))
    return Regions.normalized(head(regions.dense), head(regions.pooled), regions.grid)


def tuned_on(regions: Regions, images: ImageSet, options: argparse.Namespace) -> Tuning:
    """The best settings on the photos of some classes of the gallery."""
    assert images.gallery is not None
    labels = images.labels[images.gallery]
    names, counts = np.unique(labels, return_counts=True)
    order = np.random.default_rng(options.seed).permutation(len(names))
    chosen = np.flatnonzero(np.isin(labels, names[order[np.cumsum(counts[order]) <= options.tune_images]]))
    rows = torch.from_numpy(images.gallery[chosen])
    found = tune_matcher(regions[rows], labels[chosen], base=Matcher(), progress=True)
    measure.progress.print(f"tuned on {len(chosen):,} images of {found.classes} classes: {found}", markup=False)
    return found


def ranked(head: str, regions: Regions, images: ImageSet, tuned: Tuning | None) -> list[Ranking]:
    """The plain ranking, the paper's settings, and tuned ones."""
    paper = Matcher()
    settings = [("paper", paper, 100)] + ([] if tuned is None else [("tuned", tuned.matcher, tuned.rerank_at)])
    made: list[Ranking] = []
    for name, matcher, k in settings:
        sides: dict[str, Any] = {"queries": images.queries, "gallery": images.gallery}
        report = evaluate_regions(regions, images.labels, rerank_at=(0, k), matcher=matcher, resamples=1, **sides)
        if not made:
            made.append(Ranking("plain", head, "", 0, report))
        made.append(Ranking(name, head, setting_text(matcher, paper, k), k, report))
    return made


def plain_of(ranking: Ranking, rankings: list[Ranking]) -> Ranking:
    return next(other for other in rankings if (other.head, other.k) == (ranking.head, 0))


def counted(ranking: Ranking, plain: Ranking, drawn: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """How many of the drawn queries became better and worse, and the means of all queries."""
    found: dict[str, Any] = {"head": ranking.head, "ranking": ranking.name, "settings": ranking.settings}
    means = PairedMeans(
        {(one.name, metric): one.values(metric) for one in (plain, ranking) for metric in METRICS}, 1000, seed
    )
    for metric in METRICS:
        change = (ranking.values(metric) - plain.values(metric))[drawn]
        found[metric] = {
            "better": int((change > 0).sum()),
            "same": int((change == 0).sum()),
            "worse": int((change < 0).sum()),
            "all": float(ranking.values(metric).mean()),
            "minus plain": means.difference((ranking.name, metric), (plain.name, metric))._asdict(),
        }
    return found


def table(results: list[dict[str, Any]]) -> Any:
    rows = []
    for found in results:
        row = [found["head"], found["ranking"], found["settings"]]
        for metric in METRICS:
            own = found[metric]
            difference = own["minus plain"]
            value, low, high = (100 * difference[part] for part in ("value", "low", "high"))
            row += [f"{own['better']} / {own['same']} / {own['worse']}", f"{100 * own['all']:.2f}"]
            row += [f"{value:+.2f} ({low:+.2f}..{high:+.2f})"]
        rows.append(row)
    names = ("head", "ranking", "settings")
    of_metrics = [f"{name}{what}" for name in ("R@1", "MAP@R") for what in (": better / same / worse", ", all, %", "")]
    return measure.table("Drawn queries against the plain ranking, and means of all", (*names, *of_metrics), rows)


def worse(rankings: list[Ranking], images: ImageSet) -> list[dict[str, Any]]:
    """Queries whose first hit is right in the plain ranking, and wrong with the paper's settings."""
    labels, cases = images.labels, []
    plain, paper = (next(one for one in rankings if (one.head, one.name) == ("identity", name)) for name in NAMES)
    for row, query in enumerate(plain.report.queries.tolist()):
        right = [labels[one.first[row]] == labels[query] for one in (plain, paper)]
        if right == [True, False]:
            hits = {f"{one.head}, {one.name}": name_of(images, int(one.first[row])) for one in rankings}
            cases.append({"row": row, "query": name_of(images, query), "first": hits})
    return cases


def case_rows(cases: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    names = tuple(cases[0]["first"]) if cases else ()
    return ("query", *names), [[case["query"], *(case["first"][name] for name in names)] for case in cases]


def name_of(images: ImageSet, row: int) -> str:
    return images.paths[row].parent.name


def draw(file: Path, rankings: list[Ranking], rows: list[int], images: ImageSet) -> None:
    """Query and first hits, a row each; right ones framed green, wrong ones red."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.9 * (len(rankings) + 1), 2.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(rankings) + 1, squeeze=False)
    for number, row in enumerate(rows):
        query = int(rankings[0].report.queries[row])
        cells = [("query", query), *((f"{one.head}, {one.name}", int(one.first[row])) for one in rankings)]
        for place, (title, at) in zip(axes[number], cells, strict=True):
            place.imshow(load_image(images.paths[at]).resize((224, 224)))
            place.set_xticks([])
            place.set_yticks([])
            right = images.labels[at] == images.labels[query]
            colour = "black" if title == "query" else "tab:green" if right else "tab:red"
            for side in place.spines.values():
                side.set(color=colour, linewidth=4)
            if number == 0:
                place.set_title(title, fontsize=9)
            place.set_xlabel(name_of(images, at).replace("-", " "), fontsize=7)
    figure.savefig(file, dpi=70, pil_kwargs={"quality": 82})


if __name__ == "__main__":
    main()
