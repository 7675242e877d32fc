"""First hits that re-ranking made better and worse: plain, with the paper's settings, and with tuned settings.

    python benchmarks/reranked_hits.py --data ../shared/datasets --figure docs/reranked-hits.png

Grocery photos of classes that settings are not chosen on (protocol class_disjoint, test): each is a query against all
others. The heads are those of an index: features as they are, and whitened to 128 channels without labels on 2,000 of
the images that are searched. Settings are tuned on the training classes under the same head, as `diml index tune` does.
Counts are of queries drawn with a fixed seed, against the plain ranking under the same head; means are of all queries.
The figure shows drawn queries whose first hit was right, and wrong after re-ranking with the paper's settings.
"""

from __future__ import annotations

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
from diml.evaluation.tune import setting_text, tune_matcher
from diml.matching import Matcher, Regions
from diml.models import load_embedder
from diml.models.cache import embed_cached
from diml.models.heads import WhitenHead
from diml.search.index_model import INDEX_DIM
from diml.search.whitening import FIT_IMAGES

METRICS = ("recall@1", "map@r")


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
    made.add_argument("--figure", type=Path, help="also draw examples into this file")
    options = measure.read(made)
    data = DataOptions(data=options.data, protocol="class_disjoint").open("grocery")
    assert data.train is not None
    embedder = load_embedder(options.model)
    test, train = (
        embed_cached(embedder, images.paths, cache_dir=embedding_cache(), progress=True).regions
        for images in (data.test, data.train)
    )
    rankings = []
    for head in ("identity", f"whiten {INDEX_DIM}"):
        if head != "identity":
            test, train = whitened(test, train)
        with measure.progress.status(f"{head}: tuning"):
            rankings += ranked(head, test, train, data.test, data.train)
    drawn = np.sort(np.random.default_rng(options.seed).choice(len(data.test), options.draw, replace=False))
    results = [counted(ranking, plain_of(ranking, rankings), drawn, options.seed) for ranking in rankings]
    cases = worse(rankings, drawn, data.test)
    if options.figure is not None:
        draw(options.figure, rankings, [case["row"] for case in cases], data.test)
    tables = [table(results), measure.table("Right before, wrong after re-ranking", *case_rows(cases))]
    measure.finish("reranked_hits", options, [*results, {"cases": cases}], *tables)


def whitened(test: Regions, train: Regions) -> tuple[Regions, Regions]:
    """Both under a whitening that is fitted on some of the images that are searched."""
    rows = np.sort(np.random.default_rng(0).permutation(len(test))[:FIT_IMAGES])
    head = WhitenHead(test.dim, INDEX_DIM)
    head.fit(test.dense[part].flatten(0, 1) for part in torch.from_numpy(rows).split(500))
    return tuple(Regions.normalized(head(one.dense), head(one.pooled), one.grid) for one in (test, train))  # type: ignore[return-value]


def ranked(head: str, test: Regions, train: Regions, images: ImageSet, training: ImageSet) -> list[Ranking]:
    """The plain ranking, the paper's settings, and those tuned on the training classes."""
    paper = Matcher()
    tuned = tune_matcher(train, training.labels, base=paper)
    print(f"{head}: {tuned}", file=measure.progress.file)
    made = []
    for name, matcher, k in (("paper", paper, 100), ("tuned", tuned.matcher, tuned.rerank_at)):
        report = evaluate_regions(test, images.labels, rerank_at=(0, k), matcher=matcher, resamples=1)
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


def worse(rankings: list[Ranking], drawn: NDArray[np.int64], images: ImageSet) -> list[dict[str, Any]]:
    """Drawn queries whose first hit is right in the plain ranking, and wrong with the paper's settings, both heads."""
    labels = images.labels
    cases = []
    for row in drawn.tolist():
        first = {(one.head, one.name): int(one.first[row]) for one in rankings}
        right = {ranking: labels[hit] == labels[row] for ranking, hit in first.items()}
        if right["identity", "plain"] and not right["identity", "paper"]:
            hits = {" ".join(ranking): name_of(images, hit) for ranking, hit in first.items()}
            cases.append({"row": row, "query": name_of(images, row), "first": hits})
    return cases


def case_rows(cases: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    names = tuple(cases[0]["first"]) if cases else ()
    return ("query", *names), [[case["query"], *(case["first"][name] for name in names)] for case in cases]


def name_of(images: ImageSet, row: int) -> str:
    return images.paths[row].parent.name


def draw(file: Path, rankings: list[Ranking], rows: list[int], images: ImageSet, most: int = 6) -> None:
    """Query and first hits, a row each; right ones framed green, wrong ones red."""
    from matplotlib.figure import Figure

    shown = [one for one in rankings if (one.head, one.name) != ("identity", "tuned")]
    figure = Figure(figsize=(2.0 * (len(shown) + 1), 2.35 * min(most, len(rows))), layout="constrained")
    axes = figure.subplots(min(most, len(rows)), len(shown) + 1, squeeze=False)
    for line, row in zip(axes, rows[:most], strict=True):
        cells = [(None, row), *((one, int(one.first[row])) for one in shown)]
        for place, (one, at) in zip(line, cells, strict=True):
            place.imshow(load_image(images.paths[at]).resize((224, 224)))
            place.set_xticks([])
            place.set_yticks([])
            right = images.labels[at] == images.labels[row]
            colour = "black" if one is None else "tab:green" if right else "tab:red"
            for side in place.spines.values():
                side.set(color=colour, linewidth=4)
            title = "query" if one is None else f"{one.head}, {one.name}"
            place.set_title(title if line is axes[0] else "", fontsize=9)
            place.set_xlabel(name_of(images, at).replace("-", " "), fontsize=7)
    figure.savefig(file, dpi=70)


if __name__ == "__main__":
    main()
