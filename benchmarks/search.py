"""Search in an index: time of each stage, recall of stage 1, disk and memory.

    python benchmarks/search.py --embeddings easy hard --images 10000
    python benchmarks/search.py --embeddings hard --images 100000 --storage float16
    python benchmarks/search.py --embeddings hard --images 1000000 --storage none
    python benchmarks/search.py --embeddings grocery-whitened --data ../shared/datasets
    python benchmarks/search.py --embeddings grocery-whitened --data ../shared/datasets --noise 0.6 --images 1000000 \\
        --storage 1kb --queries 50 --exhaustive
    python benchmarks/search.py --embeddings hard --store lite
    python benchmarks/search.py --embeddings hard --store 'http://127.0.0.1:19530?consistency=Bounded'
    python benchmarks/search.py --photos shop.index photos --queries 100 --threads 1

Queries are images of the same kind that are not in the index; they run one after the other, after a warm-up. Stage 1:
the 100 nearest by pooled vectors; fetch: these 100 with their regions, by id; search: both, re-ranking of the 100, and
the ten best hits, without embedding; ledgers: those of the ten hits, which are computed on access. Recall: of stage 1,
against the 100 nearest by a matrix product; with --exhaustive also that of the ten hits, against the ten best of all
images compared by float32 regions. With --noise images are generated from real ones: regions of two images of a class,
place by place, with noise of this length. Opening is measured in a process of its own, with libraries loaded before.
Milliseconds: median, below it the smallest and largest median of a run and the 95th percentile of all queries.

With --photos the queries are image files of a folder or CSV file, searched in an index that was built with `diml index
build`, embedding included and without explanations: the whole, and its steps one by one, also as CPU time, which
depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import torch

import measure
import regimes
from diml.data.images import load_image
from diml.matching import Matcher, Regions
from diml.matching.codebooks import Codebooks
from diml.search import Searcher, open_store
from diml.search.backends import lance, milvus
from diml.search.filters import ColumnType
from diml.search.index import create_store, is_milvus
from diml.search.sources import list_queries
from diml.search.store import IndexConfig, Rows, codebooks_text, decode_regions, encode_regions

K, TEN = 100, 10
BLOCK = 50_000
BATCH = 5_000


def main() -> None:
    made = measure.parser(__doc__, runs=3)
    regimes.add_arguments(made, images=10_000, classes=1_000)
    made.add_argument("--queries", type=int, default=200, help="queries per run; default: %(default)s")
    made.add_argument(
        "--storage", choices=("float16", "int8", "1kb", "none"), default="float16", help="default: %(default)s"
    )
    made.add_argument("--noise", type=float, help="generate images from the regions of real ones, with such noise")
    made.add_argument("--exhaustive", action="store_true", help="compare every query with all images")
    made.add_argument(
        "--wait", type=float, default=31.0, help="seconds until old versions may be removed; default: %(default)s"
    )
    made.add_argument(
        "--always-index", action="store_true", help="build an index of pooled vectors for any number of images"
    )
    made.add_argument(
        "--store", default="lance", help="lance, lite (Milvus Lite) or http://host:port; default: %(default)s"
    )
    made.add_argument(
        "--probes", type=int, help="of 256 clusters, searched with index=IVF_FLAT of Milvus; default: the store's"
    )
    made.add_argument("--probed", type=float, help="fraction of the cells that LanceDB searches; default: the store's")
    made.add_argument("--folder", type=Path, help="where to create the indexes; default: a temporary folder")
    made.add_argument("--keep", type=Path, help="folder where indexes are kept, and used if they are there")
    made.add_argument("--first-query", nargs=2, metavar=("INDEX", "QUERY"), help=argparse.SUPPRESS)
    made.add_argument("--photos", nargs=2, metavar=("INDEX", "FOLDER_OR_CSV"), help="queries that are image files")
    options = measure.read(made)
    if options.photos:
        photos(*options.photos, options)
        return
    if options.first_query:
        print(json.dumps(first_query(*options.first_query)))
        return
    if options.probes:
        milvus.PROBED = options.probes
    if options.probed:
        lance.PROBED = options.probed
        lance.LanceStore._kept_cells = lambda _: None  # which the store has measured
    if options.always_index:
        lance.INDEX_FROM = 1
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = [one(name, options.keep or Path(folder), options) for name in options.embeddings]
    names = ("embeddings", "N", "stage 1, ms", "fetch, ms", "search, ms", "ledgers, ms")
    columns = (*names, "recall@100, %", "hits@10, %", "open, s")
    rows = [
        [
            f"{found['embeddings']}\n{found['storage']}",
            f"{found['images']:,}",
            *(shown(found.get(stage)) for stage in ("stage1", "fetch", "search", "ledgers")),
            f"{100 * found['recall']:.2f}\nworst {100 * found['worst']:.0f}",
            f"{100 * found['hits']:.2f}\nworst {100 * found['worst_hits']:.0f}" if "hits" in found else "-",
            f"{found['open']['seconds']:.2f}",
        ]
        for found in results
    ]
    sizes = [
        [
            f"{found['embeddings']}\n{found['storage']}",
            f"{found['images']:,}",
            f"{found['write']:.1f}",
            f"{found['optimize']:.1f}",
            found["index"],
            f"{found['disk'] / 1e6:,.0f}" if found["disk"] else "-",
            f"{found['disk'] / found['images']:,.0f}" if found["disk"] else "-",
            f"{found['du'] / found['images']:,.0f}" if found["disk"] else "-",
            f"{1000 * found['open']['memory']:,.0f}",
        ]
        for found in results
    ]
    names = ("embeddings", "N", "write, s", "index, s", "kind", "disk, MB", "bytes per image", "du", "memory, MB")
    first = measure.table("Search", columns, rows)
    measure.finish("search", options, results, first, measure.table("Writing and size", names, sizes))


def one(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Build an index and measure it."""
    place, known = place_of(name, folder, options.store), folder / f"{name}-content.npz"
    found: dict[str, Any] = {"embeddings": name, "storage": options.storage}
    if options.keep and known.is_file():
        store, content = open_store(place), Content.read(known)
        found |= {"write": math.nan, "optimize": math.nan}
    else:
        with measure.progress.status(f"writing {name}"):
            started = time.perf_counter()
            store, content, aside = filled(name, place, options)
            found["write"] = time.perf_counter() - started - aside
        with measure.progress.status(f"indexing {name}"):
            started = time.perf_counter()
            store.optimize()
            found["optimize"] = time.perf_counter() - started
        content.write(known)
    queries = content.queries
    if options.store != "lance":
        settle(store)
        store.close()
        store = open_store(place)  # with the consistency of the URI, which does not apply to writing
    found["images"] = store.count()
    near = [store.nearest(query.pooled.numpy(), K)[0].ids for query in queries]
    found |= dict(zip(("recall", "worst"), agreement(near, content.nearest), strict=True))
    if len(content.best):
        searcher = Searcher(store)
        hits = [[hit.id for hit in searcher.search(query, TEN, rerank_at=K).hits] for query in queries]
        found |= dict(zip(("hits", "worst_hits"), agreement(hits, content.best), strict=True))
    if options.store == "lance":
        time.sleep(options.wait)  # versions from before the index are kept for a while, for readers
        store.optimize()
    info = store.info()
    found |= {"index": info.index, "disk": info.disk_bytes, "du": du(Path(place))}
    found |= timed(Searcher(store), queries, options)
    store.close()  # Milvus Lite allows one process at a time
    file = folder / f"{name}.npz"
    np.savez(file, dense=queries[0].dense.numpy(), pooled=queries[0].pooled.numpy())
    threads = ["--threads", str(options.threads)] if options.threads else []
    found |= {"open": measure.in_own_process(__file__, ["--first-query", str(place), str(file), *threads])}
    if options.store.startswith("http"):
        drop(place)
    return found


