"""`diml serve` under load, and its memory by the size of its index: real servers, real requests.

    python benchmarks/serve.py --index grocery.index --queries FOLDER --clients 64 --processes 1 2
    python benchmarks/serve.py --index grocery.index --queries FOLDER --clients 64 --max-waiting 8 --routes search
    python benchmarks/serve.py --index grocery.index --rows 60000 --clients 8 --routes gallery
    python benchmarks/serve.py --index grocery.index --rows 2000 100000 1000000 --memory

Each client sends its next request when it has the answer to the last one, and waits as long as Retry-After says after a
503. Times are those of successful requests; refused: the share of all requests that got such a 503. Any other error, a
503 without Retry-After included, ends the benchmark. Processor: time of the server's processes for each successful
request, which other work on the machine changes little; load average: at the end, that of the clients included.

With --rows the index is copied to that many rows: regions of its images with noise of a tenth of their length and their
files, in the same storage. Resident memory is that of the server process (VmRSS): when it is ready, after 50 searches
that re-rank 100 candidates, each with 8 hits explained, and 50 pages of the gallery; and the most that it ever was.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

import measure
from diml.data.listing import find_images
from diml.matching import Regions
from diml.search import open_store
from diml.search.index import create_store
from diml.search.store import Rows, decode_regions, encode_regions

ROUTES: Final = ("search", "hits", "gallery")
PAGE: Final = 24  # images of a page of the gallery
BATCH: Final = 20_000
TEXTS: Final = ("head.json", "calibration.json")  # kept with an index
PART: Final = 10_000
NOISE: Final = 0.1
ASKED: Final = 50
READY_SECONDS: Final = 600


class Answer(NamedTuple):
    """One request."""

    status: int
    seconds: float
    retry_after: float | None


class Server(NamedTuple):
    """A running server."""

    process: subprocess.Popen[str]
    port: int


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    made.add_argument("--index", type=Path, required=True, help="an index of diml index build, in a folder")
    made.add_argument("--queries", type=Path, help="folder of query images; default: images of the index, by id")
    made.add_argument("--rows", type=int, nargs="+", help="copy the index to that many rows, with noise")
    made.add_argument("--folder", type=Path, help="where to copy it to, and keep it; default: a temporary folder")
    made.add_argument("--processes", type=int, nargs="+", default=[1], help="default: 1")
    made.add_argument("--clients", type=int, default=64, help="default: %(default)s")
    made.add_argument("--seconds", type=float, default=30.0, help="of each route; default: %(default)s")
    made.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES), help="default: all")
    made.add_argument("--max-waiting", type=int, default=64, help="as of diml serve; default: %(default)s")
    made.add_argument("--memory", action="store_true", help="measure the memory instead")
    options = measure.read(made)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for rows in options.rows or [None]:
            index = options.index if rows is None else copied(options.index, rows, options.folder or Path(temporary))
            if options.memory:
                results.append(memory_of(index, options))
            else:
                for processes in options.processes:
                    results += loaded(index, processes, options)
    table = memory_table(results) if options.memory else load_table(results)
    measure.finish("serve", options, results, table)


# ---- Load ------------------------------------------------------------------------------------------------------------


def loaded(index: Path, processes: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each route under load, on one server."""
    words = ["--processes", str(processes), "--max-waiting", str(options.max_waiting)]
    found = []
    with serving(index, *words) as server:
        for route in options.routes:
            requests = requests_of(route, server.port, options)
            for _ in range(2 * processes):  # what is imported or read at the first request
                answer_of(server.port, next(requests))
            before = processor_seconds(server.process.pid)
            with measure.progress.status(f"{route}, {processes} processes"):
                answers, seconds = pressed(server.port, requests, options.clients, options.seconds)
            used = processor_seconds(server.process.pid) - before
            found.append({
                "route": route, "processes": processes, "clients": options.clients,
                "processor_ms": 1000 * used / sum(answer.status == 200 for answer in answers),
                "load_average": os.getloadavg()[0], **told(answers, seconds), **facts(server.port),
            })  # fmt: skip
    return found


