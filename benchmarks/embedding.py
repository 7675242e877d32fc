"""Images a second that an embedder takes, with the C library's defaults and with kept memory, in turns.

    python benchmarks/embedding.py --images 256 --runs 5

Each run is a process of its own, as the setting cannot be taken back. Prints a table and, with --output, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", choices=("default", "kept"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    words = [sys.executable, __file__, "--images", str(options.images), "--batch-size", str(options.batch_size)]
    runs: dict[str, list[dict[str, float]]] = {"default": [], "kept": []}
    for _ in range(options.runs):
        for memory, found in runs.items():
            done = subprocess.run([*words, "--measure", memory], check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout))
    for memory, found in runs.items():
        for what in ("images_per_second", "user_seconds", "system_seconds", "page_faults"):
            values = [run[what] for run in found]
            print(
                f"{memory:8} {what:20} median {statistics.median(values):10.1f}  ({min(values):.1f}..{max(values):.1f})"
            )
    pairs = zip(runs["kept"], runs["default"], strict=True)
    ratios = [kept["images_per_second"] / default["images_per_second"] for kept, default in pairs]
    print(f"ratio kept / default: median {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")
    if options.output:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.platform()}
        options.output.write_text(json.dumps({"runs": runs, "ratios": ratios, "machine": machine}, indent=1))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One process: embed random images with MobileNetV2 at 224 pixels."""
    import torch

    from diml.allocator import keep_freed_memory
    from diml.models import load_embedder

    if options.measure == "kept":
        keep_freed_memory()
    embedder = load_embedder("mobilenetv2_100")
    generator = torch.Generator().manual_seed(0)
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
