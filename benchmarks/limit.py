"""The arithmetic limit of re-ranking on this machine: what the cosines alone take, at the speed of torch's product.

    python benchmarks/limit.py
    python benchmarks/limit.py --regions 49 --dim 1280 --json runs/limit.json

A pair needs R x R x D multiplications and additions in float32. Their speed is that of a large matrix product, on as
many threads as torch has.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import measure


def main() -> None:
    made = measure.parser(__doc__, runs=15)
    for name, default, about in (("regions", 16, "R"), ("dim", 128, "D"), ("rerank", 100, "K"), ("size", 1536, "side")):
        made.add_argument(f"--{name}", type=int, default=default, help=f"{about}; default: %(default)s")
    options = measure.read(made)
    seconds = measure.alternate({"product": product(options.size)}, options.runs, options.warmup)["product"]
    speeds = [options.size**3 / each for each in seconds]
    pair = options.regions**2 * options.dim
    result = {
        "multiplications_per_second": measure.spread(speeds),
        "multiplications_of_a_pair": pair,
        "ms_per_query": measure.spread([1000 * options.rerank * pair / speed for speed in speeds]),
    }
    row = [f"{pair:,}", measure.shown(measure.spread(speeds, 1e-9)), measure.shown(result["ms_per_query"])]
    columns = ("multiplications of a pair", "10^9 a second", "ms a query")
    title = f"Cosines alone, R {options.regions}, D {options.dim}, K {options.rerank}: median, least..most"
    measure.finish("limit", options, [result], measure.table(title, columns, [row]))


def product(side: int) -> Callable[[], object]:
    """A square matrix product."""
    a, b, out = (torch.rand(side, side) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


if __name__ == "__main__":
    main()
