"""Memory and time of a whole evaluation at the size of Stanford Online Products (60,502 test images, 11,316 classes).

    python benchmarks/evaluation_memory.py --queries 3000 --json runs/evaluation_memory.json

The embeddings are made here: unit vectors around one centre a class. Only the cost is of interest, not the metrics.
Peaks are resident memory of the whole process, with torch and the embeddings: while these were made ("making") and
during the evaluation ("evaluating"; on Linux, where the mark can be set back in between; elsewhere the larger of both).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from diml.evaluation import Report, evaluate_regions
from diml.matching import Regions

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

#: Images made at once, so that making them needs less memory than evaluating them.
CHUNK = 2000


def main() -> None:
    options = arguments()
    console = Console(stderr=True)
    with console.status("making embeddings"):
        regions, labels = clustered(options)
    making = peak_gb()
    forget_peak()
    start = time.perf_counter()
    report = evaluate_regions(
        regions,
        labels,
        rerank=options.rerank,
        queries=range(min(options.queries or options.images, options.images)),
        progress=True,
    )
    seconds, evaluating = time.perf_counter() - start, peak_gb()
    found = {"seconds": seconds, "making_gb": making, "evaluating_gb": evaluating, "peak_gb": max(making, evaluating)}
    console.print(table(report, found, options))
    text = json.dumps({**found, **facts(report, options)}, indent=1)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.limit_gb and found["peak_gb"] > options.limit_gb:
        sys.exit(f"peak memory {found['peak_gb']:.2f} GB is above {options.limit_gb} GB")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 60502), ("regions", 16), ("dim", 128), ("classes", 11316)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--rerank", type=int, nargs="+", default=[0, 100], help="the K; default: 0 100")
    parser.add_argument("--queries", type=int, help="evaluate the first so many queries; default: all")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="storage type; default: %(default)s")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument(
        "--limit-gb", type=float, default=4.0, help="fail above this peak; default: %(default)s; 0: never"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def clustered(options: argparse.Namespace) -> tuple[Regions, np.ndarray]:
    """Images scattered about as far from the centre of their class as the centres are from each other."""
    generator = torch.Generator().manual_seed(0)
    dtype = DTYPES[options.dtype]
    labels = np.arange(options.images) % options.classes
    centres = torch.randn(options.classes, 1, options.dim, generator=generator)
    dense = torch.empty(options.images, options.regions, options.dim, dtype=dtype)
    pooled = torch.empty(options.images, options.dim, dtype=dtype)
    for start in range(0, options.images, CHUNK):
        chunk = slice(start, start + CHUNK)
        image = centres[labels[chunk]] + torch.randn(len(labels[chunk]), 1, options.dim, generator=generator)
        part = image + torch.randn(len(image), options.regions, options.dim, generator=generator)
        made = Regions.normalized(part, part.mean(dim=1))
        dense[chunk], pooled[chunk] = made.dense, made.pooled
    return Regions(dense, pooled), labels


def peak_gb() -> float:
    """Largest resident memory of this process so far, in 10^9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def forget_peak() -> None:
    """Set the mark of `peak_gb` back to what is resident now, where the system can do so."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def facts(report: Report, options: argparse.Namespace) -> dict[str, object]:
    return {
        "queries": len(report.queries),
        "gallery": report.gallery_size,
        "unfinished_pairs": report.unfinished_pairs,
        "rows": report.rows,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def processor() -> str:
    """Name of the processor where the system tells, else its architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(report: Report, found: dict[str, float], options: argparse.Namespace) -> Table:
    shown = Table(title=f"{len(report.queries):,} queries x {report.gallery_size:,} images, K = {options.rerank}")
    for name in ("seconds", "queries/s", "making, GB", "evaluating, GB"):
        shown.add_column(name, justify="right")
    numbers = (found["seconds"], len(report.queries) / found["seconds"], found["making_gb"], found["evaluating_gb"])
    shown.add_row(*(f"{number:.2f}" for number in numbers))
    return shown


if __name__ == "__main__":
    main()