def photos(index: str, queries: str, options: argparse.Namespace) -> None:
    """Time the search for image files, and its steps."""
    listing = list_queries(Path(queries))
    chosen = np.random.default_rng(options.seed).permutation(len(listing))[: options.queries]
    files = [listing.file(int(row)) for row in chosen]
    with Searcher.open(index) as searcher:
        steps = photo_steps(searcher, files)
        for file in files[:3]:
            searcher.search(file)
        wall: dict[str, list[list[float]]] = {name: [] for name in steps}
        cpu: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.warmup + options.runs):
            for name, work in steps.items():
                run = []
                for at in range(len(files)):
                    started, used = time.perf_counter(), time.process_time()
                    work(at)
                    run.append(1000 * (time.perf_counter() - started))
                    cpu[name].append(1000 * (time.process_time() - used))
                wall[name].append(run)
        count, info = len(files), searcher.store.info()
    results = [
        {
            "step": name,
            "wall": summary(wall[name][options.warmup :]),
            "cpu": measure.spread(cpu[name][options.warmup * count :]),
        }
        for name in steps
    ]
    rows = [[one["step"], shown(one["wall"]), measure.number(one["cpu"]["median"])] for one in results]
    title = f"{count} queries, {info.rows:,} images: milliseconds"
    measure.finish("search photos", options, results, measure.table(title, ("", "wall clock", "CPU, median"), rows))


