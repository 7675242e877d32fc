"""The arithmetic limit of re-ranking: the time of the cosines alone, at the speed of torch's matrix product.

    python benchmarks/limit.py
    python benchmarks/limit.py --regions 49 --dim 1280 --json runs/limit.json

A pair needs R x R x D multiplications and additions in float32. Their speed is taken to be that of a large matrix
product on all threads of torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import measure


def main() -> None:
    made = measure.parser(__doc__, runs=15)
    sizes = (("regions", 16, "R"), ("dim", 128, "D"), ("rerank-at", 100, "K"), ("size", 1536, "rows of the matrices"))
    for name, default, about in sizes:
        made.add_argument(f"--{name}", type=int, default=default, help=f"{about}; default: %(default)s")
    options = measure.read(made)
    seconds = measure.alternate({"product": product(options.size)}, options.runs, options.warmup)["product"]
    speeds = [options.size**3 / each for each in seconds]
    pair = options.regions**2 * options.dim
    result = {
        "multiplications_per_second": measure.spread(speeds),
        "multiplications_of_a_pair": pair,
        "ms_per_query": measure.spread([1000 * options.rerank_at * pair / speed for speed in speeds]),
    }
    row = [f"{pair:,}", measure.shown(measure.spread(speeds, 1e-9)), measure.shown(result["ms_per_query"])]
    columns = ("multiplications per pair", "10^9 per second", "ms per query")
    title = f"Cosines alone, R {options.regions}, D {options.dim}, K {options.rerank_at}: median, min..max"
    measure.finish("limit", options, [result], measure.table(title, columns, [row]))


def product(size: int) -> Callable[[], object]:
    """A product of two square matrices."""
    a, b, out = (torch.rand(size, size) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


if __name__ == "__main__":
    main()
