"""Images per second of an embedder, with the defaults of the C library and with freed memory kept, alternating.

    python benchmarks/embedding.py --images 256 --runs 5

Each run embeds random images with MobileNetV2 at 224 pixels, in a process of its own, as keeping freed memory cannot be
undone.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import torch

import measure
from diml.allocator import keep_freed_memory

MEMORY = ("default", "kept")
QUANTITIES = {
    "images_per_second": "images/s",
    "user_seconds": "user, s",
    "system_seconds": "system, s",
    "page_faults": "page faults",
}


def main() -> None:
    made = measure.parser(__doc__, warmup=0)
    made.add_argument("--images", type=int, default=256, help="images per run; default: %(default)s")
    made.add_argument("--batch-size", type=int, default=64, help="images per batch; default: %(default)s")
    made.add_argument("--measure", choices=MEMORY, help=argparse.SUPPRESS)
    options = measure.read(made)
    if options.measure:
        print(json.dumps(embed(options)))
        return
    arguments = ["--images", str(options.images), "--batch-size", str(options.batch_size), "--seed", str(options.seed)]
    arguments += ["--threads", str(options.threads)] if options.threads else []
    runs: dict[str, list[dict[str, float]]] = {memory: [] for memory in MEMORY}
    for number in range(options.warmup + options.runs):
        for memory in MEMORY:
            with measure.progress.status(f"run {number + 1} of {options.warmup + options.runs}: {memory}"):
                found = measure.in_own_process(__file__, [*arguments, "--measure", memory])
            if number >= options.warmup:
                runs[memory].append(found)
    results: list[dict[str, Any]] = [
        {"memory": memory} | {name: measure.spread([run[name] for run in found]) for name in QUANTITIES}
        for memory, found in runs.items()
    ]
    speeds = ([run["images_per_second"] for run in runs[memory]] for memory in ("kept", "default"))
    results[1]["ratio"] = measure.ratios(*speeds)
    rows = [[result["memory"], *(measure.shown(result[name]) for name in QUANTITIES)] for result in results]
    ratio = measure.shown(results[1]["ratio"])
    rows = [[*row, shown] for row, shown in zip(rows, ("", ratio), strict=True)]
    columns = ("freed memory", *QUANTITIES.values(), "kept / default")
    measure.finish("embedding", options, results, measure.table("Embedding: median, min..max", columns, rows))


def embed(options: argparse.Namespace) -> dict[str, float]:
    """One run: its speed, and what it took of the processor and the system."""
    from diml.models import load_embedder

    if options.measure == "kept":
        keep_freed_memory()
    embedder = load_embedder("mobilenetv2_100")
    generator = torch.Generator().manual_seed(options.seed)
    images = torch.randn(options.batch_size, 3, 224, 224, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        embedder(images)
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        batches = max(1, options.images // options.batch_size)
        for _ in range(batches):
            embedder(images)
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "images_per_second": batches * options.batch_size / seconds,
        "user_seconds": after.ru_utime - before.ru_utime,
        "system_seconds": after.ru_stime - before.ru_stime,
        "page_faults": after.ru_minflt - before.ru_minflt,
    }


if __name__ == "__main__":
    main()