def photo_steps(searcher: Searcher, files: list[Path]) -> dict[str, Callable[[int], object]]:
    """What the search for an image file consists of, each step with what it needs at hand."""
    store, embedder = searcher.store, searcher.embedder
    images = [load_image(file) for file in files]
    queries = [embedder.embed(image, shares=True).to("cpu") for image in images]
    near = [store.nearest(query.pooled.numpy(), K)[0].ids for query in queries]
    stored = [decode_regions(store.regions(ids), store.config) for ids in near]
    alone = replace(searcher.matcher, structural_weight=float("inf"))
    return {
        "decode": lambda at: load_image(files[at]),
        "embed: resize, network, head, shares": lambda at: embedder.embed(images[at], shares=True),
        "stage 1: 100 nearest": lambda at: store.nearest(queries[at].pooled.numpy(), K),
        "read 100 regions, check, decode": lambda at: decode_regions(store.regions(near[at]), store.config),
        "re-rank": lambda at: alone.score(queries[at], stored[at], torch.arange(len(near[at])).unsqueeze(0)),
        "search without embedding": lambda at: searcher.search(queries[at]),
        "search for a file": lambda at: searcher.search(files[at]),
    }


def settle(store: Any) -> None:
    """Wait until a server has built its index and uses it."""
    deadline = time.monotonic() + 300
    while store.info().index != "none" and store.info().indexed < store.count() and time.monotonic() < deadline:
        time.sleep(1)
    time.sleep(0 if store.info().index == "none" else 10)


def place_of(name: str, folder: Path, store: str) -> str:
    """URI of the index of these embeddings."""
    if store in ("lance", "lite"):
        return str(folder / (name if store == "lance" else f"{name}.db"))
    parts = urlsplit(store)
    return urlunsplit(parts._replace(path=f"/bench_{uuid.uuid4().hex}"))


def drop(uri: str) -> None:
    """Remove a collection from a server."""
    from diml.search.backends.milvus import Connection, read_place

    place = read_place(uri)
    connection = Connection(place)
    connection.call("drop_collection", place.collection)
    connection.close()


@dataclass(frozen=True, eq=False)
class Content:
    """Q queries, and what is there for each: rows (Q, 100) of largest pooled cosine, rows (Q, 10) of best score, or no
    such rows (0, 10)."""

    queries: list[Regions]
    nearest: np.ndarray
    best: np.ndarray

    def write(self, file: Path) -> None:
        """Keep it as a file of numpy."""
        dense, pooled = (torch.cat([getattr(query, name) for query in self.queries]) for name in ("dense", "pooled"))
        np.savez(file, dense=dense.numpy(), pooled=pooled.numpy(), nearest=self.nearest, best=self.best)

    @classmethod
    def read(cls, file: Path) -> Content:
        """What was written to a file."""
        with np.load(file) as arrays:
            queries = Regions(torch.from_numpy(arrays["dense"]), torch.from_numpy(arrays["pooled"]))
            return cls([queries[row] for row in range(len(queries))], arrays["nearest"], arrays["best"])


class Best:
    """The k rows of largest score for each of Q queries, of parts that come one after the other."""

    def __init__(self, queries: int, k: int) -> None:
        self.scores, self.rows = torch.empty(queries, 0), torch.empty(queries, 0, dtype=torch.int64)
        self.k = k

    def add(self, scores: torch.Tensor, first: int) -> None:
        """Take in scores (Q, n) of the rows from `first` on."""
        rows = torch.arange(first, first + scores.shape[1]).expand_as(scores)
        both = torch.cat([self.scores, scores], dim=1)
        self.scores, place = both.topk(min(self.k, both.shape[1]), dim=1)
        self.rows = torch.cat([self.rows, rows], dim=1).gather(1, place)


