"""Heads "identity" and "whiten" of frozen backbones, plain and re-ranked, on data sets and on small folders drawn from
one: does whitening help where nothing was trained, on what should it be fitted, and how few images are too few?

    python benchmarks/whitening.py --data ../shared/datasets --json runs/whitening.json
    python benchmarks/whitening.py --data ../shared/datasets --models tf_efficientnet_lite0 --dims 128

A folder of C classes and n images of each is drawn several times from the photos of groceries; its queries are those of
all draws, resampled by image. Images are embedded once, with the head "identity"; every whitening is fitted on cells of
these embeddings, without labels: on the images that are searched (gallery), or on the training classes (train).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import measure
from diml.cli.options import DataOptions, embedding_cache
from diml.data import ImageSet
from diml.evaluation import Report, evaluate_regions
from diml.evaluation.intervals import PairedMeans
from diml.matching import Matcher, Regions
from diml.models import load_embedder
from diml.models.cache import embed_cached
from diml.models.heads import WhitenHead

METRICS = {"recall@1": "R@1", "map@r": "MAP@R"}
#: Data sets and protocols.
PROTOCOLS = (
    ("orl", "all"),
    ("orl", "class_disjoint"),
    ("grocery", "class_disjoint"),
    ("grocery", "query_gallery"),
)
#: Folders: name, part of the grocery classes, classes, images of each.
FOLDERS = (
    ("fruit 20 x 20", "Fruit", 20, 20),
    ("packages 20 x 10", "Packages", 20, 10),
    ("any 16 x 10", "", 16, 10),
    ("any 10 x 10", "", 10, 10),
    ("any 8 x 8", "", 8, 8),
    ("any 30 x 5", "", 30, 5),
    ("any 6 x 5", "", 6, 5),
    ("any 4 x 4", "", 4, 4),
    ("any 3 x 3", "", 3, 3),
)


@dataclass(frozen=True)
class Trial:
    """Images of an evaluation, by their rows among all that were embedded.

    Args:
        name: of the set; the draws of one folder share it.
        rows: (n,) images.
        labels: (n,) classes.
        queries, gallery: rows within `rows`, or None for leave-one-out.
        fits: name -> (m,) rows of images that a whitening is fitted on.
    """

    name: str
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    queries: NDArray[np.int64] | None
    gallery: NDArray[np.int64] | None
    fits: dict[str, NDArray[np.int64]]


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    made.add_argument("--data", type=Path, required=True, help="folder that contains grocery")
    made.add_argument("--models", nargs="+", default=["mobilenetv2_100", "tf_efficientnet_lite0"])
    made.add_argument("--dims", nargs="+", type=int, default=[128, 256, 512], help="D of the whitening")
    made.add_argument("--grid", type=int, default=4)
    made.add_argument("--draws", type=int, default=5, help="of each folder; default: %(default)s")
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    options = measure.read(made)
    results = [result for model in options.models for result in of_model(model, options)]
    measure.finish("whitening", options, results, table(results))


def of_model(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sets and heads of one backbone."""
    images, trials = all_trials(options)
    embedder = load_embedder(model, grid=options.grid)
    regions = {
        name: embed_cached(embedder, found, cache_dir=embedding_cache(), progress=True).regions
        for name, found in images.items()
    }
    results = []
    for (source, name), same in trials.items():
        with measure.progress.status(f"{model}, {name}"):
            results += of_set(model, name, same, regions[source], options)
    return results


