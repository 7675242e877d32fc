"""Copying an index between databases, and conditions in each of them.

    python benchmarks/index_copy.py --images 20000 --runs 3 --threads 1
    python benchmarks/index_copy.py --images 20000 --runs 3 --threads 1 --server http://127.0.0.1:19530

Random regions in int8, with a label and a path for each image. A copy is `copy_index`: written, read back and compared.
The original is in LanceDB; it is copied to each database, and from there to LanceDB. CPU seconds are those of this
process, without the server's. A condition is timed in a search for the 100 nearest. With --server a collection is
created there, and dropped at the end.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import measure
from diml.matching import Regions
from diml.search import open_store
from diml.search.copying import copy_index
from diml.search.filters import parse_where
from diml.search.index import create_store
from diml.search.store import IndexConfig, Rows, encode_regions

COLUMNS = {"label": "text", "path": "text"}
#: The same images: one class of a hundred.
CONDITIONS = ("label = 'class 7'", "path like 'photos/class 7/%'", "path like '%class_7/%'", "label ilike '%CLASS 7'")
BATCH = 5_000


def main() -> None:
    made = measure.parser(__doc__, runs=3, warmup=0)
    made.add_argument("--images", type=int, default=20_000, help="default: %(default)s")
    made.add_argument("--regions", type=int, default=16, help="default: %(default)s")
    made.add_argument("--dim", type=int, default=128, help="default: %(default)s")
    made.add_argument("--server", help="address of a Milvus server, which is measured too")
    options = measure.read(made)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, collection(options.server) as remote:
        places = {"LanceDB": str(Path(folder) / "copy.index"), "Milvus Lite": str(Path(folder) / "copy.db")}
        if remote is not None:
            places["Milvus"] = remote
        original = fill(Path(folder) / "original.index", options)
        for name, place in places.items():
            results.append(copied(f"LanceDB to {name}", original, place))
            results += [timed(name, place, condition, options) for condition in CONDITIONS]
            if name != "LanceDB":
                results.append(copied(f"{name} to LanceDB", place, str(Path(folder) / f"back from {name}")))
                shutil.rmtree(Path(folder) / f"back from {name}")
    copies = [[one["copy"], f"{one['seconds']:.1f}", f"{one['cpu']:.1f}"] for one in results if "copy" in one]
    rows = [[one["database"], one["condition"], measure.shown(one["ms"])] for one in results if "condition" in one]
    measure.finish(
        "index_copy",
        options,
        results,
        measure.table(f"Copying {options.images:,} images", ("", "seconds", "CPU seconds"), copies),
        measure.table("Milliseconds of a search", ("database", "condition", "median, min..max"), rows),
    )


@contextmanager
def collection(server: str | None) -> Iterator[str | None]:
    """The place of a new collection on a server, which is dropped at the end."""
    if server is None:
        yield None
        return
    from diml.search.backends.milvus import Connection, read_place

    uri = f"{server.rstrip('/')}/copy_{uuid.uuid4().hex}"
    try:
        yield uri
    finally:
        connection = Connection(read_place(uri))
        connection.call("drop_collection", read_place(uri).collection)
        connection.close()


def fill(place: Path, options: argparse.Namespace) -> str:
    """An index in LanceDB."""
    config = IndexConfig(
        dim=options.dim, num_regions=options.regions, storage="int8", columns=COLUMNS, embedder="0" * 64
    )
    generator = torch.Generator().manual_seed(options.seed)
    store = create_store(place, config)
    for start in range(0, options.images, BATCH):
        count = min(BATCH, options.images - start)
        dense = torch.randn(count, options.regions, options.dim, generator=generator)
        regions = Regions.normalized(dense, torch.randn(count, options.dim, generator=generator))
        labels = [f"class {number % 100}" for number in range(start, start + count)]
        entries = tuple(
            {"label": label, "path": f"photos/{label}/{number}.jpg"} for number, label in enumerate(labels, start)
        )
        ids = tuple(f"{number:032x}" for number in range(start, start + count))
        store.add(Rows(ids, regions.pooled.numpy(), encode_regions(regions, config), entries))
    store.optimize()
    store.close()
    return str(place)


def copied(name: str, source: str, destination: str) -> dict[str, Any]:
    started, used = time.perf_counter(), time.process_time()
    with measure.progress.status(name):
        report = copy_index(source, destination)
    found = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - used}
    return {"copy": name, "rows": report.rows, "difference": report.difference} | found


def timed(name: str, place: str, condition: str, options: argparse.Namespace) -> dict[str, Any]:
    where, store = parse_where(condition, COLUMNS), open_store(place)
    query = torch.nn.functional.normalize(torch.ones(1, options.dim)).numpy()
    sides = {condition: lambda: store.nearest(query, 100, where=where)}
    with measure.progress.status(f"{name}: {condition}"):
        seconds = measure.alternate(sides, options.runs, max(1, options.warmup))[condition]
    store.close()
    return {"database": name, "condition": condition, "ms": measure.spread(seconds, 1000)}


if __name__ == "__main__":
    main()