def processor_seconds(process: int) -> float:
    """Processor time of a server and its processes so far."""
    inner = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    spent = 0.0
    for one in (str(process), *inner):
        words = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        spent += sum(map(int, words[11:13])) / os.sysconf("SC_CLK_TCK")
    return spent


def told(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Numbers of the requests of a route."""
    statuses = Counter(answer.status for answer in answers)
    honest = sum(answer.status == 503 and answer.retry_after is not None for answer in answers)
    if statuses[200] + honest < len(answers):
        raise SystemExit(f"answers that are neither 200 nor 503 with Retry-After: {dict(statuses)}, honest {honest}")
    good = [1000 * answer.seconds for answer in answers if answer.status == 200]
    return {
        "requests": len(answers),
        "refused": honest / len(answers),
        "p50_ms": statistics.median(good),
        "p95_ms": float(np.quantile(good, 0.95)),
        "per_second": len(good) / seconds,
        "retry_after": sorted({answer.retry_after for answer in answers if answer.status == 503}),
    }


def pressed(port: int, requests: Iterator[tuple[Any, ...]], clients: int, seconds: float) -> tuple[list[Answer], float]:
    """Requests of so many clients for so long; those that are under way at the end are waited for."""
    answers: list[Answer] = []
    lock, end = threading.Lock(), time.monotonic() + seconds

    def client() -> None:
        while time.monotonic() < end:
            with lock:
                request = next(requests)
            answer = answer_of(port, request)
            answers.append(answer)
            if answer.retry_after is not None:
                time.sleep(min(answer.retry_after, max(0.0, end - time.monotonic())))

    began = time.monotonic()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, time.monotonic() - began


def requests_of(route: str, port: int, options: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """Requests without end: (method, path, body, headers)."""
    draw = random.Random(options.seed)
    total = facts(port)["images"]
    if route == "gallery":
        while True:
            yield ("GET", f"/api/gallery?offset={draw.randrange(max(1, total - PAGE))}&count={PAGE}", None, {})
    if options.queries is None:
        keys = ids(port, [draw.randrange(total) for _ in range(ASKED)])
        for key in itertools.cycle(keys):
            yield ("POST", f"/api/{route}?id={key}", None, {})
    for file in itertools.cycle(draw.sample(files := sorted(find_images(options.queries).paths), len(files))):
        head = b'--limit\r\ncontent-disposition: form-data; name="query"; filename="query"\r\n\r\n'
        body = head + file.read_bytes() + b"\r\n--limit--\r\n"
        yield ("POST", f"/api/{route}", body, {"content-type": "multipart/form-data; boundary=limit"})


def ids(port: int, places: Sequence[int]) -> list[str]:
    """Ids of images at places of the gallery."""
    return [json.loads(asked(port, f"/api/gallery?offset={place}&count=1"))["items"][0]["id"] for place in places]


def answer_of(port: int, request: tuple[Any, ...]) -> Answer:
    """Send a request over a connection of its own, and read the answer."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(request[0], request[1], body=request[2], headers=request[3])
        answer = connection.getresponse()
        answer.read()
        after = answer.getheader("retry-after")
        return Answer(answer.status, time.perf_counter() - began, None if after is None else float(after))
    finally:
        connection.close()


def asked(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return content
    finally:
        connection.close()


def facts(port: int) -> dict[str, Any]:
    return {"images": json.loads(asked(port, "/api/status"))["gallery"]["count"]}


def load_table(results: Sequence[dict[str, Any]]) -> Any:
    names = (
        "route", "images", "clients", "processes", "p50, ms", "p95, ms", "requests/s", "refused, %",
        "processor, ms", "load average",
    )  # fmt: skip
    rows = [
        [
            result["route"], f"{result['images']:,}", str(result["clients"]), str(result["processes"]),
            f"{result['p50_ms']:,.0f}", f"{result['p95_ms']:,.0f}", f"{result['per_second']:,.1f}",
            f"{100 * result['refused']:.1f}", f"{result['processor_ms']:,.0f}", f"{result['load_average']:.0f}",
        ]
        for result in results
    ]  # fmt: skip
    return measure.table("Load", names, rows)


# ---- Memory ----------------------------------------------------------------------------------------------------------


def memory_of(index: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Resident memory of a server of one process over an index."""
    config = open_store(index).config
    with serving(index) as server:
        found: dict[str, Any] = {
            "storage": config.storage, "regions": config.num_regions, "dim": config.dim, **facts(server.port),
            "disk": sum(file.stat().st_size for file in index.rglob("*") if file.is_file()),
            "ready": resident(server.process.pid)["VmRSS"],
        }  # fmt: skip
        draw = random.Random(options.seed)
        keys = ids(server.port, [draw.randrange(found["images"]) for _ in range(ASKED)])
        for key in keys:
            answer = answer_of(server.port, ("POST", f"/api/search?id={key}", None, {}))
            assert answer.status == 200, answer
        now = resident(server.process.pid)
        return found | {"after": now["VmRSS"], "most": now["VmHWM"]}


def resident(process: int) -> dict[str, int]:
    """Bytes of memory of a process."""
    lines = re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return {name: 1024 * int(size) for name, size in lines}


def memory_table(results: Sequence[dict[str, Any]]) -> Any:
    names = ("images", "storage", "disk, MB", "ready, MB", "after searches, MB", "most, MB")
    rows = [
        [
            f"{result['images']:,}", f"{result['storage']}, {result['regions']} x {result['dim']}",
            *(f"{result[name] / 1e6:,.0f}" for name in ("disk", "ready", "after", "most")),
        ]
        for result in results
    ]  # fmt: skip
    return measure.table("Memory of the server", names, rows)


# ---- Servers and indexes ---------------------------------------------------------------------------------------------


@contextmanager
def serving(index: Path, *words: str) -> Iterator[Server]:
    """`diml serve` over an index, on a free port."""
    command = [sys.executable, "-m", "diml", "serve", "--index", str(index), "--port", "0", *words]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)
        try:
            yield Server(process, port_of(process, Path(log.name)))
        finally:
            process.terminate()
            process.wait(120)


def port_of(process: subprocess.Popen[str], log: Path) -> int:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        found = re.search(r"Serving http://127\.0\.0\.1:(\d+)", log.read_text())
        if found:
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"the server did not start: {log.read_text()}")


def copied(source: Path, rows: int, folder: Path) -> Path:
    """An index of that many rows: those of another with noise. One that is there is used as it is."""
    target = folder / f"{source.stem}-{rows}.index"
    if target.exists() and open_store(target).count() == rows:
        return target
    store = open_store(source)
    names = [key for part in store.listing(columns=[]) for key in part.ids]
    noise = torch.Generator().manual_seed(0)
    new = create_store(target, store.config)
    for kept in TEXTS:
        text = store.read_text(kept)
        if text is not None:
            new.write_text(kept, text)
    for start in range(0, rows, BATCH):
        with measure.progress.status(f"{target.name}: {start:,} of {rows:,} rows"):
            count = min(BATCH, rows - start)
            chosen = torch.randint(len(names), (count,), generator=noise).tolist()
            for low in range(0, count, PART):
                new.add(noisy(store, [names[place] for place in chosen[low : low + PART]], start + low, noise))
    new.optimize(new=True)
    return target


def noisy(store: Any, keys: list[str], first: int, generator: torch.Generator) -> Rows:
    """Rows of these images with noise, named by numbers."""
    distinct = store.regions(list(dict.fromkeys(keys)))
    place = {key: row for row, key in enumerate(distinct.ids)}
    taken = [place[key] for key in keys]
    regions = decode_regions(distinct, store.config)[torch.tensor(taken)].to(torch.float32)
    moved = [shaken(part, generator) for part in (regions.dense, regions.pooled)]
    made = Regions(moved[0], moved[1], regions.grid, masses=regions.masses, massless=regions.massless)
    names = tuple(f"{first + row:032x}" for row in range(len(keys)))
    metadata = tuple(distinct.metadata[row] for row in taken)
    return Rows(names, moved[1].numpy(), encode_regions(made, store.config), metadata)


def shaken(vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Unit vectors with noise of a part of their length, again of unit length."""
    noise = torch.randn(vectors.shape, generator=generator) * NOISE / vectors.shape[-1] ** 0.5
    return torch.nn.functional.normalize(vectors + noise, dim=-1)


if __name__ == "__main__":
    main()