def of_set(
    model: str, name: str, trials: list[Trial], regions: Regions, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every head on one set; differences are paired with the head identity at the same K."""
    ks = (0, options.rerank_at)
    reports = {("identity", "", regions.dim): [evaluated(trial, regions, None, options) for trial in trials]}
    for fit in trials[0].fits:
        for dim in options.dims:
            reports["whiten", fit, dim] = [
                evaluated(trial, regions, fitted(regions, trial.fits[fit], dim), options) for trial in trials
            ]
    plain_head = ("identity", "", regions.dim)
    queries = np.concatenate(
        [trial.rows[report.queries] for trial, report in zip(trials, reports[plain_head], strict=True)]
    )
    columns = {
        (head, k, metric): np.concatenate([one.per_query[k][metric] for one in found])
        for head, found in reports.items()
        for k in ks
        for metric in METRICS
    }
    means = PairedMeans(columns, 1000, options.seed, queries)
    results = []
    for head in reports:
        row: dict[str, Any] = {"model": model, "set": name, "head": head[0], "fit_on": head[1], "dim": head[2]}
        row |= {"images": len(trials[0].rows), "draws": len(trials), "queries": len(queries)}
        if head[1]:
            row["fitted_on_images"] = len(trials[0].fits[head[1]])
        for metric in METRICS:
            for k, what in zip(ks, ("0", "reranked"), strict=True):
                row[f"{metric} {what}"] = means.mean((head, k, metric))
                row[f"{metric} {what} minus identity"] = means.difference((head, k, metric), (plain_head, k, metric))
            row[f"{metric} reranked minus plain"] = means.difference((head, ks[1], metric), (head, 0, metric))
        results.append(row)
    return results


def evaluated(trial: Trial, regions: Regions, head: WhitenHead | None, options: argparse.Namespace) -> Report:
    chosen = regions[torch.from_numpy(trial.rows)]
    if head is not None:
        chosen = Regions.normalized(head(chosen.dense), head(chosen.pooled), chosen.grid)
    return evaluate_regions(
        chosen,
        trial.labels,
        rerank_at=(0, options.rerank_at),
        matcher=Matcher(),
        queries=trial.queries,
        gallery=trial.gallery,
        resamples=1,
    )


def fitted(regions: Regions, rows: NDArray[np.int64], dim: int) -> WhitenHead:
    head = WhitenHead(regions.dim, dim)
    head.fit(regions.dense[some].flatten(0, 1) for some in torch.from_numpy(rows).split(500))
    return head


def all_trials(options: argparse.Namespace) -> tuple[dict[str, ImageSet], dict[tuple[str, str], list[Trial]]]:
    """The images of each source, and the trials by source and name."""
    data = DataOptions(data=options.data)
    everything = {"orl": DataOptions().open("orl").test}
    parts = data.open("grocery")
    assert parts.train is not None
    photos = [path for part in (parts.train, parts.validation, parts.test) if part is not None for path in part.paths]
    photos = sorted(set(photos))
    names = [path.parent.name for path in photos]
    everything["grocery"] = ImageSet(photos, names, name="grocery")
    trials: dict[tuple[str, str], list[Trial]] = {}
    for source, protocol in PROTOCOLS:
        trials[source, f"{source}, {protocol}"] = [by_protocol(source, protocol, everything[source], options)]
    drawn = everything["grocery"]
    for name, part, classes, each in FOLDERS:
        trials["grocery", name] = list(folders(name, part, classes, each, drawn, options))
    return everything, trials


def by_protocol(source: str, protocol: str, everything: ImageSet, options: argparse.Namespace) -> Trial:
    data = DataOptions(data=options.data if source == "grocery" else None, protocol=protocol).open(source)
    place = {path: row for row, path in enumerate(everything.paths)}
    test = data.test
    rows = np.array([place[path] for path in test.paths])
    fits = {"gallery": rows if test.gallery is None else rows[test.gallery]}
    if data.train is not None and protocol == "class_disjoint":
        fits["train"] = np.array([place[path] for path in data.train.paths])
    return Trial(f"{source}, {protocol}", rows, test.labels, test.queries, test.gallery, fits)


def folders(
    name: str, part: str, classes: int, each: int, everything: ImageSet, options: argparse.Namespace
) -> Iterator[Trial]:
    """Draws of a folder of `classes` classes with `each` images."""
    generator = np.random.default_rng(options.seed)
    inside = np.array([part in path.parts or not part for path in everything.paths])
    usable = [c for c in range(everything.num_classes) if (inside & (everything.labels == c)).sum() >= each]
    for _ in range(options.draws):
        chosen = generator.choice(usable, classes, replace=False)
        rows = np.concatenate(
            [generator.choice(np.flatnonzero(inside & (everything.labels == c)), each, replace=False) for c in chosen]
        )
        yield Trial(name, rows, everything.labels[rows], None, None, {"gallery": rows})


def table(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for row in results:
        cells = [row["model"], row["set"], row["head"] + (f" {row['dim']}, {row['fit_on']}" if row["fit_on"] else "")]
        for metric in METRICS:
            cells += [percent(row[f"{metric} 0"]), percent(row[f"{metric} reranked"])]
            cells.append(points(row[f"{metric} reranked minus identity"]) if row["fit_on"] else "")
            cells.append(points(row[f"{metric} reranked minus plain"]))
        rows.append(cells)
    columns = ["model", "set", "head"]
    for short in METRICS.values():
        columns += [f"{short}, plain", "re-ranked", "minus identity", "minus plain"]
    return measure.table("Whitening of frozen backbones, percent", columns, rows)


def percent(value: Any) -> str:
    return f"{100 * value[0]:.2f}"


def points(value: Any) -> str:
    return f"{100 * value[0]:+.2f} ({100 * value[1]:+.2f}..{100 * value[2]:+.2f})"


if __name__ == "__main__":
    main()