def filled(name: str, place: str, options: argparse.Namespace) -> tuple[Any, Content, float]:
    """The index, its content for the ground truth, and the seconds spent on making embeddings and comparing them."""
    started = time.perf_counter()
    parts = blocks(name, options)
    first = next(parts)
    count = min(options.queries, len(first) // 4)
    queries, first = first[:count].to(torch.float32), first[count:]
    stored = 0 if options.storage == "none" else first.num_regions
    codebooks = codebooks_text(Codebooks.fit(first.dense)) if options.storage == "1kb" else ""
    columns: dict[str, ColumnType] = {"label": "text"}
    config = IndexConfig(
        dim=first.dim,
        num_regions=stored,
        grid=first.grid,
        storage=options.storage,
        codebooks=codebooks,
        columns=columns,
    )
    aside = time.perf_counter() - started
    store, near, best, count = create_store(place, config), Best(len(queries), K), Best(len(queries), TEN), 0
    part: Regions | None = first
    while part is not None:
        for start in range(0, len(part), BATCH):
            chunk = part[start : start + BATCH]
            vectors = chunk.pooled.float()
            ids = tuple(f"{count + row:032x}" for row in range(len(chunk)))
            labels = tuple({"label": f"class {row % 100}"} for row in range(len(chunk)))
            store.add(Rows(ids, vectors.numpy(), encode_regions(chunk, config), labels))
            again = time.perf_counter()
            near.add(queries.pooled @ vectors.T, count)
            if options.exhaustive:
                best.add(Matcher().score(queries, chunk, torch.arange(len(chunk)).expand(len(queries), -1)), count)
            aside += time.perf_counter() - again
            count += len(chunk)
            if options.keep:
                measure.progress.log(f"{count:,} images")
        again = time.perf_counter()
        part = next(parts, None)
        aside += time.perf_counter() - again
    content = Content([queries[row] for row in range(len(queries))], near.rows.numpy(), best.rows.numpy())
    return store, content if options.exhaustive else replace(content, best=np.empty((0, TEN), np.int64)), aside


def blocks(name: str, options: argparse.Namespace) -> Iterator[Regions]:
    """The embeddings part by part; the first has Q more. Every part of generated embeddings has its own classes."""
    real = regimes.load(name, options) if name in regimes.REAL else None
    if real is not None and options.noise is None:
        yield real.regions
        return
    left, seed = options.images + options.queries, options.seed
    while left > 0:
        size = min(left, BLOCK + options.queries)
        if real is not None:
            yield regimes.noisy(real, images=size, noise=options.noise, seed=seed)
            left, seed = left - size, seed + 1
            continue
        sizes = {"images": size, "classes": options.classes, "regions": options.regions, "dim": options.dim}
        yield regimes.generate(name, **sizes, seed=seed, dtype=torch.float16).regions
        left, seed = left - size, seed + 1


def agreement(found: Sequence[Sequence[str]], best: np.ndarray) -> tuple[float, float]:
    """Fraction of the true best rows (Q, k) that were found, by ids: mean and worst query."""
    shares = [
        len({int(name, 16) for name in ids} & set(rows.tolist())) / len(rows)
        for ids, rows in zip(found, best, strict=True)
    ]
    return statistics.mean(shares), min(shares)


def du(folder: Path) -> int:
    """Bytes of the blocks of the files of a folder."""
    return sum(512 * file.stat().st_blocks for file in folder.rglob("*") if file.is_file())


def timed(searcher: Searcher, queries: list[Regions], options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of each stage, query by query, stages alternating."""
    store = searcher.store
    near = [store.nearest(query.pooled.numpy(), K)[0].ids for query in queries]
    depth = 0 if options.storage == "none" else K
    hits = [searcher.search(query, 10, rerank_at=depth) for query in queries]
    other = open_store(store.info().uri)  # one without any query before, which fetches by ids alone
    stages: dict[str, Callable[[int], object]] = {
        "stage1": lambda at: store.nearest(queries[at].pooled.numpy(), K),
        "fetch": lambda at: store.regions(near[at]),
        "by_id": lambda at: other.regions(near[at]),
        "search": lambda at: searcher.search(queries[at], 10, rerank_at=depth),
    }
    if depth:
        stages["ledgers"] = lambda at: [hits[at].__dict__.pop("match", None), hits[at].to_dict()]
    seconds: dict[str, list[list[float]]] = {name: [] for name in stages}
    for _ in range(options.warmup + options.runs):
        for name, work in stages.items():
            run = []
            for at in range(len(queries)):
                started = time.perf_counter()
                work(at)
                run.append(1000 * (time.perf_counter() - started))
            seconds[name].append(run)
    return {name: summary(runs[options.warmup :]) for name, runs in seconds.items()}


def summary(runs: list[list[float]]) -> dict[str, float]:
    medians, everything = [statistics.median(run) for run in runs], [value for run in runs for value in run]
    ninety_five = statistics.quantiles(everything, n=20)[-1]
    return {"median": statistics.median(everything), "low": min(medians), "high": max(medians), "p95": ninety_five}


def shown(found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    low, high = (measure.number(found[name]) for name in ("low", "high"))
    return f"{measure.number(found['median'])}\n{low}..{high}\np95 {measure.number(found['p95'])}"


def first_query(index: str, query: str) -> dict[str, float]:
    """Seconds from the path of an index to the first answer, and the memory used."""
    # libraries are imported before timing starts
    importlib.import_module("pymilvus" if is_milvus(index) else "lancedb")

    with np.load(query) as arrays:
        regions = Regions(torch.from_numpy(arrays["dense"]), torch.from_numpy(arrays["pooled"]))
    before = measure.resident_gb()
    started = time.perf_counter()
    searcher = Searcher(open_store(index))
    depth = 0 if searcher.store.config.storage == "none" else K
    searcher.search(regions, 10, rerank_at=depth)
    seconds = time.perf_counter() - started
    for _ in range(50):
        searcher.search(regions, 10, rerank_at=depth)
    return {"seconds": seconds, "memory": measure.peak_gb() - before}


if __name__ == "__main__":
    sys.exit(main())
