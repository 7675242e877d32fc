"""Bytes on disk and retrieval of real indexes: features as they are, or whitened; regions in float16, int8 or codes.

    python benchmarks/index_size.py --data ../shared/datasets --json runs/index_size.json

Each index is built by `build_index` as `diml index build` does, on all test images of a protocol, but images that were
embedded before come from the cache. Nothing is trained; the whitening is fitted without labels on images of the index,
at most 2,000. Bytes: of the folder of the index right after the build, by the sizes of its files and as `du` counts
blocks. Retrieval: every image is a query against all others, with the regions that the index holds on both sides,
but queries as they are with codes (1kb); differences are paired by query, with 95 % bootstrap intervals (1,000
resamples), against the first configuration.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measure
from diml.cli.options import DataOptions, embedding_cache
from diml.data import DataSet
from diml.evaluation import Report, evaluate_regions
from diml.evaluation.differences import Differences, Row
from diml.evaluation.tables import csv_text
from diml.files import write_text
from diml.models import Embedder, load_embedder
from diml.models.cache import embed_cached
from diml.search import build_index, open_store
from diml.search.labelled import labelled_images
from diml.search.sources import image_file
from diml.search.store import Storage

#: Head, channels (None: those of the network), storage; the first is what the others are compared with.
CONFIGURATIONS: tuple[tuple[str, int | None, Storage], ...] = (
    ("identity", None, "float16"),
    ("whiten", 128, "float16"),
    ("whiten", 128, "int8"),
    ("whiten", 128, "1kb"),
)
PROTOCOLS = (("orl", "all"), ("grocery", "class_disjoint"))


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    made.add_argument("--data", type=Path, help="folder that contains grocery")
    made.add_argument("--model", default="mobilenetv2_100", help="name of a network; default: %(default)s")
    made.add_argument("--sets", nargs="+", default=[name for name, _ in PROTOCOLS], help="default: %(default)s")
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    made.add_argument("--folder", type=Path, help="where to build the indexes; default: a temporary folder")
    options = measure.read(made)
    Embedder.embed_batches = through_cache(Embedder.embed_batches)  # type: ignore[method-assign]
    results = []
    for name, protocol in PROTOCOLS:
        if name in options.sets:
            data = DataOptions(data=None if name == "orl" else options.data, protocol=protocol).open(name)
            results += of_set(data, options)
    columns = ("images", "head", "regions", "bytes an image", "du", "build, s", "MAP@R", "re-ranked", "minus the first")
    rows = [
        [
            f"{found['set']}, {found['images']:,}",
            f"{found['head']} {found['dim']}",
            found["storage"],
            f"{found['bytes']:,.0f}",
            f"{found['du']:,.0f}",
            f"{found['seconds']:.0f}",
            f"{100 * found['map@r plain']:.2f}",
            f"{100 * found['map@r reranked']:.2f}",
            interval_text(found["minus first"]),
        ]
        for found in results
    ]
    measure.finish("index_size", options, results, measure.table("Indexes", columns, rows))


def through_cache(embed_batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`Embedder.embed_batches` through the cache, for files."""
    inside: list[Embedder] = []

    def batches(self: Embedder, images: Any, batch_size: int, *options: Any) -> Iterator[Any]:
        if inside or not all(isinstance(image, str | Path) for image in images):
            yield from embed_batches(self, images, batch_size, *options)
            return
        inside.append(self)
        found = embed_cached(self, [Path(image) for image in images], cache_dir=embedding_cache(), workers=0)
        inside.clear()
        for start in range(0, len(found.regions), batch_size):
            rows = slice(start, start + batch_size)
            yield found.regions[rows], SimpleNamespace(indices=found.kept[rows], bad=())

    return batches


def of_set(data: DataSet, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every configuration on the test images of a data set."""
    results: list[dict[str, Any]] = []
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        images = Path(temporary) / "images.csv"
        lines = [
            ["path", "label"],
            *([str(p), f"class {c}"] for p, c in zip(data.test.paths, data.test.labels, strict=True)),
        ]
        write_text(images, csv_text(lines))
        for head, dim, storage in CONFIGURATIONS:
            place = Path(temporary) / f"{head}-{storage}.index"
            embedder = load_embedder(options.model)
            if dim is not None:
                embedder = embedder.with_whitening(dim)
            started = time.perf_counter()
            build_index(images, place, embedder, model=options.model, storage=storage, progress=True, workers=0)
            seconds = time.perf_counter() - started
            files = [file.stat() for file in place.rglob("*") if file.is_file()]
            store = open_store(place)
            found, regions = labelled_images(store, "label", name=data.name)
            originals = None
            if storage == "1kb":
                paths = [image_file(entry) for entry in store.listed([str(key) for key in found.paths]).metadata]
                originals = embed_cached(embedder, paths, cache_dir=embedding_cache(), workers=0).regions
            report = evaluate_regions(
                regions,
                found.labels,
                rerank_at=(0, options.rerank_at),
                matcher=store.config.matcher,
                originals=originals,
            )
            reports[f"{head} {storage}"] = report
            results.append(
                {
                    "set": f"{data.name}, {data.protocol}",
                    "images": len(found),
                    "head": head,
                    "dim": store.config.dim,
                    "storage": storage,
                    "bytes": sum(file.st_size for file in files) / len(found),
                    "du": 512 * sum(file.st_blocks for file in files) / len(found),
                    "seconds": seconds,
                    "map@r plain": report.row(0)["map@r"],
                    "map@r reranked": report.row(options.rerank_at)["map@r"],
                    "recall@1 reranked": report.row(options.rerank_at)["recall@1"],
                }
            )
            store.close()
    differences = Differences(reports)
    first, k = next(iter(reports)), options.rerank_at
    for result, name in zip(results, reports, strict=True):
        between = differences.between(Row(name, k), Row(first, k)).metrics
        result["minus first"] = {metric: between[metric]._asdict() for metric in ("map@r", "recall@1")}
    return results


def interval_text(found: Mapping[str, Mapping[str, float]]) -> str:
    """MAP@R and R@1, percentage points."""
    shown = []
    for metric, name in (("map@r", "MAP@R"), ("recall@1", "R@1")):
        value, low, high = (100 * found[metric][part] for part in ("value", "low", "high"))
        shown.append(f"{name} {value:+.2f} ({low:+.2f}..{high:+.2f})")
    return "\n".join(shown)


if __name__ == "__main__":
    main()
