"""Memory and time of a whole evaluation at the size of Stanford Online Products (60,502 test images, 11,316 classes).

    python benchmarks/memory.py --queries 3000 --json runs/memory.json
    python benchmarks/memory.py --images 5000 --classes 1000 --dtype float16 --limit-gb 0

Embeddings are generated, as only the cost matters. Peaks are resident memory of the whole process, including torch and
the embeddings: while these were generated ("making") and during the evaluation ("evaluating"; the peak is reset in
between on Linux, elsewhere it is the larger of both).
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import measure
import regimes
from diml.evaluation import evaluate_regions
from diml.matching import ConvergenceWarning


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    regimes.add_arguments(made, images=60502, classes=11316, several=False)
    made.add_argument("--rerank-at", type=int, nargs="+", default=[0, 100], help="the K; default: 0 100")
    made.add_argument("--queries", type=int, help="evaluate the first queries only, this many; default: all")
    made.add_argument(
        "--limit-gb", type=float, default=2.5, help="fail above this peak; default: %(default)s; 0: never"
    )
    options = measure.read(made)
    found = regimes.load(options.embeddings, options)
    gallery = regimes.stored(found, options)
    making, resident = measure.peak_gb(), measure.resident_gb()
    measure.forget_peak()
    queries = range(min(options.queries or len(found.regions), len(found.regions)))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        report = evaluate_regions(gallery, found.labels, rerank_at=options.rerank_at, queries=queries, progress=True)
    seconds, evaluating = time.perf_counter() - start, measure.peak_gb()
    result: dict[str, Any] = {"embeddings": found.name, "images": len(found.regions), "queries": len(report.queries)}
    result |= {"gallery": report.gallery_size, "unconverged_pairs": report.unconverged_pairs, "seconds": seconds}
    result |= {"making_gb": making, "resident_gb": resident, "evaluating_gb": evaluating}
    result |= {"peak_gb": max(making, evaluating), "rows": report.rows}
    numbers = [f"{result[name]:.2f}" for name in ("seconds", "making_gb", "resident_gb", "evaluating_gb")]
    columns = ("queries", "seconds", "making, GB", "before, GB", "evaluating, GB")
    title = f"{report.gallery_size:,} images, K = {options.rerank_at}"
    measure.finish("memory", options, [result], measure.table(title, columns, [[f"{len(report.queries):,}", *numbers]]))
    if options.limit_gb and result["peak_gb"] > options.limit_gb:
        sys.exit(f"peak memory {result['peak_gb']:.2f} GB is above {options.limit_gb} GB")


if __name__ == "__main__":
    main()
