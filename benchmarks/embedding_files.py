"""Images per second of an embedder from files to regions, as most users wait for them, and where the time goes.

    python benchmarks/embedding_files.py --data ../shared/datasets/grocery/train --images 256
    python benchmarks/embedding_files.py --data PHOTOS --images 128 --side 1536 --models mobilenetv2_100

Each run embeds the same files four times, alternating: with and without threads that decode ahead, with and without
normalisations and activations folded into convolutions (`diml.models.folding`). `--side` enlarges the photos to that
short side first, as JPEG files of quality 90, to the size that cameras give. The second table has the CPU time of each
step on one thread, without the others.

Networks have random weights, but for `mobilenetv2_100`: their speed does not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import measure
from diml.allocator import keep_freed_memory
from diml.data import load_dataset
from diml.data.images import load_image
from diml.models import Embedder, load_embedder
from diml.models.folding import WORTH_FOLDING, folded

NEITHER = "neither"
WAYS = {NEITHER: (False, False), "threads": (True, False), "folded": (False, True), "both": (True, True)}
NEVER = 2**62
STEPS = ("decode", "resize and crop", "normalise", "network", "network, folded")


def main() -> None:
    made = measure.parser(__doc__)
    made.add_argument("--data", type=Path, help="a folder of photos, with all folders in it; default: the ORL faces")
    made.add_argument("--images", type=int, default=256, help=f"images, at least {WORTH_FOLDING}; default: %(default)s")
    made.add_argument("--batch-size", type=int, default=64, help="images per batch; default: %(default)s")
    made.add_argument("--side", type=int, help="enlarge photos to this short side, pixels; default: as they are")
    made.add_argument("--models", nargs="+", default=["mobilenetv2_100", "resnet50", "vit_small_patch16_224"])
    options = measure.read(made)
    if options.images < WORTH_FOLDING:
        made.error(f"--images: need at least {WORTH_FOLDING}, got {options.images}")
    keep_freed_memory()
    if options.data is None:
        found = [Path(path) for path in load_dataset("orl").test.images]
    else:
        found = sorted(path for path in options.data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(found) < options.images:
        made.error(f"--data: need {options.images} photos, got {len(found)} in {options.data or 'ORL'}")
    generator = torch.Generator().manual_seed(options.seed)
    paths = [found[row] for row in torch.randperm(len(found), generator=generator)[: options.images].tolist()]
    with tempfile.TemporaryDirectory() as folder:
        if options.side:
            paths = enlarged(paths, options.side, Path(folder))
        results = [{"model": name, **measured(name, paths, options)} for name in options.models]
    speeds = [
        [
            result["model"],
            *(measure.shown(result[way]) for way in WAYS),
            measure.shown(result["ratio"]),
            difference(result),
        ]
        for result in results
    ]
    steps = [[result["model"], *(measure.shown(result[step]) for step in STEPS)] for result in results]
    measure.finish(
        "embedding_files",
        options,
        results,
        measure.table("Images/s", ("model", *WAYS, "both / neither", "largest difference"), speeds),
        measure.table("Milliseconds of CPU time an image, one thread", ("model", *STEPS), steps),
    )


def measured(name: str, paths: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Speeds of all ways, the ratio of both to neither, what the regions differ by, and the times of the steps."""
    embedder = load_embedder(name, pretrained=name == "mobilenetv2_100")
    regions: dict[str, torch.Tensor] = {}

    def run(way: str) -> Callable[[], None]:
        def embed() -> None:
            with chosen(*WAYS[way]):
                regions[way] = embedder.embed(paths, batch_size=options.batch_size).dense

        return embed

    with measure.progress.status(name):
        seconds = measure.alternate({way: run(way) for way in WAYS}, options.runs, options.warmup)
        steps = times_of_steps(embedder, paths, options)
    return {
        **{way: measure.spread([len(paths) / value for value in values]) for way, values in seconds.items()},
        "ratio": measure.ratios(seconds[NEITHER], seconds["both"]),
        "difference": float((regions["both"] - regions[NEITHER]).abs().max()),
        **steps,
    }


@contextlib.contextmanager
def chosen(threads: bool, folding: bool) -> Iterator[None]:
    """Embed with or without each of the two."""
    with contextlib.ExitStack() as stack:
        if not threads:
            stack.enter_context(mock.patch("diml.data.loading._are_files", return_value=False))
        if not folding:
            stack.enter_context(mock.patch("diml.models.embedder.WORTH_FOLDING", NEVER))
        yield


@torch.no_grad()
def times_of_steps(embedder: Embedder, paths: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """CPU time of each step for a batch of images, on one thread; milliseconds an image."""
    used, threads = paths[: options.batch_size], torch.get_num_threads()
    preprocess = embedder.preprocess
    photos = [load_image(path) for path in used]
    views = [preprocess.view(photo) for photo in photos]
    given = torch.stack([preprocess.normalize(view) for view in views]).contiguous(memory_format=torch.channels_last)
    quick = folded(embedder.backbone, preprocess.size)
    work: dict[str, Callable[[], object]] = {
        "decode": lambda: [load_image(path) for path in used],
        "resize and crop": lambda: [preprocess.view(photo) for photo in photos],
        "normalise": lambda: [preprocess.normalize(view) for view in views],
        "network": lambda: embedder.backbone(given),
        "network, folded": lambda: quick(given),
    }
    torch.set_num_threads(1)
    try:
        found: dict[str, list[float]] = {step: [] for step in work}
        for number in range(options.warmup + options.runs):
            for step, run in work.items():
                started = time.process_time()
                run()
                if number >= options.warmup:
                    found[step].append((time.process_time() - started) / len(used) * 1000)
    finally:
        torch.set_num_threads(threads)
    return {step: measure.spread(values) for step, values in found.items()}


def enlarged(paths: list[Path], side: int, folder: Path) -> list[Path]:
    """The photos as larger JPEG files."""
    made = []
    for number, path in enumerate(paths):
        photo = load_image(path)
        factor = side / min(photo.size)
        made.append(folder / f"{number}.jpg")
        photo.resize((round(photo.width * factor), round(photo.height * factor))).save(made[-1], quality=90)
    return made


def difference(result: dict[str, Any]) -> str:
    return f"{result['difference']:.1e}"


if __name__ == "__main__":
    main()
